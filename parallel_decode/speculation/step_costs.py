"""`StepCosts`: what a step took by the number of tokens that it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_decode.engine import Budget, Engine, Extend, SamplingParams, Steps
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import DraftRequest
from parallel_decode.engine.verified import Verified
from parallel_decode.kernels import BLOCK_SIZE

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""That are measured on one branch; beyond, a step grows as from half as many as the last."""
MAX_ROWS = 1024
"""Of a step that drafts are chosen for; a longer one counts as so long."""
REPEATS, QUANTILE = 5, 0.25
BRANCHES = 4
"""By which it is measured what a draft takes beside its rows."""


class NoRoomToMeasure(ValueError):
    """An engine's steps, context or free blocks are too few for drafts."""


class StepCosts:
    """Seconds of a step of so many rows, as measured once.

    Args:
        rows: rising numbers of rows.
        seconds: of each; they are made to rise, too.
        branch_seconds: that a branch's draft takes beside its rows.

    Attributes:
        rows, branch_seconds: as given.
        seconds: [MAX_ROWS + 1]: of a step of 0, 1, 2, ... rows.

    Raises:
        ValueError: the rows do not rise from 1 on, or a number of seconds is not positive.
    """

    def __init__(
        self, rows: Sequence[int], seconds: Sequence[float], branch_seconds: float = 0.0
    ) -> None:
        if len(rows) != len(seconds) or len(rows) < 2 or list(rows) != sorted(set(rows)):
            raise ValueError(f"rows must rise, with seconds for each, got {rows} and {seconds}")
        if rows[0] < 1 or not all(0 < value < math.inf for value in seconds):
            raise ValueError(f"rows and seconds must be positive, got {rows} and {seconds}")
        if not 0 <= branch_seconds < math.inf:
            raise ValueError(f"branch_seconds must be 0 or more, got {branch_seconds}")
        self.rows, self.branch_seconds = tuple(rows), branch_seconds
        measured = np.maximum.accumulate(np.array(seconds, np.float64))
        numbers = np.arange(MAX_ROWS + 1)
        known: NDArray[np.float64] = np.interp(numbers, rows, measured)
        half = max(rows[0], rows[-1] // 2)
        slope = (measured[-1] - known[half]) / (rows[-1] - half)
        self.seconds = known + np.maximum(0, numbers - rows[-1]) * slope
        self._nearest = np.abs(np.log(np.maximum(numbers, 1))[:, None] - np.log(rows)).argmin(1)

    @classmethod
    def measure(cls, engine: Engine, rows: Sequence[int] = ROWS) -> StepCosts:
        """Runs steps of one branch with drafts that are wrong; takes about a second for a model of
        a hundred million weights. The engine is left as it was.

        Raises:
            NoRoomToMeasure: its steps or its context are too short for a draft behind 16 tokens,
                or the free blocks too few.
        """
        blocks = -(-(16 + rows[-1] + REPEATS + 1) // BLOCK_SIZE) + 1 + 2 * BRANCHES
        free = engine.cache.pool.num_free + engine.blocks_cached
        if free < blocks:
            raise NoRoomToMeasure(f"the KV pool has {free} free blocks, {blocks} are needed")
        before = engine.speculator
        clock = _Clock(engine.config.vocab_size - 1)
        root = engine.prefill(list(range(min(16, engine.config.vocab_size))))
        seconds = []
        try:
            engine.speculator = clock
            for count in rows:
                taken = _taken(engine, clock, root, 1, count - 1)
                if taken is None:  # it is more than a step or the context has room for
                    break
                seconds.append(taken)
            if len(seconds) < 2:
                raise NoRoomToMeasure("no room for drafts: see max_batch_tokens and max_seq_len")
            plain, drafted = (_taken(engine, clock, root, BRANCHES, nodes) for nodes in (0, 1))
        finally:
            engine.speculator = before
            root.release()
        costs = cls(rows[: len(seconds)], seconds)
        if plain is None or drafted is None:
            return costs
        of_rows = costs.seconds[2 * BRANCHES] - costs.seconds[BRANCHES]
        of_branch = max(0.0, (drafted - plain - float(of_rows)) / BRANCHES)
        return cls(costs.rows, seconds, of_branch)

    def nearest(self, rows: int) -> int:
        """The number of the measurement that is nearest to so many rows."""
        return int(self._nearest[min(rows, MAX_ROWS)])


def _taken(
    engine: Engine, clock: _Clock, root: Branch, num_branches: int, num_nodes: int
) -> float | None:
    """Seconds of a usual step of so many branches with as many wrong nodes each; None where there
    is no room for it."""
    clock.num_nodes, clock.steps = num_nodes, []
    params = SamplingParams(temperature=0.0, max_tokens=64 + REPEATS, ignore_eos=True)
    kids = engine.fork(root, num_branches)
    try:
        # The first step computes the token that the fork has left without logits.
        program = engine.submit(_extend(kids, params), budget=Budget(steps=REPEATS + 1), keep=True)
        if engine.wait([program]):
            raise KeyboardInterrupt("while steps were measured")
    finally:
        engine.prune(kids)
    num_rows = num_branches * (1 + num_nodes)
    steps = [taken for rows, taken in clock.steps[1:] if rows == num_rows]
    # Whoever else is on the machine makes a step longer, never shorter.
    return float(np.quantile(steps, QUANTILE)) if steps else None


def _extend(branches: Sequence[Branch], params: SamplingParams) -> Steps:
    yield Extend(branches, params)


class _Clock:
    """A speculator whose drafts are never right, to see what steps take."""

    def __init__(self, token: int) -> None:
        self._token = token
        self.num_nodes = 0
        self.steps: list[tuple[int, float]] = []

    row_observer = None

    def wants_to_draft(self, num_rows: int) -> bool:
        return True

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        size = min(self.num_nodes, max_nodes)
        # Should it be right for once, there are fewer steps to look at.
        return [DraftTree.chain([self._token] * size) for _ in requests]

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        self.steps.append((num_rows, seconds))

    def observe(self, branch: Branch) -> None:
        """Nothing is remembered."""

    def forget(self, branch: Branch) -> None:
        """Nothing is remembered."""
