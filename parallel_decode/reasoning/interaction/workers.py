"""Workers on one question who see each other's tokens as these come."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine import Branch, Broadcast, Fork, Prefill, Prune, See, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.pipeline import Question
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class Workers:
    """D: a branch for each name, with a lead of its own, which sees what the others write.

    Args:
        names: of the workers.
        lead: what a worker's text begins with, with its {name}.
        visible: False to let nobody see anybody: a control.
        stranger: another question, whose workers are seen instead: a control. They come after those
            of the question, and see each other.
        span: positions for each worker, one range after the other, at which the others read what it
            writes; None to read it as if it stood in front of what they write themselves.
        max_tokens: that a worker is going to draw; with its lead they must fit the span.
    """

    names: Sequence[str]
    lead: Template
    visible: bool = True
    stranger: Question | None = None
    span: int | None = None
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("at least one worker needs a name")
        at_least(1, span=self.span)
        self.lead.require("name")

    def __call__(self, question: Question) -> Steps:
        team = yield from self._team(question)
        others: list[Branch] = []
        if self.stranger is not None:
            others = yield from self._team(self.stranger)
        if self.visible:
            offset = None if self.span is None else 0
            yield [See(worker, _without(others or team, worker), offset) for worker in team]
            yield [See(worker, _without(others, worker), offset) for worker in others]
        for workers in (team, others):
            yield [
                Broadcast([worker], self.lead.fill(name=name))
                for worker, name in zip(workers, self.names if workers else (), strict=True)
            ]
        for worker in team + others:
            end = worker.end_position + self.max_tokens
            if worker.position_limit is not None and end > worker.position_limit:
                raise ValueError(
                    f"{worker!r} and {self.max_tokens} more tokens need a span of"
                    f" {(self.span or 0) + end - worker.position_limit}, not {self.span}"
                )
        return team + others

    def _team(self, question: Question) -> Steps:
        root = yield Prefill(question)
        if self.span is None:
            return (yield Fork(root, len(self.names)))
        ranges = (self.span,)
        return (yield Fork(root, len(self.names), positions="disjoint_ranges", lengths=ranges))

    def conclude(self, extract: Extractor, question: Question, branches: Sequence[Branch]) -> Steps:
        """A: the answers of the question's own workers vote."""
        team = list(branches[: len(self.names)])
        yield Prune(branches[len(self.names) :])
        return (yield from Select(extract)(question, team))


def _without(branches: Sequence[Branch], branch: Branch) -> list[Branch]:
    return [other for other in branches if other is not branch]
