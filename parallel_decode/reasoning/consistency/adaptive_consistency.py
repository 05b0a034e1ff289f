"""Adaptive-Consistency: samples until the majority is sure to stay (Aggarwal et al., 2023)."""

from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.consistency.batches import Batches
from parallel_decode.reasoning.consistency.stopping import beta_criterion
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import root


@dataclass(frozen=True)
class AdaptiveConsistency(Method):
    """D opens the question, P samples in batches until the leading answer is ahead by the Beta
    criterion, A lets the answers vote.

    It saves samples where a question is easy, and waits for one batch after the other where it is
    not. Answers that agree and are wrong stop it early as well.

    Args:
        n: samples at the most.
        batch: samples between two looks; 1 draws the fewest.
        threshold: probability at which the leading answer has won; 4 votes to none reach 0.95.
        params: how samples are drawn.
        extract: text of a branch to its answer; a branch without one does not vote.
    """

    card: ClassVar = Card(
        "adaptive-consistency",
        "self-consistency",
        "Aggarwal et al., 2023",
        ("prefill", "fork", "extend"),
    )

    n: int = 40
    batch: int = 4
    threshold: float = 0.95
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        enough = beta_criterion(self.threshold)
        samples = Batches(self.batch, self.n, self.params, self.extract, enough)
        return Pipeline(root, samples, Select(self.extract))
