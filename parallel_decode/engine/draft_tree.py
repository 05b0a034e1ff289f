"""`DraftTree`: guessed continuations of a branch, to be verified in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_ROWS = 64
"""Bits of a row's mask: a branch's new tokens and what is drafted behind them."""
MAX_NODES = MAX_ROWS - 1


@dataclass(frozen=True)
class DraftTree:
    """Node n is token `tokens[n]` behind node `parents[n]` < n, or behind the branch where that is
    -1. Siblings have different tokens.

    Args:
        tokens, parents: one of each node.
        probabilities: of each node behind its parent, as the drafter sees it; empty where it can't
            say.

    Raises:
        ValueError: more than 63 nodes, a parent that does not come before its node, two siblings
            with one token, or as many probabilities as there are no nodes.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()
    probabilities: Sequence[float] = ()

    def __post_init__(self) -> None:
        size = len(self.tokens)
        if size > MAX_NODES or len(self.parents) != size:
            raise ValueError(
                f"a draft has at most {MAX_NODES} nodes with a parent each, got {size} tokens and"
                f" {len(self.parents)} parents"
            )
        if self.probabilities and len(self.probabilities) != size:
            raise ValueError(f"{size} nodes, but {len(self.probabilities)} probabilities")
        seen = set()
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if not -1 <= parent < node:
                raise ValueError(f"node {node} of a draft can't be a child of node {parent}")
            if (parent, token) in seen:
                raise ValueError(f"node {parent} of a draft has two children with token {token}")
            seen.add((parent, token))

    @classmethod
    def chain(cls, tokens: Sequence[int], probabilities: Sequence[float] = ()) -> DraftTree:
        """Each token behind the one before."""
        return cls(tokens, range(-1, len(tokens) - 1), probabilities)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depths(self) -> list[int]:
        """Of each node; 1 behind the branch."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        return depths

    @property
    def masks(self) -> list[int]:
        """Bit j of a node's mask: it sees node j, an ancestor or itself."""
        masks: list[int] = []
        for node, parent in enumerate(self.parents):
            masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
        return masks

    def path_to(self, node: int) -> list[int]:
        """Tokens from the first level down to `node`."""
        path: list[int] = []
        while node >= 0:
            path.append(self.tokens[node])
            node = self.parents[node]
        return path[::-1]

    def walk(self, drawn: Sequence[int]) -> list[int]:
        """The nodes that hold what was drawn in front of them, from the first level down.

        drawn: [0] behind the branch, [1 + n] behind node n.
        """
        path: list[int] = []
        current = -1
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if parent == current and token == drawn[1 + current]:
                current = node
                path.append(node)
        return path

    def cut(self, max_nodes: int, max_depth: int) -> DraftTree:
        """The nodes of at most this depth, as many as fit: those with the most probable paths, or
        without probabilities the first ones."""
        depths = self.depths
        if len(self) <= max_nodes and max(depths, default=0) <= max_depth:
            return self
        paths: list[float] = []
        for node, parent in enumerate(self.parents):
            own = self.probabilities[node] if self.probabilities else 1.0
            paths.append(own * (paths[parent] if parent >= 0 else 1.0))
        shallow = [node for node in range(len(self)) if depths[node] <= max_depth]
        # No path is more probable than one that it goes on from, and ties go to earlier nodes.
        kept = sorted(sorted(shallow, key=lambda node: -paths[node])[: max(0, max_nodes)])
        number = {node: new for new, node in enumerate(kept)} | {-1: -1}
        return DraftTree(
            [self.tokens[node] for node in kept],
            [number[self.parents[node]] for node in kept],
            [self.probabilities[node] for node in kept] if self.probabilities else (),
        )


NO_DRAFT = DraftTree()
