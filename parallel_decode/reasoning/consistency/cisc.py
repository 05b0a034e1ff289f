"""Confidence-informed self-consistency: a vote weighted by how sure the model is of each path
(Taubenfeld et al., 2025)."""

from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.consistency.p_true import PTrue
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.weighting import softmax


@dataclass(frozen=True)
class CISC(Method):
    """D copies the question, P samples each copy to its end, A asks for a confidence in each and
    lets the answers vote by softmax(confidence / softness).

    It gains where a confidence tells right from wrong answers to the same question, see
    `metrics.within_question_discrimination`; calibration is of no help.

    Args:
        n: samples.
        confidence: scorer of a finished branch: `PTrue` asks the model, `likelihood` takes the
            response's own probability a token.
        softness: temperature of the softmax; a large one is the plain majority. It depends on the
            scale of the confidence and is worth tuning.
        params: how samples are drawn.
        extract: text of a branch to its answer; a branch without one does not vote.
    """

    card: ClassVar = Card(
        "cisc",
        "self-consistency",
        "Taubenfeld et al., 2025",
        ("prefill", "fork", "extend", "score", "prune"),
    )

    n: int = 16
    confidence: Scorer = field(default_factory=PTrue)
    softness: float = 1.0
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        select = Select(self.extract, self.confidence, softmax(self.softness))
        return Pipeline(Copies(self.n), Samples(self.params), select)
