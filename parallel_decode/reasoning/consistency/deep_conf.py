"""DeepConf offline: only the most confident traces vote (Fu et al., 2025)."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.consistency.confidence import Summary, TraceConfidence
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.weighting import by_score, top_fraction


@dataclass(frozen=True)
class DeepConf(Method):
    """D copies the question, P samples each copy to its end, A lets the most confident share of the
    traces vote, each by its confidence.

    With a small share, a group of traces that are confident and wrong decides.

    Args:
        n: samples.
        keep: share of the traces that vote.
        summary: "mean", "tail", "bottom" or "lowest", see `TraceConfidence`.
        window: tokens of a window of confidence; None for an eighth of the trace, at least 8.
        top_k: the most likely tokens whose log-probabilities make the confidence.
        params: how samples are drawn; `logprobs` is raised to `top_k`.
        extract: text of a branch to its answer; a branch without one does not vote.
    """

    card: ClassVar = Card(
        "deepconf", "self-consistency", "Fu et al., 2025", ("prefill", "fork", "extend")
    )

    n: int = 16
    keep: float = 0.1
    summary: Summary = "bottom"
    window: int | None = None
    top_k: int = 20
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        scorer = TraceConfidence(self.summary, self.window, self.top_k)
        params = replace(self.params, logprobs=max(self.params.logprobs, self.top_k))
        select = Select(self.extract, scorer, top_fraction(self.keep, by_score))
        return Pipeline(Copies(self.n), Samples(params), select)
