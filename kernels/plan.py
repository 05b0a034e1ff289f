"""The attention plan of one step: which blocks are read for which query rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_decode import _C

BLOCK_SIZE: int = _C.BLOCK_SIZE
"""Tokens of a KV block."""


class BranchPlan:
    """Made once a step from the block tables and used by every layer.

    Sequence i of the step has `rows[i]` query rows, the last tokens of `tables[i]`; each row sees
    its table up to and including itself. Neighbouring sequences whose tables begin with the same
    entries read those entries together.

    Args:
        tables: one block table a sequence, keys of this step's tokens included.
        rows: [num_sequences] int32.
        positions: [num_rows] int32, the position of each row's token.
        inverse_frequencies: [head_dim / 2] fp32 of the model's RoPE, for views that are read at
            other positions than those at which they were stored.
        draft_masks: [num_rows] uint64 or None. Where it is not 0, a row is one of at most 64 draft
            tokens of its sequence, and bit j tells whether it sees draft token j; of the tokens
            before the draft every row sees all.
        share: False lets every sequence read for itself, to measure what sharing is worth.
    """

    def __init__(
        self,
        tables: Sequence[_C.BlockTable],
        rows: NDArray[np.int32],
        positions: NDArray[np.int32],
        inverse_frequencies: NDArray[np.float32],
        draft_masks: NDArray[np.uint64] | None = None,
        share: bool = True,
    ) -> None:
        self.tables = tables
        self.rows = rows
        self.positions = positions
        self.inverse_frequencies = inverse_frequencies
        self.draft_masks = draft_masks
        self.share = share
        self.num_launches = 1
        """A layer; the backend that runs the plan may need another."""
        self._native: _C.AttentionPlan | None = None
        self._counts: tuple[int, int, int] | None = None

    @property
    def native(self) -> _C.AttentionPlan:
        """The forest of the tables, made when it is first asked for: a backend that keeps the plan
        of the step before does without."""
        if self._native is None:
            self._native = _C.AttentionPlan(
                self.tables,
                self.rows,
                self.positions,
                self.inverse_frequencies,
                self.draft_masks,
                self.share,
            )
        return self._native

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    @property
    def tokens_stored(self) -> int:
        """KV tokens of the step's tables, each counted once."""
        return self._token_counts[0]

    @property
    def tokens_logical(self) -> int:
        """KV tokens that the sequences see, shared ones counted for each."""
        return self._token_counts[1]

    @property
    def tokens_read(self) -> int:
        """KV tokens that a layer reads; the backend may read some more than once."""
        return self._token_counts[2]

    @property
    def _token_counts(self) -> tuple[int, int, int]:
        if self._counts is None:
            stored = self.native.tokens_stored
            self._counts = stored, self.native.tokens_logical, stored
        return self._counts

    def count(self, stored: int, logical: int, read: int, num_launches: int) -> None:
        """A backend tells what it made of the plan."""
        self._counts = stored, logical, read
        self.num_launches = num_launches
