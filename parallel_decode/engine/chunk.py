"""`Chunk`: what a forward step computes of one branch."""

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

    @property
    def num_rows(self) -> int:
        return len(self.tokens) + len(self.draft)
