"""`ChainOf`: a drafter's trees without all but their most probable path."""

from collections.abc import Sequence

from parallel_decode.engine import Branch
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.engine.row_observer import RowObserver
from parallel_decode.engine.verified import Verified


def main_path(tree: DraftTree) -> DraftTree:
    """From the root on always the most probable child, the first of equal ones."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents.tolist()):
        children.setdefault(parent, []).append(node)
    path: list[int] = []
    while below := children.get(path[-1] if path else -1):
        path.append(max(below, key=lambda node: float(tree.probabilities[node])))
    return DraftTree.chain(tree.tokens[path].tolist(), tree.probabilities[path])


class ChainOf(Drafter):
    """Asks another drafter for as many nodes as there may be, and keeps their main path."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.learns_when_computed = drafter.learns_when_computed

    @property
    def row_observer(self) -> RowObserver | None:
        """See `Drafter.row_observer`."""
        return self.drafter.row_observer

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """See `Drafter.propose`."""
        return [main_path(tree) for tree in self.drafter.propose(requests, max_nodes)]

    def learn(self, verified: Sequence[Verified]) -> None:
        """See `Drafter.learn`."""
        self.drafter.learn(verified)

    def observe(self, branch: Branch) -> None:
        """See `Drafter.observe`."""
        self.drafter.observe(branch)

    def forget(self, branch: Branch) -> None:
        """See `Drafter.forget`."""
        self.drafter.forget(branch)
