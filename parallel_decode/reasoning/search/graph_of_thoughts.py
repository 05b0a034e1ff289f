"""Graph of Thoughts: thoughts are generated, refined, joined and chosen by a plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.scorer import Scorer, likelihood
from parallel_decode.reasoning.search.thought_operation import (
    Aggregate,
    Generate,
    KeepBest,
    Thinker,
    ThoughtOperation,
)
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import root
from parallel_decode.reasoning.weighting import Weighting, best_only


@dataclass(frozen=True)
class GraphOfThoughts(Method):
    """The plan is a list of operations, each from the thoughts of the one before to its own. Where
    an operation leaves no thought, all having failed, the plan ends there.

    Args:
        plan: operations in their order; the first gets the question as its only thought.
        params: how thoughts are drawn.
        scorer: what `KeepBest` and `Refine` go by, and the choice at the end.
        extract: text of a thought to its answer.
        weigh: scores of the last thoughts to the weights of their votes.
    """

    card: ClassVar = Card(
        "got",
        "structured search",
        "Besta et al., 2024",
        ("prefill", "fork", "extend", "join", "prune"),
    )

    plan: tuple[ThoughtOperation, ...] = (Generate(8), KeepBest(3), Aggregate(n=4), KeepBest(1))
    params: SamplingParams = field(default_factory=SamplingParams)
    scorer: Scorer = likelihood
    extract: Extractor = last_number
    weigh: Weighting = best_only

    def __post_init__(self) -> None:
        if not self.plan or not all(isinstance(op, ThoughtOperation) for op in self.plan):
            raise ValueError(f"plan must be a list of operations over thoughts, got {self.plan!r}")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._think, Select(self.extract, self.scorer, self.weigh))

    def _think(self, branches: Sequence[Branch]) -> Steps:
        [question] = branches
        thinker = Thinker(question, self.params, self.scorer)
        thoughts = list(branches)
        for operation in self.plan:
            thoughts = yield from operation.apply(thinker, thoughts)
            if not thoughts:
                # What failed is told of in the tree.
                return list(branches)
        return thoughts
