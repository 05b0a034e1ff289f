"""Self-certainty: best-of-N by how far the model's distributions are from uniform."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, SamplingParams
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.weighting import borda


def self_certainty(branches: Sequence[Branch]) -> list[float]:
    """Mean over the sampled tokens of KL(uniform || p), in nats; 0 where nothing was sampled."""
    scores = []
    for branch in branches:
        drawn = [record.self_certainty for record in branch.records if record.sampled]
        scores.append(math.fsum(drawn) / max(1, len(drawn)))
    return scores


@dataclass(frozen=True)
class SelfCertainty(Method):
    """D copies the question, P samples each copy to its end, A ranks them by self-certainty and
    lets rank r of N vote with weight (N - r + 1)^power (Kang et al., 2025).

    Args:
        n: samples.
        power: 0 is the majority, a large one best-of-N.
        params: how samples are drawn.
        extract: text of a branch to its answer; a branch without one does not vote.
    """

    card: ClassVar = Card(
        "self-certainty", "ranking", "Kang et al., 2025", ("prefill", "fork", "extend")
    )

    n: int = 16
    power: float = 0.5
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        select = Select(self.extract, self_certainty, borda(self.power))
        return Pipeline(Copies(self.n), Samples(self.params), select)
