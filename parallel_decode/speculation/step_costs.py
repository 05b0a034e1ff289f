"""`StepCosts`: what a step takes by the number of tokens that it computes."""

from __future__ import annotations

import copy
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
"""That are measured on one branch; beyond, a step grows as from the last but one to the last."""
MAX_ROWS = 1024
"""Of a step that drafts are chosen for; a longer one counts as so long."""
REPEATS = 5
MEMORY = 0.9
"""How much of an observed ratio is left after another one."""


class NoRoomToMeasure(ValueError):
    """An engine's steps, context or free blocks are too few for drafts."""


class StepCosts:
    """Seconds of a step of so many rows: as measured once, by what steps take since.

    Args:
        rows: rising numbers of rows.
        seconds: of each; they are made to rise, too.

    Raises:
        ValueError: the rows do not rise from 1 on, or a number of seconds is not positive.
    """

    def __init__(self, rows: Sequence[int], seconds: Sequence[float]) -> None:
        if len(rows) != len(seconds) or len(rows) < 2 or list(rows) != sorted(set(rows)):
            raise ValueError(f"rows must rise, with seconds for each, got {rows} and {seconds}")
        if rows[0] < 1 or not all(0 < value < math.inf for value in seconds):
            raise ValueError(f"rows and seconds must be positive, got {rows} and {seconds}")
        self._rows = np.array(rows, np.float64)
        measured = np.maximum.accumulate(np.array(seconds, np.float64))
        numbers = np.arange(MAX_ROWS + 1)
        slope = (measured[-1] - measured[-2]) / (rows[-1] - rows[-2])
        beyond = np.maximum(0, numbers - rows[-1])
        # Of each number of rows: seconds as measured, and the row of `rows` that is nearest.
        self._table = np.interp(numbers, self._rows, measured) + beyond * slope
        distances = np.abs(np.log(np.maximum(numbers, 1))[:, None] - np.log(self._rows))
        self._nearest = distances.argmin(1)
        self._current: NDArray[np.float64] | None = None
        # Of observed to measured, around each of the rows; NaN where nothing was observed.
        self._ratios = np.full(len(rows), np.nan)
        self._ratio = 1.0

    @classmethod
    def measure(cls, engine: Engine, rows: Sequence[int] = ROWS) -> StepCosts:
        """Runs steps of one branch with drafts that are wrong; takes about a second for a model of
        a hundred million weights. The engine is left as it was.

        Raises:
            NoRoomToMeasure: its steps or its context are too short for a draft behind 16 tokens,
                or the free blocks too few.
        """
        blocks = -(-(16 + rows[-1] + REPEATS + 1) // BLOCK_SIZE) + 1
        free = engine.cache.pool.num_free + engine.blocks_cached
        if free < blocks:
            raise NoRoomToMeasure(f"the KV pool has {free} free blocks, {blocks} are needed")
        before = engine.speculator
        prompt = list(range(min(16, engine.config.vocab_size)))
        branch = engine.prefill(prompt)
        clock = _Clock(engine.config.vocab_size - 1)
        params = SamplingParams(temperature=0.0, max_tokens=rows[-1] + REPEATS, ignore_eos=True)
        seconds = []
        try:
            engine.speculator = clock
            for count in rows:
                clock.num_nodes, clock.steps = count - 1, []
                # The first step computes the token that the rollback has left without logits.
                program = engine.submit(
                    _extend(branch, params), budget=Budget(steps=REPEATS + 1), keep=True
                )
                if engine.wait([program]):
                    raise KeyboardInterrupt("while steps were measured")
                engine.rollback(branch, len(prompt))
                steps = [taken for num_rows, taken in clock.steps[1:] if num_rows == count]
                if not steps:  # it is more than a step or the context has room for
                    break
                seconds.append(float(np.median(steps)))
        finally:
            engine.speculator = before
            branch.release()
        if len(seconds) < 2:
            raise NoRoomToMeasure("no room for drafts: see max_batch_tokens and max_seq_len")
        return cls(rows[: len(seconds)], seconds)

    def copy(self) -> StepCosts:
        """To be followed from here on by itself."""
        return copy.deepcopy(self)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """[MAX_ROWS + 1]: of a step of 0, 1, 2, ... rows."""
        if self._current is None:
            ratios = np.where(np.isnan(self._ratios), self._ratio, self._ratios)
            self._current = self._table * np.interp(np.arange(len(self._table)), self._rows, ratios)
        return self._current

    def observe(self, rows: int, seconds: float) -> None:
        """A step has taken so long. A single one that was held up counts for little."""
        measured = float(self._table[min(rows, len(self._table) - 1)])
        nearest = int(self._nearest[min(rows, len(self._table) - 1)])
        known = float(self._ratios[nearest])
        known = self._ratio if math.isnan(known) else known
        ratio = min(seconds / measured, 2 * known)
        self._ratios[nearest] = MEMORY * known + (1 - MEMORY) * ratio
        self._ratio = MEMORY * self._ratio + (1 - MEMORY) * ratio
        self._current = None


def _extend(branch: Branch, params: SamplingParams) -> Steps:
    yield Extend([branch], params)


class _Clock:
    """A speculator whose drafts are never right, to see what steps take."""

    def __init__(self, token: int) -> None:
        self._token = token
        self.num_nodes = 0
        self.steps: list[tuple[int, float]] = []

    row_observer = None

    def wants_to_draft(self) -> bool:
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
