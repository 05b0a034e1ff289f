"""A tree of tokens that may come next, behind one branch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parallel_decode import _C

MAX_ROWS = 64
"""Bits of an attention mask: a branch's new tokens, and the nodes behind them."""
MAX_NODES = MAX_ROWS - 1


class DraftTree:
    """Draft tokens of a branch, in the order in which they are stored and verified. It is not
    changed once it is made.

    Siblings stand in the order in which they are to be tried.

    Args:
        columns: tokens, parents and probabilities; see `of`.
    """

    __slots__ = ("_num_nodes", "columns")

    def __init__(self, columns: _C.DraftColumns) -> None:
        self.columns = columns
        self._num_nodes = len(columns)  # each step asks for it again and again

    @classmethod
    def of(
        cls, tokens: ArrayLike, parents: ArrayLike, probabilities: ArrayLike | None = None
    ) -> DraftTree:
        """From one number each a node, of at most 63 nodes.

        Args:
            tokens: 0 or more.
            parents: each smaller than the node's own number; -1 for the tokens that come right
                behind the branch.
            probabilities: from 0 to 1, the drafter's estimate that the node's token comes next
                where its parent's has come; 1 where they are not given.

        Raises:
            ValueError: where that is not so.
        """
        column = np.array(tokens, np.int64)
        if len(column) > MAX_NODES:
            raise ValueError(f"a draft has at most {MAX_NODES} nodes, got {len(column)}")
        if probabilities is None:
            probabilities = np.ones(len(column))
        return cls(
            _C.DraftColumns(
                column, np.array(parents, np.int32), np.array(probabilities, np.float64)
            )
        )

    @classmethod
    def chain(cls, tokens: Sequence[int], probabilities: ArrayLike | None = None) -> DraftTree:
        """Tokens one behind the other; none make the empty tree."""
        return cls.of(tokens, np.arange(-1, len(tokens) - 1), probabilities)

    def __len__(self) -> int:
        return self._num_nodes

    @property
    def tokens(self) -> NDArray[np.int64]:
        """[num_nodes]."""
        return self.columns.tokens

    @property
    def parents(self) -> NDArray[np.int32]:
        """[num_nodes]."""
        return self.columns.parents

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """[num_nodes]."""
        return self.columns.probabilities

    @property
    def depths(self) -> NDArray[np.int32]:
        """[num_nodes]: how many tokens a node's path has, 1 for those right behind the branch."""
        return self.columns.depths

    @property
    def masks(self) -> NDArray[np.uint64]:
        """[num_nodes]: bit j tells whether the node sees node j: its ancestors and itself."""
        return self.columns.masks

    @property
    def path_probabilities(self) -> NDArray[np.float64]:
        """[num_nodes]: that the token and all before it on its path come, Π of probabilities."""
        return self.columns.path_probabilities

    def path_to(self, node: int) -> list[int]:
        """Tokens from the first level down to `node`; none for -1."""
        tokens, parents = self.tokens.tolist(), self.parents.tolist()
        path: list[int] = []
        while node >= 0:
            path.append(tokens[node])
            node = parents[node]
        return path[::-1]

    def follow(self, said: Sequence[int]) -> tuple[list[int], bool]:
        """The nodes of the tokens that were said behind the branch, from the first level down, and
        whether there are more that the next tokens may lead to."""
        return self.columns.follow(said)

    def cut(self, max_nodes: int) -> DraftTree:
        """The nodes with the most probable paths; of equal ones the first.

        Raises:
            ValueError: max_nodes is negative.
        """
        if max_nodes >= 0 and self._num_nodes <= max_nodes:
            return self
        return DraftTree(self.columns.cut(max_nodes))

    def keep(self, kept: NDArray[np.bool_]) -> DraftTree:
        """The nodes where `kept` [num_nodes] is true.

        Raises:
            ValueError: where a node would lose its parent.
        """
        return DraftTree(self.columns.keep(kept))


NO_DRAFT = DraftTree.chain(())


def columns_of(trees: Iterable[DraftTree]) -> list[_C.DraftColumns]:
    """What all trees of a step are passed to C++ by."""
    return [tree.columns for tree in trees]


def walk(trees: Sequence[DraftTree], drawn: NDArray[np.int64]) -> list[list[int]]:
    """Of each tree the nodes that hold what was drawn in front of them, from the first level down.

    drawn: [num_draws] int64, of each tree what was drawn behind the branch and behind its nodes.
    """
    return _C.walk_drafts(columns_of(trees), drawn)
