"""`SelfDrafter`: drafts on copies of the branches' own block tables, which no draft outlives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode import _C
from parallel_decode.engine import Engine
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.kernels.fused_layers import FusedLayers


class DraftLimits(NamedTuple):
    """How far a drafter goes.

    max_depth: tokens of a chain, at the most. min_prob: of a path, below which it ends.
    num_siblings: other guesses at each place of the chain.
    """

    max_depth: int
    min_prob: float
    num_siblings: int

    def check(self) -> None:
        """Raises ValueError where one of them makes no sense."""
        if self.max_depth < 1 or not 0 <= self.min_prob <= 1 or self.num_siblings < 0:
            raise ValueError(
                "max_depth must be at least 1, min_prob in [0, 1] and num_siblings at least 0, got"
                f" {self.max_depth}, {self.min_prob} and {self.num_siblings}"
            )


class SelfDrafter(Drafter):
    """Drafts with a part of the engine's own model, or with a head on top of it.

    It reads the keys that are stored for a branch. What it stores itself goes behind them, on a
    fork of the branch's table that ends with the call: it needs a block or two of the pool for each
    branch meanwhile, there is nothing to keep in step with branches, and a rollback, a fork or a
    join is nothing to take note of. Where the pool has no room, nothing is drafted.

    It draws with the random numbers that the target is going to draw with, see csrc/draft_loop.h.

    Args:
        engine: whose branches are drafted for, on the CPU backend.
        layers: that draft.
        storage: [num_layers, 2, num_blocks, items], keys and values of these layers in the blocks
            of the engine's pool.
        limits: of each draft.

    Raises:
        ValueError: the engine is on another backend, or a limit makes no sense.
    """

    def __init__(
        self, engine: Engine, layers: FusedLayers, storage: Tensor, limits: DraftLimits
    ) -> None:
        limits.check()
        self.engine = engine
        self.limits = limits
        self._layers = layers
        self._storage = storage

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """See `Drafter.propose`."""
        trees = [NO_DRAFT] * len(requests)
        asked: list[int] = []
        branches: list[_C.DraftBranch] = []
        tables: list[_C.BlockTable] = []
        for number, (request, limit) in enumerate(zip(requests, max_nodes, strict=True)):
            branch = request.branch
            room = self.engine.max_seq_len - branch.end_position
            depth = min(limit, self.limits.max_depth, room)
            if depth < 1 or not self._can_draft(branch):
                continue
            asked.append(number)
            tables.append(branch.table.fork())
            branches.append(
                _C.DraftBranch(
                    tables[-1],
                    branch.pending(branch.num_pending),
                    request.params.temperature,
                    request.params.top_k,
                    request.params.top_p,
                    request.params.min_p,
                    request.key,
                    depth,
                    branch.position,
                    self._features(branch),
                )
            )
        if not asked:
            return trees
        try:
            combs = self._layers.draft_combs(
                self._storage, branches, self.limits.min_prob, self.limits.num_siblings
            )
        except ValueError as failure:
            if "pool" not in str(failure):
                raise
            return trees
        finally:
            for table in tables:
                table.truncate(0)
        for number, comb in zip(asked, combs, strict=True):
            trees[number] = DraftTree(comb).cut(max_nodes[number])
        return trees

    def observe(self, branch: Branch) -> None:
        """Nothing: all that is remembered of a branch is in its blocks."""

    def forget(self, branch: Branch) -> None:
        """Nothing, likewise."""

    def _can_draft(self, branch: Branch) -> bool:
        return branch.num_pending > 0

    def _features(self, branch: Branch) -> NDArray[np.float32] | None:
        """[num_pending, hidden_size] of the tokens before the pending ones; None without need."""
        return None


def fused_layers(engine: Engine, kept: Sequence[int] | None = None) -> FusedLayers:
    """Of the engine's model, or of some of its layers.

    Raises:
        ValueError: its backend has none, or the model no such layers.
    """
    fused = engine.model.fused if kept is None else engine.model.keep_layers(kept).fused
    if fused is None or engine.placement.backend != "cpu":
        raise ValueError(
            f"this drafter runs on backend 'cpu', the engine is on {engine.placement.backend!r}"
        )
    layers: FusedLayers = fused
    return layers
