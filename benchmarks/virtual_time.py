"""`VirtualEngine`: real tokens and real drafts, in seconds that a formula gives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine import Branch, Drafter, DraftRequest, Verified
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.speculation import Speculation, StaticSpeculation, StepCosts

IDLE, COLD_CALL, COLD_STEP = 4, 2.5, 1.4
"""Steps without drafts after which the next call and the next step with drafts take so many times
as long: their code and their data are in no cache any more."""
HELD_UP, HELD_UP_TIMES = 0.005, 4.0
"""One step of 200 takes four times as long."""
MEASURED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class VirtualMachine:
    """Seconds of a step, fixed + row * rows + branch * branches with drafts; and of a drafter's
    call, call + per_branch * branches + per_node * nodes, or level by level where it is a model.

    Args:
        noise: standard deviation of the logarithm of every duration.
    """

    name: str
    fixed: float
    row: float
    branch: float
    call: float
    per_branch: float
    per_node: float
    level: float
    level_row: float
    noise: float

    def step(self, rows: int, nodes: int = 0, branches: int = 0) -> float:
        return self.fixed + self.row * (rows + nodes) + self.branch * branches

    @property
    def costs(self) -> StepCosts:
        return StepCosts(MEASURED, [self.step(rows) for rows in MEASURED], self.branch)


class VirtualClock:
    """Moves when it is told."""

    def __init__(self, machine: VirtualMachine) -> None:
        self.now = 0.0
        self.machine = machine
        self._random = random.Random(0)

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> float:
        """What usually takes so long has taken -> seconds."""
        seconds *= self._random.lognormvariate(0.0, self.machine.noise)
        if self._random.random() < HELD_UP:
            seconds *= HELD_UP_TIMES
        self.now += seconds
        return seconds


class TimedDrafter(Drafter):
    """A drafter that takes what the machine says.

    Args:
        levels: of a model that it computes, for a draft of so many nodes; 0 for none.
    """

    def __init__(self, drafter: Drafter, levels: str, clock: VirtualClock) -> None:
        self.drafter, self.levels, self.clock = drafter, levels, clock
        self.learns_when_computed = drafter.learns_when_computed
        self.nodes_are_free = drafter.nodes_are_free
        self.num_idle = IDLE

    @property
    def row_observer(self):
        return self.drafter.row_observer

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        trees = self.drafter.propose(requests, max_nodes)
        machine, count = self.clock.machine, len(requests)
        seconds = machine.call + machine.per_branch * count
        seconds += machine.per_node * sum(map(len, trees))
        levels = {"none": 0, "one": 1, "each": max(max_nodes)}[self.levels]
        seconds += levels * (machine.level + machine.level_row * count)
        self.clock.spend(seconds * (COLD_CALL if self.num_idle >= IDLE else 1.0))
        self.num_idle = 0
        return trees

    def learn(self, verified: Sequence[Verified]) -> None:
        self.drafter.learn(verified)

    def observe(self, branch: Branch) -> None:
        self.clock.spend(self.clock.machine.per_branch)
        self.drafter.observe(branch)

    def forget(self, branch: Branch) -> None:
        self.drafter.forget(branch)


class TimedSpeculator:
    """Passes everything on to a speculator, and moves the clock as the steps go by; without a
    speculator they are plain.

    Attributes:
        steps: of the engine.
    """

    def __init__(
        self,
        clock: VirtualClock,
        speculator: Speculation | StaticSpeculation | None = None,
        drafter: TimedDrafter | None = None,
    ) -> None:
        self.clock, self.speculator, self.drafter = clock, speculator, drafter
        self.steps = 0
        self._plain = 0.0  # seconds of the current step, if it has no drafts
        self._num_idle = IDLE
        self._began = 0.0
        self._rows = 0

    @property
    def row_observer(self):
        return None if self.speculator is None else self.speculator.row_observer

    def end_step(self) -> None:
        """The current step is over."""
        if self._plain:
            self.clock.spend(self._plain)
        self._plain = 0.0

    def wants_to_draft(self, num_rows: int) -> bool:
        self.end_step()
        self.steps += 1
        self._rows = num_rows
        if self.speculator is not None and self.speculator.wants_to_draft(num_rows):
            return True
        self._plain = self.clock.machine.step(num_rows)
        self._num_idle += 1
        if self.drafter is not None:
            self.drafter.num_idle += 1
        return False

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        assert self.speculator is not None
        self._began = self.clock.now
        return self.speculator.draft(requests, num_rows, max_nodes)

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        if self.speculator is None or self._plain:
            return
        nodes = [len(entry.draft) for entry in verified]
        usual = self.clock.machine.step(self._rows, sum(nodes), sum(map(bool, nodes)))
        is_cold = any(nodes) and self._num_idle >= IDLE
        self.clock.spend(usual * (COLD_STEP if is_cold else 1.0))
        self._num_idle = 0 if any(nodes) else self._num_idle + 1
        self.speculator.learn(verified, num_rows, self.clock.now - self._began)

    def observe(self, branch: Branch) -> None:
        if self.speculator is not None:
            self.speculator.observe(branch)

    def forget(self, branch: Branch) -> None:
        if self.speculator is not None:
            self.speculator.forget(branch)
