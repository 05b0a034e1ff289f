"""`SearchNode`: a partial solution in the tree of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from parallel_decode.engine import Branch


@dataclass(eq=False, slots=True)
class SearchNode:
    """One branch and what a search knows of it. A node can be taken up again at any time.

    Attributes:
        depth: steps from the question.
        ended: whether its text came to an end; such a node has no children.
        action: name of what made it.
        visits, total: number and sum of the values that were backed up through it.
        in_flight: evaluations below it that have begun and not come back (virtual loss).
    """

    branch: Branch
    parent: SearchNode | None = field(default=None, repr=False)
    depth: int = 0
    ended: bool = False
    action: str = ""
    visits: int = 0
    total: float = 0.0
    in_flight: int = 0
    children: Sequence[SearchNode] = field(default=(), repr=False)

    @property
    def value(self) -> float:
        """What the scorer said of it: the score of its branch."""
        if self.branch.score is None:
            raise ValueError(f"{self.branch!r} has no score")
        return self.branch.score

    @property
    def mean(self) -> float:
        """Of the values backed up through it; 0 before the first."""
        return self.total / self.visits if self.visits else 0.0

    def child(self, branch: Branch, ended: bool, action: str) -> SearchNode:
        """A node below this one; it is not among the children yet."""
        return SearchNode(branch, self, self.depth + 1, ended, action)

    def path(self) -> Iterator[SearchNode]:
        """This node, its parent, and so on up to the root."""
        node: SearchNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def walk(self) -> Iterator[SearchNode]:
        """This node and all below it, parents first."""
        open_nodes = [self]
        while open_nodes:
            node = open_nodes.pop()
            yield node
            open_nodes += reversed(node.children)

    def back_up(self, value: float) -> None:
        """Counts a value here and in all nodes above."""
        for node in self.path():
            node.visits += 1
            node.total += value


def best_first(nodes: Sequence[SearchNode]) -> list[SearchNode]:
    """By value; of equals the first stays the first."""
    return sorted(nodes, key=lambda node: -node.value)


def branches_of(nodes: Sequence[SearchNode]) -> list[Branch]:
    return [node.branch for node in nodes]


def token_cost(leaves: Sequence[SearchNode]) -> Callable[[Sequence[int]], int]:
    """What a set of these leaves, as indices, takes in the KV cache: the tokens of all nodes on
    their paths, each shared one once. For a search that asks about many sets."""
    sizes = {
        id(node): node.branch.num_tokens - node.branch.fork_length
        for leaf in leaves
        for node in leaf.path()
    }
    paths = [{id(node) for node in leaf.path()} for leaf in leaves]
    return lambda chosen: sum(map(sizes.__getitem__, set().union(*(paths[i] for i in chosen))))
