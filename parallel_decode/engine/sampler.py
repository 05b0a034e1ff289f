"""Logits of a batch of branches to their next tokens."""

from collections import Counter
from collections.abc import Sequence
from operator import is_
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine.branch import Kept, Record, Row, TopRows, gather_rows
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree
from parallel_decode.engine.grammar_text import Matcher
from parallel_decode.engine.grammars import Grammars
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.work import Work
from parallel_decode.kernels import Ops

SAMPLE_STREAM = 0
"""Random numbers of plain sampling; other uses draw from other streams of the same key."""


FilterArrays = tuple[
    NDArray[np.float32], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]
]


class Filters:
    """Temperature, top-k, top-p and min-p of a list of parameters, [num_works] each: mostly those
    of the step before."""

    def __init__(self, params: Sequence[SamplingParams]) -> None:
        self._params = params
        self.arrays: FilterArrays = (
            np.array([p.temperature for p in params], np.float32),
            np.array([p.top_k for p in params], np.int32),
            np.array([p.top_p for p in params], np.float32),
            np.array([p.min_p for p in params], np.float32),
        )

    def are_of(self, params: Sequence[SamplingParams]) -> bool:
        return len(params) == len(self._params) and all(map(is_, params, self._params))


class Draw(NamedTuple):
    """One token to be drawn behind a work's branch, or behind a node of its draft."""

    work: Work
    row: Row
    draft: DraftTree = NO_DRAFT
    node: int = -1

    @property
    def depth(self) -> int:
        """Of the node; 0 is the branch."""
        return 0 if self.node < 0 else int(self.draft.depths[self.node])


def draw_key(work: Work, seed: int) -> int:
    """Of the random numbers that a work's branch draws with. seed: of its program."""
    if work.key is None:
        own = work.sampling.seed
        work.key = _C.child_key(work.branch.path_key, (seed if own is None else own) & (2**64 - 1))
    return work.key


class Sampler:
    """Draws tokens. A draw depends on the branch's seed, path and position alone."""

    def __init__(
        self, ops: Ops, vocab_size: int, eos_ids: Sequence[int], grammars: Grammars
    ) -> None:
        self._ops = ops
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_ids)
        self._filters = Filters([])

    def tokens(self, draws: Sequence[Draw], seeds: Sequence[int]) -> NDArray[np.int64]:
        """A token a draw; -1 where there is nothing to choose from."""
        keys = [draw_key(draw.work, seed) for draw, seed in zip(draws, seeds, strict=True)]
        positions = [draw.work.branch.num_tokens + draw.depth for draw in draws]
        uniform = _C.uniforms(np.array(keys, np.uint64), np.array(positions), SAMPLE_STREAM)
        logits, filters = self.filtered(draws)
        tokens: NDArray[np.int64] = self._ops.sample(logits, *filters, uniform)
        return tokens

    def filtered(self, draws: Sequence[Draw]) -> tuple[Tensor, FilterArrays]:
        """Logits after penalties and the like, and the filters still to be applied."""
        logits = gather_rows([draw.row for draw in draws])
        params = [draw.work.sampling for draw in draws]
        if any(p.edits_logits for p in params):
            # A copy by NumPy wakes no threads of torch, which wait for the cores ours are on.
            on_cpu = logits.device.type == "cpu"
            logits = torch.from_numpy(logits.numpy().copy()) if on_cpu else logits.clone()
            for row, draw in enumerate(draws):
                if draw.work.sampling.edits_logits:
                    self._edit(logits[row], draw)
        if any(p.grammar is not None for p in params):
            logits = self._grammars.masked(logits, _matchers(draws))
        if not self._filters.are_of(params):
            self._filters = Filters(params)
        return logits, self._filters.arrays

    def records(
        self, draws: Sequence[Draw], tokens: NDArray[np.int64]
    ) -> list[tuple[int, Kept] | None]:
        """(token, its record) a draw; None where logits hold a NaN or nothing to choose from."""
        logits = gather_rows([draw.row for draw in draws])
        lse, entropy, mean = self._ops.logit_stats(logits)
        chosen = _chosen(logits, np.maximum(tokens, 0))
        logprobs = (chosen - lse).tolist()
        certainty = (lse - mean - np.log(self._vocab_size)).tolist()
        usable = np.isfinite(lse) & (tokens >= 0)
        tops = self._tops(logits, lse, [draw.work.sampling.logprobs for draw in draws])
        good, drawn = usable.tolist(), tokens.tolist()
        columns = zip(good, drawn, logprobs, entropy.tolist(), certainty, tops, strict=True)
        return [
            (token, (logprob, h, sc, True, top)) if is_good else None
            for is_good, token, logprob, h, sc, top in columns
        ]

    def _edit(self, row: Tensor, draw: Draw) -> None:
        """Penalties, bias, allowed tokens and the minimum length, in place."""
        work, p = draw.work, draw.work.sampling
        counts = work.output_counts or Counter()
        if draw.node >= 0:
            counts = counts + Counter(draw.draft.path_to(draw.node))
        if p.repetition_penalty != 1:
            seen = torch.tensor(sorted({*work.prompt_set, *counts}))
            values = row[seen]
            row[seen] = torch.where(
                values > 0, values / p.repetition_penalty, values * p.repetition_penalty
            )
        if (p.presence_penalty or p.frequency_penalty) and counts:
            ids = torch.tensor(list(counts.keys()))
            times = torch.tensor(list(counts.values()), dtype=row.dtype)
            row[ids] -= p.presence_penalty + p.frequency_penalty * times
        for token, bias in p.logit_bias.items():
            row[token] += bias
        if p.allowed_tokens is not None:
            allowed = torch.tensor(sorted(p.allowed_tokens))
            kept = row[allowed]
            row.fill_(-torch.inf)
            row[allowed] = kept
        if work.num_generated + draw.depth < p.min_tokens:
            banned = [*p.stop_tokens] if p.ignore_eos else [*p.stop_tokens, *self._eos_ids]
            row[torch.tensor(banned, dtype=torch.int64)] = -torch.inf

    def _tops(
        self, logits: Tensor, lse: NDArray[np.float32], counts: Sequence[int]
    ) -> list[TopRows | None]:
        """The most likely tokens of each row, as many as it asks for; all that ask for the same
        number in one call. None for a row that asks for none."""
        tops: list[TopRows | None] = [None] * len(counts)
        for k in set(counts) - {0}:
            rows = [row for row, count in enumerate(counts) if count == k]
            asked = logits if len(rows) == len(logits) else logits[rows]
            values, ids = asked.topk(min(k, self._vocab_size))
            logprobs = values.cpu().numpy() - lse[rows, None]
            for row, tokens, of_tokens in zip(rows, ids.cpu().numpy(), logprobs, strict=True):
                tops[row] = tokens, of_tokens
        return tops


def _matchers(draws: Sequence[Draw]) -> dict[int, Matcher]:
    """Row -> the state of its grammar there: behind the branch, or behind a node of its draft. A
    node that the grammar does not allow has none: nothing is ever drawn behind it."""
    matchers: dict[int, Matcher] = {}
    of_nodes: dict[int, Matcher] = {}
    for row, draw in enumerate(draws):
        text = draw.work.branch.grammar_text
        if draw.work.sampling.grammar is None or text is None:
            continue
        if draw.node < 0:
            branch = draw.work.branch
            matchers[row] = text.matcher(branch.num_tokens, branch.recent)
            of_nodes = {-1: matchers[row]}
            continue
        above = of_nodes.get(int(draw.draft.parents[draw.node]))
        if above is None:
            continue
        matcher = above.deep_copy()
        if matcher.consume_tokens([int(draw.draft.tokens[draw.node])]):
            matchers[row] = of_nodes[draw.node] = matcher
    return matchers


def _chosen(logits: Tensor, tokens: np.ndarray) -> np.ndarray:
    """The logit of one token a row."""
    column = torch.from_numpy(tokens).to(logits.device).unsqueeze(1)
    return logits.gather(1, column).squeeze(1).float().cpu().numpy()


def token_records(ops: Ops, logits: Tensor, tokens: Sequence[int]) -> list[Record]:
    """Records of given tokens, each under its row of logits [num_tokens, vocab_size]."""
    lse, entropy, mean = ops.logit_stats(logits)
    chosen = _chosen(logits, np.asarray(tokens))
    certainty = lse - mean - np.log(logits.shape[1])
    return [
        Record(float(c - z), float(h), float(s))
        for c, z, h, s in zip(chosen, lse, entropy, certainty, strict=True)
    ]
