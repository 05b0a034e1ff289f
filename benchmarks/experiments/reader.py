"""`Reader`: a synthesiser that reads stored traces, of their own question or of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.experiments.pool import Pool, Trace
from parallel_decode import Engine
from parallel_decode.engine import Steps
from parallel_decode.questions import Question
from parallel_decode.reasoning import SSA, Author, Quotation, Reply
from parallel_decode.reasoning.discussion import Discussion
from parallel_decode.reasoning.metrics import Synthesis
from parallel_decode.reasoning.stages import root

AT_ONCE = 64
"""Questions."""


@dataclass(frozen=True)
class Readings:
    """What a synthesiser made of n traces of each question of a pool.

    Attributes:
        syntheses: one an order, for each question; fewer where some failed.
        generated_tokens, computed_tokens: of the first order alone, in the mean.
    """

    syntheses: list[list[Synthesis]]
    generated_tokens: float
    computed_tokens: float

    @property
    def answers(self) -> list[str | None]:
        """Of the first order."""
        return [row[0].answer if row else None for row in self.syntheses]


@dataclass(frozen=True)
class Reader:
    """How traces are read.

    Args:
        author: the synthesiser.
        shown: how it is shown the traces.
        orders: of them.
    """

    author: Author
    shown: Quotation
    orders: int

    def read(self, engine: Engine, pool: Pool, n: int, *, strangers: bool = False) -> Readings:
        """Of the first n traces of each question, or of the next one's.

        Raises:
            RuntimeError: a question could not be read.
        """
        rows = [traces[:n] for traces in pool.traces]
        if strangers:
            rows = [*rows[1:], rows[0]]
        found, generated, computed = [], [], []
        for first in range(0, len(rows), AT_ONCE):
            some = range(first, min(first + AT_ONCE, len(rows)))
            programs = [
                engine.submit(self._steps(pool.questions[i], rows[i]), seed=pool.seed) for i in some
            ]
            if engine.wait(programs):
                raise KeyboardInterrupt
            for program in programs:
                if program.error is not None:
                    raise RuntimeError(f"a question failed: {program.error}")
                found.append(program.result)
                generated.append(program.usage.generated_tokens / self.orders)
                computed.append(program.usage.computed_tokens / self.orders)
        return Readings(found, fmean(generated), fmean(computed))

    def _steps(self, question: Question, traces: Sequence[Trace]) -> Steps:
        method = SSA(
            len(traces),
            synthesiser=self.author,
            orders=self.orders,
            shown=self.shown,
            extract=question.extract,
        )
        [branch] = yield from root(question.prompt)
        talk = Discussion(branch, [[Reply(trace.text) for trace in traces]])
        return (yield from method.read(talk))
