"""Cascade: a cheap scorer chooses who is looked at by a dear one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Prune, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.scorer import Scorer, mean_logprob, ranked, score_branches
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.weighting import Weighting, best_only


@dataclass(frozen=True)
class Cascade(Method):
    """D copies the question, P samples each copy to its end, A keeps the `keep` best by the cheap
    scorer, frees the others, and takes what the dear scorer likes best of them.

    Args:
        dear: the scorer that decides.
        n: samples.
        keep: candidates that the dear scorer sees; what the cheap one drops is lost.
        cheap: the scorer that chooses them.
        weigh: the dear scores to the weights of the votes.
        params: how samples are drawn.
        extract: text of a branch to its answer; a branch without one is no candidate.
    """

    card: ClassVar = Card(
        "cascade",
        "ranking",
        "Viola and Jones, 2001",
        ("prefill", "fork", "extend", "score", "prune"),
    )

    dear: Scorer
    n: int = 16
    keep: int = 4
    cheap: Scorer = mean_logprob
    weigh: Weighting = best_only
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, keep=self.keep)
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), Samples(self.params), self._choose)

    def _choose(self, question: Question, branches: Sequence[Branch]) -> Steps:
        sound = [branch for branch in branches if branch.status != "failed"]
        answers = answers_of(self.extract, [branch.text for branch in sound])
        candidates = [b for b, answer in zip(sound, answers, strict=True) if answer is not None]
        yield from score_branches(self.cheap, candidates)
        kept = ranked(candidates)[: self.keep]
        chosen = {id(branch) for branch in kept}
        yield Prune([branch for branch in branches if id(branch) not in chosen])
        select = Select(self.extract, self.dear, self.weigh)
        return (yield from select(question, kept or branches))
