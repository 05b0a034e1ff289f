"""Logits of a batch of branches to their next tokens."""

from collections import Counter
from collections.abc import Sequence
from operator import is_

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode.engine.branch import Kept, Record, TopRows, pick_rows
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.draws import Draws
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

    def tokens(self, draws: Draws) -> NDArray[np.int64]:
        """[num_draws]: a token each; -1 where there is nothing to choose from."""
        logits, filters = self.filtered(draws)
        return self._ops.sample(logits, *filters, draws.uniforms(SAMPLE_STREAM))

    def filtered(self, draws: Draws) -> tuple[Tensor, FilterArrays]:
        """Logits after penalties and the like, and the filters still to be applied, a row and a
        number for each draw."""
        logits = draws.logits
        edited = [number for number, params in enumerate(draws.params) if params.edits_logits]
        if edited:
            # A copy by NumPy wakes no threads of torch, which wait for the cores ours are on.
            on_cpu = logits.device.type == "cpu"
            logits = torch.from_numpy(logits.numpy().copy()) if on_cpu else logits.clone()
            self._edit(logits, draws, edited)
        if any(params.grammar is not None for params in draws.params):
            logits = self._grammars.masked(logits, _matchers(draws))
        if not self._filters.are_of(draws.params):
            self._filters = Filters(draws.params)
        temperature, top_k, top_p, min_p = map(draws.each, self._filters.arrays)
        return logits, (temperature, top_k, top_p, min_p)

    def records(
        self, draws: Draws, tokens: NDArray[np.int64], picked: NDArray[np.int64] | None = None
    ) -> list[tuple[int, Kept] | None]:
        """(token, its record) a draw; None where logits hold a NaN or nothing to choose from.

        picked: the draws that the tokens are of, where it is not all of them.
        """
        numbers = draws.numbers if picked is None else draws.numbers[picked]
        logits = draws.logits if picked is None else pick_rows(draws.logits, picked)
        lse, entropy, mean = self._ops.logit_stats(logits)
        chosen = _chosen(logits, np.maximum(tokens, 0))
        logprobs = (chosen - lse).tolist()
        certainty = (lse - mean - np.log(self._vocab_size)).tolist()
        usable = np.isfinite(lse) & (tokens >= 0)
        tops: list[TopRows | None] = [None] * len(tokens)
        if any(params.logprobs for params in draws.params):
            tops = self._tops(logits, lse, [draws.params[n].logprobs for n in numbers.tolist()])
        good, drawn = usable.tolist(), tokens.tolist()
        columns = zip(good, drawn, logprobs, entropy.tolist(), certainty, tops, strict=True)
        return [
            (token, (logprob, h, sc, True, top)) if is_good else None
            for is_good, token, logprob, h, sc, top in columns
        ]

    def _edit(self, logits: Tensor, draws: Draws, edited: Sequence[int]) -> None:
        """Penalties, bias, allowed tokens and the minimum length, in place, of the draws of these
        works."""
        # Of all rows in one call: models that write tags have a bias at each of their steps.
        rows: list[int] = []
        tokens: list[int] = []
        biases: list[float] = []
        places = [
            (int(draws.firsts[number]) + 1 + node, draws.works[number], draws.drafts[number], node)
            for number in edited
            for node in range(-1, len(draws.drafts[number]))
        ]
        for row, work, draft, node in places:
            self._penalise(logits[row], work, draft, node)
            bias = work.sampling.logit_bias
            rows += [row] * len(bias)
            tokens += bias.keys()
            biases += bias.values()
        if rows and logits.device.type == "cpu":  # where a call of torch costs more than the sums
            logits.numpy()[rows, tokens] += np.array(biases, np.float32)
        elif rows:
            logits[rows, tokens] += torch.tensor(biases, device=logits.device)
        for row, work, draft, node in places:
            self._restrict(logits[row], work, draft, node)

    def _penalise(self, row: Tensor, work: Work, draft: DraftTree, node: int) -> None:
        """node: -1 is the branch."""
        p = work.sampling
        if p.repetition_penalty == 1 and not p.presence_penalty and not p.frequency_penalty:
            return
        counts, path = work.output_counts or Counter(), draft.path_to(node)
        if path:
            counts = counts + Counter(path)
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

    def _restrict(self, row: Tensor, work: Work, draft: DraftTree, node: int) -> None:
        """To the allowed tokens, and to none that ends before the minimum length."""
        p = work.sampling
        if p.allowed_tokens is not None:
            allowed = torch.tensor(sorted(p.allowed_tokens))
            kept = row[allowed]
            row.fill_(-torch.inf)
            row[allowed] = kept
        if p.min_tokens and work.num_generated + len(draft.path_to(node)) < p.min_tokens:
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
            asked = pick_rows(logits, np.array(rows))
            values, ids = self._ops.top_logits(asked, min(k, self._vocab_size))
            for row, tokens, of_tokens in zip(rows, ids, values - lse[rows, None], strict=True):
                tops[row] = tokens, of_tokens
        return tops


def _matchers(draws: Draws) -> dict[int, Matcher]:
    """Draw -> the state of its grammar there: behind the branch, or behind a node of its draft. A
    node that the grammar does not allow has none: nothing is ever drawn behind it."""
    matchers: dict[int, Matcher] = {}
    for work, draft, first in zip(draws.works, draws.drafts, draws.firsts.tolist(), strict=True):
        text = work.branch.grammar_text
        if work.sampling.grammar is None or text is None:
            continue
        matchers[first] = text.matcher(work.branch.num_tokens, work.branch.recent)
        for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
            above = matchers.get(first + 1 + int(parent))
            if above is None:
                continue
            matcher = above.deep_copy()
            if matcher.consume_tokens([int(token)]):
                matchers[first + 1 + node] = matcher
    return matchers


def _chosen(logits: Tensor, tokens: np.ndarray) -> np.ndarray:
    """The logit of one token a row."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        chosen: np.ndarray = logits.numpy()[np.arange(len(tokens)), tokens]
        return chosen
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
