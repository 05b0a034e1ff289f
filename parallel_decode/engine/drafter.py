"""`Drafter`: what guesses how branches go on, as the scheduler asks it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import DraftTree


class Verified(NamedTuple):
    """What a step made of one branch: `num_accepted` tokens of `draft`, and one more, unless the
    branch ended within the draft."""

    branch: Branch
    draft: DraftTree
    num_accepted: int


class Drafter(Protocol):
    """Whatever it guesses, the branches' tokens stay what they would have been."""

    def propose(self, branches: Sequence[Branch], max_nodes: int) -> Sequence[DraftTree]:
        """Guesses of what follows each branch's last token; an empty tree is none.

        max_nodes: of all trees together, what the step has room for.
        """

    def observe(self, verified: Sequence[Verified], seconds: float) -> None:
        """A step of the model took so long, from drafting to the last accepted token. It had no
        more than these branches in it, those without a draft too, each of one new token."""
