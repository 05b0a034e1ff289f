"""Group Think: thinkers whose next token is drawn from what all have written so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.interaction.turn import Turn
from parallel_decode.reasoning.interaction.workers import Workers
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class GroupThink(Method):
    """D gives each thinker a branch and a range of positions of its own, P lets all write, one
    token a step, each seeing where the others stand; A lets them vote.

    It asks for a model that makes something of what others write. The context must hold the ranges
    of all thinkers.

    Args:
        names: of the thinkers.
        span: positions of a thinker: its lead and `params.max_tokens` must fit.
        lead: what a thinker's text begins with, with its {name}.
        visible: False to let nobody see anybody: a control.
        stranger: another question, whose thinkers are seen instead: a control.
        params: how thinkers write.
        extract: text of a thinker to its answer.
    """

    card: ClassVar = Card(
        "group-think", "interaction", "Hsu et al., 2025", ("prefill", "fork", "see", "extend")
    )

    names: Sequence[str] = ("Thinker 1", "Thinker 2", "Thinker 3", "Thinker 4")
    span: int = 320
    lead: Template = field(default_factory=partial(Template.named, "worker"))
    visible: bool = True
    stranger: Question | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if self.params.max_tokens >= self.span:
            raise ValueError(
                f"span must be more than max_tokens={self.params.max_tokens}, got {self.span}"
            )
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        workers = Workers(
            self.names, self.lead, self.visible, self.stranger, self.span, self.params.max_tokens
        )
        return Pipeline(workers, Turn(self.params), partial(workers.conclude, self.extract))
