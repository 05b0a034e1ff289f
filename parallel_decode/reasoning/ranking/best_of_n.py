"""Best-of-N: many samples of one question, and a verifier (Cobbe et al., 2021)."""

from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, mean_logprob
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.weighting import Weighting, best_only


@dataclass(frozen=True)
class BestOfN(Method):
    """D copies the question, P samples each copy to its end, A takes what the scorer likes best.

    Args:
        n: samples.
        scorer: how good a finished branch is: an outcome or process verifier, or any callable.
        weigh: `best_only` takes the best one; `by_score` is weighted best-of-N, where equal answers
            add up; see `weighting` for others.
        params: how samples are drawn.
        extract: text of a branch to its answer; a branch without one is no candidate.
    """

    card: ClassVar = Card(
        "best-of-n", "ranking", "Cobbe et al., 2021", ("prefill", "fork", "extend", "score")
    )

    n: int = 16
    scorer: Scorer = mean_logprob
    weigh: Weighting = best_only
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        # A verifier on the trunk finds its states at hand then.
        samples = Samples(self.params, getattr(self.scorer, "keep_hidden", ()))
        return Pipeline(Copies(self.n), samples, Select(self.extract, self.scorer, self.weigh))
