"""The common form of all methods: decompose, process, aggregate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.program import Steps

Question = str | Sequence[int]
"""A prompt as text or as token ids."""
Decompose = Callable[[Question], Steps]
"""question -> program that returns the branches to work on."""
Process = Callable[[Sequence[Branch]], Steps]
"""branches -> program that returns the branches that came of them."""
Aggregate = Callable[[Question, Any], Steps]
"""question, what P gave -> program that returns the result. P gives branches; across models, a
`Discussion`."""


@dataclass(frozen=True)
class Pipeline:
    """Π(Q) = (A ∘ P_M ∘ D)(Q) (Wang et al., A Survey on Parallel Reasoning, 2025).

    Each stage is a program of its own; all branches of a stage run in one batch. With `exchange`,
    interactive methods repeat R^(t+1) = P(exchange(R^t)) for `rounds` rounds after the first.
    """

    decompose: Decompose
    process: Process
    aggregate: Aggregate
    exchange: Process | None = None
    rounds: int = 0

    def program(self, question: Question) -> Steps:
        tasks = yield from self.decompose(question)
        results = yield from self.process(tasks)
        if self.exchange is not None:
            for _ in range(self.rounds):
                results = yield from self.exchange(results)
                results = yield from self.process(results)
        return (yield from self.aggregate(question, results))
