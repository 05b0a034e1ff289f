"""Many runs of one question, by a rule and a drafter, against the law of their first tokens."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.bundled_drafters import NODES, ONLY_MATCHED, BundledDrafters
from benchmarks.chi_square import chi_square
from benchmarks.drawn_trees import SHAPES, DrawnTrees
from benchmarks.next_token_laws import NextTokenLaws, Path
from benchmarks.report import Value
from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Branch, Drafter, draft_verifier
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import DraftRequest
from parallel_decode.speculation import StaticSpeculation

QUESTION = "countdown 72 from 7 12 1\n"
"""Its first three tokens say which two numbers are tried first: the model is of many minds."""
PARAMS = SamplingParams(temperature=1.2, top_p=0.97, max_tokens=3)
AS_CHOSEN = SamplingParams(temperature=0.0)
LIVE = 500
"""Runs at a time; those before them draft for them."""
LEVEL = 1e-4
DRAWN = {"draft model, apart": "replacement", "draft model, drawn": "no replacement"}
"""Drafters whose tokens are drawn, and how siblings are."""
CHOSEN_BUG = "chosen tokens said to be drawn"
TARGET_BUG = "said to be drawn from the target"
WALK_BUG = "the first node is always right"

Propose = Callable[[list[Branch]], tuple[list[DraftTree], list[Tensor | None] | None]]


@dataclass(frozen=True)
class Runs:
    """rule: "none" without drafts. shape: of a speculator's drafts, or one of `drawn_trees.SHAPES`.
    bug: a mistake that is made on purpose."""

    rule: str
    drafter: str
    shape: str
    bug: str | None = None


def all_runs(makers: dict[str, Callable[[], Drafter]]) -> list[Runs]:
    found = [Runs("none", "none", "none")]
    # Of three tokens the controller would draft none: it first has to see what pays.
    found += [Runs("match", drafter, "static") for drafter in makers]
    for rule in ("rejection", "traversal"):
        found += [
            Runs(rule, drafter, "static") for drafter in makers if drafter not in ONLY_MATCHED
        ]
        found += [Runs(rule, how, shape) for how in DRAWN for shape in ("chain of 2", "2 by 2")]
        found.append(Runs(rule, "draft model, chosen", "2 by 2", CHOSEN_BUG))
        found.append(Runs(rule, "draft model, apart", "2 by 2", TARGET_BUG))
    return [*found, Runs("match", "draft model", "static", WALK_BUG)]


class FirstTokens:
    """Counts them, and compares with the law that plain prefills give."""

    def __init__(self, drafters: BundledDrafters) -> None:
        self._drafters = drafters
        self._prompt = drafters.engine.tokenizer.encode(QUESTION, add_bos=None)
        self._laws = {
            model: NextTokenLaws(model, self._prompt, PARAMS)
            for model in (drafters.engine, drafters.draft)
        }
        self._law = self._laws[drafters.engine].outputs(PARAMS.max_tokens)

    def row(self, runs: Runs, count: int) -> dict[str, Value]:
        engine = self._drafters.engine
        before = engine.usage.accepted_tokens
        if runs.rule in ("none", "match"):
            counts = self._extended(runs, count)
        else:
            counts = self._verified(runs, count)
        found = chi_square(counts, self._law)
        return {
            "check": "chi-square",
            "rule": runs.rule,
            "drafter": runs.drafter,
            "shape": runs.shape,
            "branches": LIVE,
            "runs": count,
            "accepted_per_token": round(
                (engine.usage.accepted_tokens - before) / sum(map(len, counts.elements())), 3
            ),
            "chi_square": round(found.statistic, 1),
            "degrees": found.degrees,
            "p_value": found.p_value,
            "bug": runs.bug,
            "equal": found.p_value >= LEVEL,
            "as_it_must_be": (found.p_value >= LEVEL) == (runs.bug is None),
        }

    def _counted(self, count: int, grow: Callable[[list[Branch]], None]) -> Counter[Path]:
        engine = self._drafters.engine
        counts: Counter[Path] = Counter()
        root = engine.prefill(self._prompt)
        for first in range(0, count, LIVE):
            kids: list[Branch] = engine.fork(root, min(LIVE, count - first))
            grow(kids)
            counts.update(tuple(kid.output_tokens) for kid in kids)
            engine.prune(kids)
        engine.prune(root)
        return counts

    def _extended(self, runs: Runs, count: int) -> Counter[Path]:
        drafters = self._drafters

        def grow(kids: list[Branch]) -> None:
            drafters.engine.extend(kids, PARAMS)

        speculator = None
        if runs.rule == "match":
            speculator = drafters.speculator(runs.drafter, runs.shape)
        with drafters.speculating(speculator):
            if runs.bug is None:
                return self._counted(count, grow)
            with mock.patch.object(draft_verifier, "walk", _first_children):
                return self._counted(count, grow)

    def _verified(self, runs: Runs, count: int) -> Counter[Path]:
        drafters = self._drafters
        how = DRAWN.get(runs.drafter, "chosen")
        speculator = None
        if runs.shape in SHAPES:
            propose = self._drawn(runs, how)
        else:
            drafter = drafters.makers[runs.drafter]()
            propose = _chosen(drafter)
            # Shown all rows, and asked for nothing: a verification brings its own draft.
            speculator = StaticSpeculation(drafter, NODES)

        def grow(kids: list[Branch]) -> None:
            _verify(drafters.engine, kids, runs.rule, propose, how == "replacement")

        with drafters.speculating(speculator):
            return self._counted(count, grow)

    def _drawn(self, runs: Runs, how: str) -> Propose:
        drafters = self._drafters
        trees = DrawnTrees(self._laws[drafters.draft], SHAPES[runs.shape], how)
        rng = np.random.default_rng(0)

        def propose(kids: list[Branch]) -> tuple[list[DraftTree], list[Tensor | None]]:
            begin = [tuple(kid.output_tokens) for kid in kids]
            tokens, q = trees.draw(len(kids), rng, begin)
            drafts = [trees.tree(row) for row in tokens]
            if runs.bug == TARGET_BUG:
                said = self._laws[drafters.engine]
                q = torch.stack(
                    [
                        said.of([(*path, *tree.path_to(parent)) for parent in trees.parents])
                        for path, tree in zip(begin, drafts, strict=True)
                    ]
                )
            return drafts, list(q)

        return propose


def _first_children(trees: Sequence[DraftTree], _: NDArray[np.int64]) -> list[list[int]]:
    """Whatever was drawn."""
    return [[0] if len(tree) else [] for tree in trees]


def _chosen(drafter: Drafter) -> Propose:
    """What it thinks most probable, or finds in a text: no matter of the branch's own chance."""

    def propose(kids: list[Branch]) -> tuple[list[DraftTree], None]:
        requests = [DraftRequest(kid, AS_CHOSEN, 0) for kid in kids]
        return drafter.propose(requests, [NODES] * len(kids)), None

    return propose


def _verify(
    engine: Engine, kids: list[Branch], rule: str, propose: Propose, replacement: bool
) -> None:
    """Step by step, until all have their tokens."""
    while kids:
        drafts, laws = propose(kids)
        engine.verify(
            kids,
            drafts,
            PARAMS,
            rule,
            draft_probs=laws,
            replacement=replacement,
            num_generated=[len(kid.output_tokens) for kid in kids],
        )
        kids = [kid for kid in kids if kid.finish_reason is None]
