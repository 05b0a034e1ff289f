"""`RowObserver`: whoever keeps something of each computed token beside its keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode.engine.branch import Row, gather_rows, pick_rows
from parallel_decode.engine.chunk import Chunk


@dataclass(frozen=True, eq=False)
class ComputedRows:
    """What a forward step has computed: of each chunk the tokens, then the nodes of its draft.

    Attributes:
        chunks: in the order of their rows.
        input_ids: [T] int64.
        positions: [T] int32.
        slots: [T] int64, where their keys are.
        hidden: [T, hidden_size], after the final norm.
        before: of each chunk the hidden state of the token before it, where it is known.
    """

    chunks: Sequence[Chunk]
    input_ids: NDArray[np.int64]
    positions: NDArray[np.int32]
    slots: NDArray[np.int64]
    hidden: Tensor
    before: Sequence[Row | None]

    def features(self) -> Tensor:
        """[T, hidden_size]: the hidden state of the token before each; zeros where it isn't known.

        The token before a node of a draft is its parent.
        """
        num_rows = len(self.input_ids)
        if num_rows == len(self.chunks) and None not in self.before:  # a plain decode step
            return gather_rows([row for row in self.before if row is not None])
        sources = np.arange(-1, num_rows - 1)
        first = 0
        firsts = []
        for chunk in self.chunks:
            firsts.append(first)
            node = first + len(chunk.tokens)
            if chunk.num_nodes:
                # Of the first level it is the chunk's last token, in the row before the nodes.
                sources[node : node + chunk.num_nodes] = node + chunk.draft.parents
            first += chunk.num_rows
        # Never a view: what is not known is written into it.
        features = pick_rows(self.hidden, np.maximum(sources, 0)).clone()
        for row, known in zip(firsts, self.before, strict=True):
            features[row] = 0 if known is None else known.value
        return features


class RowObserver(Protocol):
    """Sees each row as it is computed.

    Attributes:
        storage: [num_layers, 2, num_blocks, items], as of the engine's cache and in its blocks:
            what is copied or moved there is copied or moved here as well.
    """

    storage: Tensor

    def computed(self, rows: ComputedRows) -> None:
        """A step's rows are computed; drafts are not verified yet."""
