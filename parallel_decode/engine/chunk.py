"""`Chunk`: what a forward step computes of one branch."""

from __future__ import annotations

from collections.abc import Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree


class Chunk:
    """The next tokens of a branch to compute, and a draft of what may follow them.

    Attributes:
        num_logits: of the tokens, counted from the last; a draft's nodes have logits as well.
        gives_logits: whether `forward` returns them, beside leaving the last token's on the branch;
            it does where there is a draft.
        num_drafted: nodes of the draft. A step asks for it, and for the rows, many times a branch.
        num_rows: of the tokens and the draft.
    """

    __slots__ = (
        "branch",
        "draft",
        "gives_logits",
        "num_drafted",
        "num_logits",
        "num_rows",
        "tokens",
    )

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
        self.num_drafted = 0 if draft is NO_DRAFT else len(draft)
        self.num_rows = len(tokens) + self.num_drafted

    def drafted(self, draft: DraftTree) -> Chunk:
        """The same tokens with another draft behind them."""
        return Chunk(self.branch, self.tokens, self.num_logits, draft, self.gives_logits)
