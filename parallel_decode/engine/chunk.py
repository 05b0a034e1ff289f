"""`Chunk`: what a forward step computes of one branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree


class Chunk(NamedTuple):
    """The next tokens of a branch to compute, and a draft of what may follow them.

    num_logits: of the tokens, counted from the last; a draft's nodes have logits as well.
    gives_logits: whether `forward` returns them, beside leaving the last token's on the branch; it
        does where there is a draft.
    """

    branch: Branch
    tokens: Sequence[int]
    num_logits: int = 1
    draft: DraftTree = NO_DRAFT
    gives_logits: bool = False

    def before(self, draft: DraftTree) -> Chunk:
        """The same tokens, and this draft behind them."""
        return Chunk(self.branch, self.tokens, self.num_logits, draft, self.gives_logits)

    @property
    def num_rows(self) -> int:
        return len(self.tokens) + len(self.draft)
