"""`Text`: what a dense model reads of branches that were joined, or that see each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from parallel_decode.model.checkpoint import Checkpoint
from tests.accuracy import assert_as_accurate_as_torch
from tests.dense_model import dense_logits


@dataclass
class Text:
    """Tokens with their positions, and what each reads where: the oracle's side of a branch.

    A piece is (tokens, positions). `seen[i]` holds (number of an earlier token, position at which
    it is read, branch embedding or None) for all that token i sees.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    seen: list[dict[int, tuple[int, torch.Tensor | None]]] = field(default_factory=list)

    def append(
        self,
        tokens: Sequence[int],
        start: int,
        view: dict[int, tuple[int, torch.Tensor | None]],
    ) -> dict[int, tuple[int, torch.Tensor | None]]:
        """Adds tokens from position `start` on that see `view` and each other -> view after."""
        view = dict(view)
        for number, token in enumerate(tokens):
            index = len(self.tokens)
            self.tokens.append(token)
            self.positions.append(start + number)
            view[index] = (start + number, None)
            self.seen.append(dict(view))
        return view

    def logits(self, dtype: torch.dtype, checkpoint: Checkpoint) -> torch.Tensor:
        n, window = len(self.tokens), checkpoint.config.sliding_window or 10**6
        visible = torch.zeros(n, n, dtype=torch.bool)
        read_at = torch.tensor(self.positions).expand(n, n).clone()
        shape = (checkpoint.config.num_kv_heads, checkpoint.config.head_dim)
        added = torch.zeros(n, n, *shape)
        for row, view in enumerate(self.seen):
            for column, (position, embedding) in view.items():
                visible[row, column] = self.positions[row] - position < window
                read_at[row, column] = position
                if embedding is not None:
                    added[row, column] = embedding
        return dense_logits(checkpoint, self.tokens, visible, self.positions, read_at, added, dtype)

    def check(self, rows: dict[int, torch.Tensor], checkpoint: Checkpoint) -> None:
        """rows: token number -> the engine's logits after it."""
        exact = self.logits(torch.float64, checkpoint)
        single = self.logits(torch.float32, checkpoint)
        for number, logits in rows.items():
            assert_as_accurate_as_torch(logits, exact[number], single[number])


def moved(view: dict, by: int) -> dict:
    return {index: (position + by, embedding) for index, (position, embedding) in view.items()}
