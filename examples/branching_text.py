"""`BranchingText`: a training text whose branches see what the engine's branches would see."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class BranchingText:
    """Tokens with positions, and what each sees; a view is the numbers of tokens that are seen.

    A model that is trained on it computes for each token the keys that the engine stores for it:
    a fork appends to a copy of its parent's view, and a `kv_union` is the union of views.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)
    targets: list[tuple[int, int]] = field(default_factory=list)

    def append(
        self,
        tokens: Sequence[int],
        view: Sequence[int] = (),
        start: int | None = None,
        learned: bool = True,
    ) -> list[int]:
        """Adds tokens that see `view` and those before them -> the view after them.

        Args:
            start: position of the first; None for the one behind the last of the view.
            learned: whether each is to be foretold from the one before it, which for the first is
                the last of the view.
        """
        view = list(view)
        if start is None:
            start = self.end(view)
        for token in tokens:
            number = len(self.tokens)
            if learned:
                self.targets.append((view[-1], token))
            view.append(number)
            self.tokens.append(token)
            self.positions.append(start)
            self.seen.append(list(view))
            start += 1
        return view

    def end(self, view: Sequence[int]) -> int:
        """The position behind all that a view holds."""
        return max((self.positions[number] for number in view), default=-1) + 1


@dataclass(frozen=True)
class TextBatch:
    """Rows of like length.

    Attributes:
        tokens, positions: [batch, time].
        mask: [batch, 1, time, time], True where seen.
        rows, columns, targets: [num_targets]: what is foretold, and from where.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor

    @classmethod
    def of(cls, texts: Sequence[BranchingText], pad_id: int) -> "TextBatch":
        width = max(len(text.tokens) for text in texts)
        tokens = torch.full((len(texts), width), pad_id)
        positions = torch.zeros(len(texts), width, dtype=torch.long)
        # Padding sees itself: a row of the mask without any True would be NaN.
        mask = torch.eye(width, dtype=torch.bool).repeat(len(texts), 1, 1)
        for row, text in enumerate(texts):
            length = len(text.tokens)
            tokens[row, :length] = torch.tensor(text.tokens)
            positions[row, :length] = torch.tensor(text.positions)
            queries = [q for q, view in enumerate(text.seen) for _ in view]
            mask[row, queries, [k for view in text.seen for k in view]] = True
        triples = [(row, *target) for row, text in enumerate(texts) for target in text.targets]
        rows, columns, targets = torch.tensor(triples).unbind(1)
        return cls(tokens, positions, mask[:, None], rows, columns, targets)
