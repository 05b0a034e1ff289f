"""A tree of tokens that may come next, behind one branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parallel_decode import _C

MAX_ROWS = 64
"""Bits of an attention mask: a branch's new tokens, and the nodes behind them."""
MAX_NODES = MAX_ROWS - 1
COLUMNS = (
    ("tokens", np.dtype(np.int64)),
    ("parents", np.dtype(np.int32)),
    ("probabilities", np.dtype(np.float64)),
)


@dataclass(frozen=True, eq=False)
class DraftTree:
    """Draft tokens of a branch, in the order in which they are stored and verified.

    Siblings stand in the order in which they are to be tried.

    Attributes:
        tokens: [num_nodes] int64, at most 63.
        parents: [num_nodes] int32, each smaller than the node's own number; -1 for the tokens that
            come right behind the branch.
        probabilities: [num_nodes] fp64, from 0 to 1: the drafter's estimate that the node's token
            comes next where its parent's has come.

    Raises:
        ValueError: where that is not so.
    """

    tokens: NDArray[np.int64]
    parents: NDArray[np.int32]
    probabilities: NDArray[np.float64]

    def __post_init__(self) -> None:
        num_nodes = len(self.tokens)
        if num_nodes > MAX_NODES:
            raise ValueError(f"a draft has at most {MAX_NODES} nodes, got {num_nodes}")
        for name, dtype in COLUMNS:
            column = getattr(self, name)
            if column.shape != (num_nodes,) or column.dtype != dtype:
                raise ValueError(
                    f"{name} must be [{num_nodes}] {dtype}, got {list(column.shape)} {column.dtype}"
                )
        # Loops over 64 numbers at the most are quicker than calls into numpy.
        for node, parent in enumerate(self.parents.tolist()):
            if not -1 <= parent < node:
                raise ValueError(f"node {node} can't be a child of node {parent}")
        for node, token in enumerate(self.tokens.tolist()):
            if token < 0:
                raise ValueError(f"node {node} has token {token}")
        for node, probability in enumerate(self.probabilities.tolist()):
            if not 0 <= probability <= 1:
                raise ValueError(f"node {node} has probability {probability}")

    @classmethod
    def of(
        cls, tokens: ArrayLike, parents: ArrayLike, probabilities: ArrayLike | None = None
    ) -> DraftTree:
        """From any sequences; without probabilities each is 1."""
        column = np.array(tokens, np.int64)
        if probabilities is None:
            probabilities = np.ones(len(column))
        return cls(column, np.array(parents, np.int32), np.array(probabilities, np.float64))

    @classmethod
    def unchecked(
        cls,
        tokens: NDArray[np.int64],
        parents: NDArray[np.int32],
        probabilities: NDArray[np.float64],
    ) -> DraftTree:
        """From columns that are a tree by construction: checking takes longer than drafting."""
        tree = object.__new__(cls)
        vars(tree).update(tokens=tokens, parents=parents, probabilities=probabilities)
        return tree

    @classmethod
    def chain(cls, tokens: Sequence[int], probabilities: ArrayLike | None = None) -> DraftTree:
        """Tokens one behind the other; none make the empty tree."""
        return cls.of(tokens, np.arange(-1, len(tokens) - 1), probabilities)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> NDArray[np.int32]:
        """[num_nodes]: how many tokens a node's path has, 1 for those right behind the branch."""
        return _C.tree_depths(self.parents)

    @cached_property
    def masks(self) -> NDArray[np.uint64]:
        """[num_nodes]: bit j tells whether the node sees node j: its ancestors and itself."""
        return _C.tree_masks(self.parents)

    @cached_property
    def path_probabilities(self) -> NDArray[np.float64]:
        """[num_nodes]: that the token and all before it on its path come, Π of probabilities."""
        return _C.tree_products(self.parents, self.probabilities)

    def path_to(self, node: int) -> list[int]:
        """Tokens from the first level down to `node`; none for -1."""
        path: list[int] = []
        while node >= 0:
            path.append(int(self.tokens[node]))
            node = int(self.parents[node])
        return path[::-1]

    def walk(self, drawn: NDArray[np.int64]) -> list[int]:
        """The nodes that hold what was drawn in front of them, from the first level down.

        drawn: [0] behind the branch, [1 + n] behind node n.
        """
        return _C.tree_walk(self.tokens, self.parents, drawn)

    def follow(self, said: Sequence[int]) -> tuple[list[int], bool]:
        """The nodes of the tokens that were said behind the branch, from the first level down, and
        whether there are more that the next tokens may lead to."""
        return _C.tree_follow(self.tokens, self.parents, said)

    def cut(self, max_nodes: int) -> DraftTree:
        """The nodes with the most probable paths; of equal ones the first."""
        if max_nodes < 0:
            raise ValueError(f"max_nodes must be 0 or more, got {max_nodes}")
        if max_nodes >= len(self):
            return self
        # No path is more probable than its beginning, which also stands before it.
        best = np.argsort(-self.path_probabilities, kind="stable")[:max_nodes]
        kept = np.zeros(len(self), bool)
        kept[best] = True
        return self.keep(kept)

    def keep(self, kept: NDArray[np.bool_]) -> DraftTree:
        """The nodes where `kept` [num_nodes] is true.

        Raises:
            ValueError: where a node would lose its parent.
        """
        if kept.shape != self.tokens.shape or kept.dtype != np.bool_:
            raise ValueError(
                f"kept must be [{len(self)}] bool, got {list(kept.shape)} {kept.dtype}"
            )
        return DraftTree.unchecked(
            *_C.tree_keep(self.tokens, self.parents, self.probabilities, kept)
        )


NO_DRAFT = DraftTree.chain(())
