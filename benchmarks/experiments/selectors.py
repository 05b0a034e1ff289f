"""Ways to choose an answer from a question's traces: what aggregating methods do, on a pool."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from benchmarks.experiments.experiment import Choice
from benchmarks.experiments.pool import Trace
from parallel_decode.reasoning.consistency.stopping import StoppingRule
from parallel_decode.reasoning.vote import tally
from parallel_decode.reasoning.weighting import Weighting, by_score

Stop = Callable[[Sequence[Trace]], Sequence[Trace]]
"""The traces that may be drawn -> those that are, the first ones."""


def majority(traces: Sequence[Trace]) -> str | None:
    return _first(tally([t.answer for t in traces], [1.0] * len(traces)))


def scored(score: str, weigh: Weighting = by_score) -> Choice:
    """The vote weighed by a stored score."""

    def choose(traces: Sequence[Trace]) -> str | None:
        voting = [t for t in traces if t.answer is not None]
        weights = weigh([t.scores[score] for t in voting])
        return _first(tally([t.answer for t in voting], weights))

    return choose


def shuffled(score: str, weigh: Weighting = by_score, seed: int = 0) -> Choice:
    """The control: each trace has the score of another one of its question."""
    rng = random.Random(seed)

    def choose(traces: Sequence[Trace]) -> str | None:
        voting = [t for t in traces if t.answer is not None]
        scores = [t.scores[score] for t in voting]
        rng.shuffle(scores)
        return _first(tally([t.answer for t in voting], weigh(scores)))

    return choose


def oracle(traces: Sequence[Trace]) -> str | None:
    """What no method may do: the exact checker chooses. The ceiling of all choices."""
    return next((t.answer for t in traces if t.correct), traces[0].answer)


def stopped(rule: StoppingRule, batch: int) -> Stop:
    """The samples that a rule lets be drawn, `batch` at a time."""

    def drawn(traces: Sequence[Trace]) -> Sequence[Trace]:
        for end in range(batch, len(traces), batch):
            if rule([t.answer for t in traces[:end]]):
                return traces[:end]
        return traces

    return drawn


def _first(votes: Sequence[tuple[str, float]]) -> str | None:
    return votes[0][0] if votes else None
