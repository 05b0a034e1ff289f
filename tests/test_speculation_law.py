"""What is drawn with guesses follows the exact law of plain sampling."""

import math

import numpy as np
import pytest
import torch

from parallel_decode.engine import SamplingParams, draft_verifier
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.draws import Draws
from parallel_decode.kernels import ReferenceOps
from tests.guesses import Guesser
from tests.tiny_model import plain_logits, tiny_engine

PROMPT = [5, 9, 2, 30, 7]
ALLOWED = [1, 4, 8, 20]
PARAMS = SamplingParams(
    temperature=1.2,
    top_p=0.97,
    allowed_tokens=frozenset(ALLOWED),
    frequency_penalty=0.5,
    max_tokens=4,
    ignore_eos=True,
)
NUM_BRANCHES = 4000
NORMAL_QUANTILE = 3.09  # of 1e-3


def law_of_next(output: list[int]) -> dict[int, float]:
    """After these tokens; from a plain prefill, and the definition of the filters."""
    logits = torch.full((1, 46), -math.inf, dtype=torch.float64)
    allowed = torch.tensor(ALLOWED)
    logits[0, allowed] = plain_logits([*PROMPT, *output]).double()[allowed]
    for token in output:
        logits[0, token] -= 0.5
    filters = (np.array([x]) for x in (1.2, 0, 0.97, 0.0))
    p = ReferenceOps().probabilities(logits[:, : plain_logits(PROMPT).numel()], *filters)[0]
    return {token: float(p[token]) for token in ALLOWED if p[token] > 0}


def law_of_outputs(length: int, output: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    if length == 0:
        return {output: 1.0}
    return {
        path: p * q
        for token, p in law_of_next(list(output)).items()
        for path, q in law_of_outputs(length - 1, (*output, token)).items()
    }


class LikelyGuesser(Guesser):
    """Bushy trees of tokens that come often: most steps accept something."""

    def _tree(self, branch, size: int) -> DraftTree:
        parents = [-1, -1, -1, 0, 0, 1, 1, 2, 3, 5][:size]
        return DraftTree.of([self._rng.choice(ALLOWED) for _ in parents], parents)


def excess(outputs: list[tuple[int, ...]]) -> float:
    """Chi-square of the first four tokens against their exact law, in standard deviations above
    its mean (Wilson and Hilferty 1931)."""
    law = law_of_outputs(4)
    assert math.isclose(sum(law.values()), 1, rel_tol=1e-6)
    observed = dict.fromkeys(law, 0)
    for output in outputs:
        if output not in observed:
            return math.inf
        observed[output] += 1
    # What is expected less than five times is one cell.
    cells = [(observed[path], len(outputs) * p) for path, p in law.items()]
    cells.sort(key=lambda cell: cell[1])
    rare = [cell for cell in cells if cell[1] < 5]
    common = cells[len(rare) :]
    if rare:
        common.append((sum(o for o, _ in rare), sum(e for _, e in rare)))
    chi_square = sum((o - e) ** 2 / e for o, e in common)
    degrees = len(common) - 1
    spread = 2 / (9 * degrees)
    return ((chi_square / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def drawn() -> list[tuple[int, ...]]:
    engine = tiny_engine(kv_tokens=16 * 2 * NUM_BRANCHES, max_batch_tokens=12 * NUM_BRANCHES)
    engine.speculator = LikelyGuesser(num_nodes=10)
    kids = engine.fork(engine.prefill(PROMPT), NUM_BRANCHES)
    engine.extend(kids, PARAMS)
    assert engine.usage.accepted_tokens > NUM_BRANCHES / 4
    return [tuple(kid.output_tokens) for kid in kids]


def test_the_first_tokens_follow_the_law():
    assert excess(drawn()) < NORMAL_QUANTILE


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (draft_verifier, "walk", lambda trees, drawn: [[0] if len(tree) else [] for tree in trees]),
        (Draws, "depths", property(lambda draws: np.zeros(len(draws), np.int64))),
    ],
    ids=["any child is right", "one random number for all nodes"],
)
def test_a_wrong_way_to_draw_is_found_out(owner, name, wrong, monkeypatch):
    monkeypatch.setattr(owner, name, wrong)
    assert excess(drawn()) > 2 * NORMAL_QUANTILE
