"""`StaticSpeculation`: as many draft nodes in every step, whether they pay or not."""

from __future__ import annotations

import time
from collections.abc import Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.engine.row_observer import RowObserver
from parallel_decode.engine.verified import Verified
from parallel_decode.speculation.controller import SpeculationStats


class StaticSpeculation:
    """Computes the most probable nodes of each draft, the same number for each branch. Where drafts
    are seldom right this is slower than to decode without; see `Speculation`.

    Args:
        drafter: whose trees are verified.
        num_nodes: of a branch.

    Attributes:
        stats: `seconds_without` stays 0: nothing is predicted.

    Raises:
        ValueError: num_nodes is not from 1 to 63.
    """

    def __init__(self, drafter: Drafter, num_nodes: int) -> None:
        if not 1 <= num_nodes <= MAX_NODES:
            raise ValueError(f"num_nodes must be from 1 to {MAX_NODES}, got {num_nodes}")
        self.drafter = drafter
        self.num_nodes = num_nodes
        self.stats = SpeculationStats()

    @property
    def row_observer(self) -> RowObserver | None:
        """See `Speculator.row_observer`."""
        return self.drafter.row_observer

    def wants_to_draft(self, num_rows: int) -> bool:
        """See `Speculator.wants_to_draft`."""
        return True

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        """See `Speculator.draft`."""
        started = time.perf_counter()
        limit = min(self.num_nodes, max_nodes // len(requests))
        trees = self.drafter.propose(requests, [limit] * len(requests))
        self.stats.draft_seconds += time.perf_counter() - started
        return trees

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        """See `Speculator.learn`."""
        started = time.perf_counter()
        self.drafter.learn(verified)
        self.stats.draft_seconds += time.perf_counter() - started
        self.stats.count(verified, seconds)

    def observe(self, branch: Branch) -> None:
        """See `Speculator.observe`."""
        self.drafter.observe(branch)

    def forget(self, branch: Branch) -> None:
        """See `Speculator.forget`."""
        self.drafter.observe(branch)
        self.drafter.forget(branch)
