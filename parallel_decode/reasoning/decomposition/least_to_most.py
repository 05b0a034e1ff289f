"""Least-to-most: simpler questions first, each answered with the answers before it at hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.decomposition.ask import ask
from parallel_decode.reasoning.decomposition.numbered import numbered
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class LeastToMost(Method):
    """D copies the question, P lets each copy name simpler questions, asks them in their order, and
    asks for the whole; A lets the answers vote. A bad list makes bad answers.

    It asks for a model that follows instructions. A copy whose context is full goes no further.

    Args:
        n: samples.
        max_questions: of a list; what follows is not asked.
        decompose: what a sample is told first; a template without places.
        question: how it is asked one, with {number} and {text}.
        last: what it is told in the end; a template without places.
        list_params: how lists are drawn.
        params: how answers are drawn; max_tokens is that of one.
        extract: text of a sample to its answer.
    """

    card: ClassVar = Card(
        "least-to-most", "decomposition", "Zhou et al., 2023", ("prefill", "fork", "extend")
    )

    n: int = 1
    max_questions: int = 8
    decompose: Template = field(default_factory=partial(Template.named, "decompose"))
    question: Template = field(default_factory=partial(Template.named, "subquestion"))
    last: Template = field(default_factory=partial(Template.named, "subquestion_last"))
    list_params: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_tokens=128, stop="\n\n")
    )
    params: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_tokens=128, stop="\n\n")
    )
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, max_questions=self.max_questions)
        self.decompose.require()
        self.question.require("number", "text")
        self.last.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._answer_all, Select(self.extract))

    def _answer_all(self, branches: Sequence[Branch]) -> Steps:
        yield from gather([self._answer(branch) for branch in branches])
        return list(branches)

    def _answer(self, branch: Branch) -> Steps:
        said = yield from ask(branch, self.decompose.fill(), self.list_params)
        if said is None:
            return
        for number, text in enumerate(numbered(said, self.max_questions), 1):
            prompt = self.question.fill(number=str(number), text=text)
            if (yield from ask(branch, prompt, self.params)) is None:
                return
        yield from ask(branch, self.last.fill(), self.params)
