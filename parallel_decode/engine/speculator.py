"""`Speculator`: what the scheduler asks for drafts, and tells what became of them."""

from collections.abc import Sequence
from typing import Protocol

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import DraftRequest
from parallel_decode.engine.row_observer import RowObserver
from parallel_decode.engine.verified import Verified


class Speculator(Protocol):
    """Whatever it drafts, branches get the tokens that they would get without it.

    What it raises ends the programs that are waited for, as any error of the engine does. Other
    programs go on with the next step.
    """

    @property
    def row_observer(self) -> RowObserver | None:
        """Who is shown all computed rows as long as it is the engine's speculator, if anybody."""

    def wants_to_draft(self, num_rows: int) -> bool:
        """Whether to ask it in this step, which computes so many tokens anyway."""

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        """A tree behind each branch's last token, the empty one for no guess.

        Args:
            requests: the branches that draw after the step.
            num_rows: tokens that the step computes anyway, of others too.
            max_nodes: of all trees together.
        """

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        """A step is over in which branches drew.

        Args:
            verified: the branches that were asked about, each with its draft and what was right.
            num_rows: tokens that the step computed, drafts included.
            seconds: of the whole step, drafting and drawing included.
        """

    def observe(self, branch: Branch) -> None:
        """The branch was rolled back."""

    def forget(self, branch: Branch) -> None:
        """The branch's sampling has ended; it may be asked about again."""
