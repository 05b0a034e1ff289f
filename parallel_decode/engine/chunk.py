"""`Chunk`: what a forward step computes of one branch."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree


class Chunk:
    """The next tokens of a branch to compute, and a draft of what may follow them.

    Args:
        num_logits: of the tokens, counted from the last; a draft's nodes have logits as well.
        gives_logits: whether `forward` returns them, beside leaving the last token's on the branch;
            it does where there is a draft.

    Attributes:
        num_nodes: of the draft. num_rows: with the tokens; a step asks for both again and again.
    """

    __slots__ = ("branch", "draft", "gives_logits", "num_logits", "num_nodes", "num_rows", "tokens")

    def __init__(
        self,
        branch: Branch,
        tokens: Sequence[int],
        num_logits: int = 1,
        draft: DraftTree = NO_DRAFT,
        gives_logits: bool = False,
    ) -> None:
        self.branch = branch
        self.tokens = tokens
        self.num_logits = num_logits
        self.draft = draft
        self.gives_logits = gives_logits
        self.num_nodes = 0 if draft is NO_DRAFT else len(draft)
        self.num_rows = len(tokens) + self.num_nodes

    def with_draft(self, draft: DraftTree) -> Chunk:
        """The same tokens, and this draft behind them."""
        return Chunk(self.branch, self.tokens, self.num_logits, draft, self.gives_logits)
