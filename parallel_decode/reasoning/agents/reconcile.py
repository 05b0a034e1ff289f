"""ReConcile: a round table that talks until it agrees, and votes by confidence."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.author import Author, Reply
from parallel_decode.reasoning.discussion import Discussion
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.quotation import Quotation
from parallel_decode.reasoning.stages import root
from parallel_decode.reasoning.template import Template

Confidence = Callable[[Reply], float]
"""A reply -> how sure its author is, in [0, 1]."""

_STATED = re.compile(r"confidence\D{0,20}?([01](?:\.\d+)?|\.\d+)", re.IGNORECASE)


def stated_confidence(reply: Reply) -> float:
    """The last number in [0, 1] that the text gives behind the word "confidence"; 0 without one."""
    found = [float(number) for number in _STATED.findall(reply.text)]
    return next((number for number in reversed(found) if number <= 1), 0.0)


def vote_weight(confidence: float) -> float:
    """What a vote counts: models that speak of their confidence overrate it, so that the steps are
    uneven.

    Raises:
        ValueError: it does not lie in [0, 1].
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"a confidence must lie in [0, 1], got {confidence}")
    if confidence == 1:
        return 1.0
    if confidence >= 0.9:
        return 0.8
    if confidence >= 0.8:
        return 0.5
    return 0.3 if confidence > 0.6 else 0.1


@dataclass(frozen=True)
class ReConcile(Method):
    """P has every agent answer and say how sure it is; while they differ, each answers again behind
    all answers, grouped, with their confidences, for `rounds` rounds at the most; A is the vote of
    the last round, weighted by confidence (ReConcile: Round-Table Conference Improves Reasoning via
    Consensus among Diverse LLMs).

    Args:
        agents: of different models, for the method to be what it is meant to be.
        rounds: after the first.
        confidence: of a reply; `stated_confidence` reads it in the text.
        first: what follows the question at first; a template without places.
        shown: what follows it later, with {texts}: of each group what its members say.
        group: how one is shown, with {answer}, {confidences} and {reasons}.
        extract: text of an agent to its answer; with `stated_confidence` it must not take the
            confidence for it.
    """

    card: ClassVar = Card(
        "reconcile", "agents", "ReConcile", ("prefill", "fork", "extend", "prune", "delegate")
    )

    agents: Sequence[Author] = field(default_factory=lambda: (Author(),) * 3)
    rounds: int = 3
    confidence: Confidence = stated_confidence
    first: Template = field(default_factory=partial(Template.named, "reconcile_first"))
    shown: Quotation = field(default_factory=partial(Quotation.named, "reconcile"))
    group: Template = field(default_factory=partial(Template.named, "reconcile_group"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if not self.agents:
            raise ValueError("a round table needs at least one agent")
        if self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")
        self.first.require()
        self.shown.require()
        self.group.require("answer", "confidences", "reasons")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._confer, self._conclude)

    def _confer(self, branches: Sequence[Branch]) -> Steps:
        talk = Discussion(branches[0])
        yield from talk.ask(self.agents, [self.first.fill()] * len(self.agents))
        for _ in range(self.rounds):
            answers = talk.answers(self.extract, talk.last)
            given = {answer for answer in answers if answer is not None}
            if talk.over or (len(given) == 1 and None not in answers):
                break
            shown = self.shown.of(self._groups(talk.last, answers))
            yield from talk.ask(self.agents, [shown] * len(self.agents))
        return talk

    def _groups(self, replies: Sequence[Reply], answers: Sequence[str | None]) -> list[str]:
        groups: dict[str, list[Reply]] = {}
        for reply, answer in zip(replies, answers, strict=True):
            if answer is not None:
                groups.setdefault(answer, []).append(reply)
        return [
            self.group.fill(
                answer=answer,
                confidences=" ".join(f"{self.confidence(reply):.2f}" for reply in members),
                reasons="\n".join(reply.text for reply in members),
            )
            for answer, members in groups.items()
        ]

    def _conclude(self, question: Question, talk: Any) -> Steps:
        yield from ()
        weights = [
            vote_weight(0.0 if reply.error else self.confidence(reply)) for reply in talk.last
        ]
        answers = talk.answers(self.extract, talk.last)
        if len(set(answers) - {None}) > 1:
            talk.warnings.append(f"no consensus after {len(talk.rounds)} rounds")
        return talk.conclude(self.extract, weights=weights, answers=answers)
