"""`Draws`: the tokens that branches draw in one call, behind their ends and behind their drafts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine.branch import Row, gather_rows, pick_rows
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree, columns_of
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.work import Work


def draw_key(work: Work, seed: int) -> int:
    """Of the random numbers that a work's branch draws with. seed: of its program."""
    if work.key is None:
        own = work.sampling.seed
        work.key = _C.child_key(work.branch.path_key, (seed if own is None else own) & (2**64 - 1))
    return work.key


class Draws:
    """One draw behind each work's branch, then one behind each node of its draft.

    Args:
        works: whose branches draw.
        seeds: of their programs.
        rows: of the logits behind the branches; those behind a draft's nodes follow its branch's.
        drafts: of the branches; without any these draw for themselves alone.
    """

    def __init__(
        self,
        works: Sequence[Work],
        seeds: Sequence[int],
        rows: Sequence[Row],
        drafts: Sequence[DraftTree] | None = None,
    ) -> None:
        self.works = works
        self.drafts = [NO_DRAFT] * len(works) if drafts is None else drafts
        self.params: list[SamplingParams] = [work.sampling for work in works]
        self.keys = np.array([draw_key(work, seed) for work, seed in zip(works, seeds)], np.uint64)
        self._seeds, self._rows = seeds, rows
        self._are_plain = drafts is None

    def __len__(self) -> int:
        return len(self.works) if self._are_plain else int(self.sizes.sum())

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """[num_works]: draws of each."""
        return np.array([1 + len(draft) for draft in self.drafts])

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """[num_works]: the number of each branch's own draw."""
        if self._are_plain:
            return np.arange(len(self.works))
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """[num_draws]: the number of each draw's work."""
        return np.repeat(np.arange(len(self.works)), self.sizes)

    def each(self, per_work: NDArray) -> NDArray:
        """[num_works] -> [num_draws]."""
        return per_work if self._are_plain else per_work[self.numbers]

    @cached_property
    def logits(self) -> Tensor:
        """[num_draws, vocab_size]: the model's."""
        if self._are_plain:
            return gather_rows(self._rows)
        # Drafts that are verified together were computed together.
        begins = np.array([row.number for row in self._rows])
        return pick_rows(
            self._rows[0].tensor, self.each(begins - self.firsts) + np.arange(len(self))
        )

    @cached_property
    def depths(self) -> NDArray[np.int64]:
        """[num_draws]: of the draws' nodes, 0 behind a branch."""
        if self._are_plain:
            return np.zeros(len(self), np.int64)
        depths: NDArray[np.int64] = _C.draw_depths(columns_of(self.drafts))
        return depths

    def uniforms(self, stream: int) -> NDArray[np.float64]:
        """[num_draws]: a draw's depends on its branch's key and on its position alone."""
        positions = np.array([work.branch.num_tokens for work in self.works])
        return _C.uniforms(self.each(self.keys), self.each(positions) + self.depths, stream)

    def of(self, numbers: Sequence[int]) -> Draws:
        """Those of some of the works."""
        if len(numbers) == len(self.works):
            return self
        return Draws(
            [self.works[i] for i in numbers],
            [self._seeds[i] for i in numbers],
            [self._rows[i] for i in numbers],
            [self.drafts[i] for i in numbers],
        )
