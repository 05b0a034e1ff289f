"""Compute-optimal scaling: method and number of samples by the question's difficulty."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, Prune, SamplingParams, Steps
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.ranking.difficulty import Difficulty, bin_of, disagreement
from parallel_decode.reasoning.scorer import Scorer, given, score_branches
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.weighting import Weighting, by_score


@dataclass(frozen=True)
class ComputeOptimal(Method):
    """D copies the question a few times, P samples, A estimates the difficulty from these samples
    and lets the method of its bin answer (Snell et al., 2024).

    The samples of the estimate are in the usage, which the paper leaves out. Where the bin's method
    is None they decide themselves: an easy question costs no more.

    Args:
        methods: for each bin, the easiest first.
        bounds: ascending difficulties at which the next bin begins, one fewer than methods.
        n: samples for the estimate.
        difficulty: of their answers and scores, from 0 to 1.
        scorer: of these samples; None for 1 each.
        weigh: their scores to the weights of their votes, where they decide.
        params: how they are drawn.
        extract: text of a branch to its answer.
    """

    card: ClassVar = Card(
        "compute-optimal", "ranking", "Snell et al., 2024", ("prefill", "fork", "extend", "prune")
    )

    methods: tuple[Method | None, ...]
    bounds: tuple[float, ...]
    n: int = 4
    difficulty: Difficulty = disagreement
    scorer: Scorer | None = None
    weigh: Weighting = by_score
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if not self.methods or len(self.bounds) != len(self.methods) - 1:
            raise ValueError(f"{len(self.methods)} methods and {len(self.bounds)} bounds")
        if list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"bounds must ascend, got {self.bounds}")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), Samples(self.params), self._answer)

    def _answer(self, question: Question, branches: Sequence[Branch]) -> Steps:
        sound = [branch for branch in branches if branch.status != "failed"]
        answers = answers_of(self.extract, [branch.text for branch in sound])
        scores = [1.0] * len(sound)
        if self.scorer is not None:
            scores = yield from score_branches(self.scorer, sound)
        difficulty = self.difficulty(answers, scores)
        if not 0 <= difficulty <= 1:
            raise ValueError(f"difficulty must be from 0 to 1, got {difficulty}")
        method = self.methods[bin_of(difficulty, self.bounds)]
        if method is None:
            scorer = None if self.scorer is None else given
            return (yield from Select(self.extract, scorer, self.weigh)(question, branches))
        yield Prune(branches)
        return (yield from method.program(question))
