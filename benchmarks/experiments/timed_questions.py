"""Questions of one batch, each by a method of its own, and when each came to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parallel_decode import Engine
from parallel_decode.engine import SimulatedExecutor, Steps
from parallel_decode.reasoning import Method, Solution
from parallel_decode.reasoning.pipeline import Question


@dataclass(frozen=True)
class Measured:
    """One question by one method.

    Attributes:
        makespan_s: from the question to the answer.
    """

    makespan_s: float
    solution: Solution

    @property
    def forward_steps(self) -> int:
        """Of the model, in which it took part."""
        return self.solution.usage.forward_steps


class _Each:
    """A method of its own for each question, which is the number of the true one."""

    def __init__(self, questions: Sequence[str], methods: Sequence[Method]) -> None:
        self._questions = questions
        self._methods = methods

    def program(self, question: Question) -> Steps:
        number = int(str(question))
        return self._methods[number].program(self._questions[number])


def solved(
    engine: Engine,
    questions: Sequence[str],
    methods: Sequence[Method],
    now: Callable[[], float],
) -> list[Measured]:
    """All from the common begin, each to its own end."""
    engine.clear_prefixes()
    ends: dict[int, float] = {}
    began = now()
    solutions = engine.solve_many(
        list(map(str, range(len(questions)))),
        _Each(questions, methods),
        on_result=lambda index, result: ends.update({index: now()}),
    )
    for solution in solutions:
        if isinstance(solution, Exception):
            raise solution
    return [Measured(ends[index] - began, solution) for index, solution in enumerate(solutions)]


def simulated(
    engine: Engine,
    questions: Sequence[str],
    methods: Sequence[Method],
    seconds: Callable[[Callable, Sequence], float],
    step_seconds: float,
) -> list[Measured]:
    """On a clock of its own, where a step takes as long for many questions as for one.

    seconds: (callable, arguments) of a call -> what it takes.
    """
    clock = SimulatedExecutor(seconds, step_seconds)
    engine.executor = clock
    unobserve = engine.observe(clock.stepped)
    try:
        return solved(engine, questions, methods, clock.now)
    finally:
        unobserve()
