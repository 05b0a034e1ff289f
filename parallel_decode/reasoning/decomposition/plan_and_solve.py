"""Plan-and-Solve: a plan first, then its steps, in one go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Extend, SamplingParams, Steps
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class PlanAndSolve(Method):
    """D copies the question, P tells each copy to plan and to carry out the plan, A lets the
    answers vote. It asks for a model that follows instructions.

    Args:
        n: samples.
        plan: what a sample is told; a template without places.
        params: how samples are drawn.
        extract: text of a sample to its answer.
    """

    card: ClassVar = Card(
        "plan-and-solve", "decomposition", "Wang et al., 2023", ("prefill", "fork", "extend")
    )

    n: int = 1
    plan: Template = field(default_factory=partial(Template.named, "plan_solve"))
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=512))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        self.plan.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._solve, Select(self.extract))

    def _solve(self, branches: Sequence[Branch]) -> Steps:
        return (yield Extend(branches, self.params, self.plan.fill()))
