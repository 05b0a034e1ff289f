"""Whoever guesses what branches say next."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.row_observer import RowObserver
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.engine.verified import Verified


class DraftRequest(NamedTuple):
    """A branch that is about to draw.

    params: how it draws. key: token number n of the branch is drawn with uniform number n of stream
    0 of this key (`_C.uniforms`), so that a drafter can draw with the same luck.
    """

    branch: Branch
    params: SamplingParams
    key: int


class Drafter(Protocol):
    """Proposes tokens that the model then verifies: guesses decide how soon tokens come, never
    which.

    It is called in every step. What a branch holds it takes from the branch itself, and only what
    is new there.

    Attributes:
        learns_when_computed: whether it learns of its drafts by `Verified.drawn`, so that nothing
            is to be seen of it as long as they are not computed.
        nodes_are_free: whether more nodes take it next to no more time.
    """

    learns_when_computed: bool = False
    nodes_are_free: bool = False

    @property
    def row_observer(self) -> RowObserver | None:
        """Who is to be shown all computed rows while it drafts; mostly nobody."""
        return None

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """A tree of at most max_nodes[i] <= 63 nodes a request, the empty one for no idea."""
        ...

    def learn(self, verified: Sequence[Verified]) -> None:
        """Its drafts are verified, some of them cut before; mostly nobody wants to know."""
        return None

    def observe(self, branch: Branch) -> None:
        """Takes note of the tokens that the branch has now.

        To be called after tokens were committed or rolled back, before others come in their place;
        and for a new branch before its parent is rolled back. Twice is the same as once.
        """
        ...

    def forget(self, branch: Branch) -> None:
        """The branch will say nothing more. One that was never observed may be forgotten, too."""
        ...
