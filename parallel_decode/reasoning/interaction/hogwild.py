"""Hogwild! inference: workers share their keys and values as they write them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.interaction.turn import Turn, going_on, tell
from parallel_decode.reasoning.interaction.workers import Workers
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class Hogwild(Method):
    """D gives each worker a branch that sees the others' tokens as they come, P lets all write, one
    token a step; between turns each is asked whether it does what was done; A lets them vote.

    This is the paper's contiguous layout: a worker reads the question, the others one after
    the other, then itself. Its shared history of finished steps is not kept apart.

    It asks for a model that makes something of what others write.

    Args:
        names: of the workers.
        turns: of a worker at the most; `params.max_tokens` is that of one.
        lead: what a worker's text begins with, with its {name}.
        check: what it is asked between turns; a template without places.
        visible: False to let nobody see anybody: a control.
        stranger: another question, whose workers are seen instead: a control.
        params: how workers write.
        extract: text of a worker to its answer.
    """

    card: ClassVar = Card(
        "hogwild",
        "interaction",
        "Rodionov et al., 2025",
        ("prefill", "fork", "see", "extend", "broadcast"),
    )

    names: Sequence[str] = ("Alice", "Bob")
    turns: int = 4
    lead: Template = field(default_factory=partial(Template.named, "worker"))
    check: Template = field(default_factory=partial(Template.named, "redundant"))
    visible: bool = True
    stranger: Question | None = None
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=1024))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, turns=self.turns)
        self.check.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        workers = Workers(self.names, self.lead, self.visible, self.stranger)
        return Pipeline(
            workers,
            Turn(self.params),
            partial(workers.conclude, self.extract),
            exchange=self._check,
            rounds=self.turns - 1,
        )

    def _check(self, branches: Sequence[Branch]) -> Steps:
        running = going_on(branches)
        yield from tell(running, [self.check.fill()] * len(running))
        return list(branches)
