"""Self-consistency: many samples of one question, and a vote (Wang et al., 2022)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from parallel_decode.engine import Drafter, Engine, SamplingParams
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, likelihood
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples

VOTES = ("majority", "logprob", "weighted")


@dataclass(frozen=True)
class SelfConsistency(Method):
    """D copies the question, P samples each copy to its end, A lets the answers vote.

    Args:
        n: samples.
        params: how they are drawn.
        extract: text of a branch to its answer; a branch without one does not vote.
        vote: "majority" counts; "logprob" weighs by exp(mean log-probability), the model's own
            confidence per token; "weighted" weighs by `scorer`.
        scorer: branches to scores that are not negative, for "weighted".
        speculation: see `Method`; here "auto": branches guess for each other where that pays.
    """

    card: ClassVar = Card(
        "self-consistency", "self-consistency", "Wang et al., 2022", ("prefill", "fork", "extend")
    )

    n: int = 16
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number
    vote: Literal["majority", "logprob", "weighted"] = "majority"
    scorer: Scorer | None = None
    speculation: str | Engine | Drafter | None = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        if self.vote not in VOTES:
            raise ValueError(f"vote must be one of {', '.join(VOTES)}, got {self.vote!r}")
        if (self.vote == "weighted") != (self.scorer is not None):
            raise ValueError("vote='weighted' and a scorer go together")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        scorer = likelihood if self.vote == "logprob" else self.scorer
        return Pipeline(Copies(self.n), Samples(self.params), Select(self.extract, scorer))
