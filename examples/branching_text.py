"""`BranchingText`: a training text whose branches see what the engine's branches would see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

END = "<eos>"
Encode = Callable[[str], list[int]]


def encoder(tokenizer: Tokenizer) -> Encode:
    """Of parts of a text; END and tags are tokens of their own."""
    return lambda part: tokenizer.encode(part, add_special_tokens=False).ids


@dataclass
class BranchingText:
    """Tokens with positions, and what each sees; a view is the numbers of tokens that are seen.

    A model that is trained on it computes for each token the keys that the engine stores for it:
    a fork appends to a copy of its parent's view, and a `kv_union` is the union of views.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    runs: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """(first, end, view): tokens that see a view, and each other in their order."""
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
        first, end = len(self.tokens), len(self.tokens) + len(tokens)
        if learned and tokens:
            self.targets += zip([view[-1], *range(first, end - 1)], tokens, strict=True)
        self.tokens += tokens
        self.positions += range(start, start + len(tokens))
        self.runs.append((first, end, view))
        return [*view, *range(first, end)]

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
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        for row, text in enumerate(texts):
            length = len(text.tokens)
            tokens[row, :length] = torch.tensor(text.tokens)
            positions[row, :length] = torch.tensor(text.positions)
            for first, end, view in text.runs:
                mask[row, first:end, view] = True
                mask[row, first:end, first:end] = causal[: end - first, : end - first]
        triples = [(row, *target) for row, text in enumerate(texts) for target in text.targets]
        rows, columns, targets = torch.tensor(triples).unbind(1)
        return cls(tokens, positions, mask[:, None], rows, columns, targets)
