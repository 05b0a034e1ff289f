"""Soft self-consistency: the most probable sample, not the most frequent (Wang et al., 2024)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from parallel_decode.engine import Branch, SamplingParams
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.weighting import Weighting, best_only


def _log_mean(logprobs: Sequence[float]) -> float:
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(p - highest) for p in logprobs) / len(logprobs))


AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": _log_mean,
    "min": min,
    "product": math.fsum,
}


@dataclass(frozen=True)
class TokenProbability:
    """Scorer: the logarithm of the mean, the least, or the product of the probabilities of the
    sampled tokens; 0 where there is none.

    A product falls with the length. The logarithm keeps the order, and does not underflow.
    """

    aggregate: Literal["mean", "min", "product"]

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            names = ", ".join(AGGREGATES)
            raise ValueError(f"aggregate must be one of {names}, got {self.aggregate!r}")

    def __call__(self, branches: Sequence[Branch]) -> list[float]:
        sampled = [[r.logprob for r in branch.records if r.sampled] for branch in branches]
        return [AGGREGATES[self.aggregate](found) if found else 0.0 for found in sampled]


@dataclass(frozen=True)
class SoftSelfConsistency(Method):
    """D copies the question, P samples each copy to its end, A takes the one whose tokens are the
    most probable: for answers that are rarely the same twice, such as actions.

    Args:
        n: samples.
        aggregate: of the probabilities of a sample's tokens: "mean", "min" or "product".
        weigh: logarithms of these to the weights of the votes; `best_only` takes the best.
        params: how samples are drawn.
        extract: text of a branch to its answer; a branch without one is no candidate.
    """

    card: ClassVar = Card(
        "soft-self-consistency",
        "self-consistency",
        "Wang et al., 2024",
        ("prefill", "fork", "extend"),
    )

    n: int = 16
    aggregate: Literal["mean", "min", "product"] = "mean"
    weigh: Weighting = best_only
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        select = Select(self.extract, TokenProbability(self.aggregate), self.weigh)
        return Pipeline(Copies(self.n), Samples(self.params), select)
