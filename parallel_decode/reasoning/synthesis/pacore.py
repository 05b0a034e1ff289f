"""PaCoRe: rounds of parallel trajectories, of which only messages of bounded length go on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.author import Author, Reply
from parallel_decode.reasoning.discussion import Conclude, Discussion
from parallel_decode.reasoning.draws import draws
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.quotation import Quotation
from parallel_decode.reasoning.stages import root
from parallel_decode.reasoning.synthesis.shown import collapse_warnings, syntheses


def last_paragraph(text: str) -> str:
    """What stands after the last blank line: the answer message of a trajectory."""
    return text.strip().rpartition("\n\n")[2]


@dataclass(frozen=True)
class PaCoRe(Method):
    """P runs rounds of K_1, ..., K_R and one trajectory, each behind the question and the messages
    of the round before; A takes the answer of the last one (PaCoRe: Learning to Scale Test-Time
    Compute with Parallel Coordinated Reasoning).

    A trajectory is compacted to its answer message, so that the context does not grow with what was
    thought. One whose message never ends is cut at the bound; the others go on.

    Args:
        widths: trajectories of each round but the last, which is of one.
        author: who writes.
        compact: text of a trajectory to its message.
        bound: tokens of a message, the last ones.
        shown: how messages are shown, in an order that the seed gives.
        extract: text of a trajectory to its answer.
    """

    card: ClassVar = Card("pacore", "synthesis", "PaCoRe", ("prefill", "fork", "extend", "prune"))

    widths: Sequence[int] = (4,)
    author: Author = field(default_factory=Author)
    compact: Callable[[str], str] = last_paragraph
    bound: int = 128
    shown: Quotation = field(default_factory=partial(Quotation.named, "compacted"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be at least 1 each, got {self.widths!r}")
        at_least(1, bound=self.bound)
        self.shown.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._coordinate, Conclude(self.extract))

    def _coordinate(self, branches: Sequence[Branch]) -> Steps:
        talk = Discussion(branches[0])
        rng = yield from draws(talk.question)
        messages: list[str] = []
        for width in (*self.widths, 1):
            orders = [rng.sample(messages, len(messages)) for _ in range(width)]
            shown = [self.shown.of(order) if order else "" for order in orders]
            yield from talk.ask([self.author] * width, shown)
            if talk.over:
                break
            messages = [self._message(reply) for reply in talk.last if reply.error is None]
        if orders[0]:
            answers = talk.answers(self.extract, talk.last)
            talk.warnings += collapse_warnings(syntheses(talk.last, answers, orders, self.extract))
        return talk

    def _message(self, reply: Reply) -> str:
        message = self.compact(reply.text)
        if reply.branch is None:
            return message
        tail = reply.branch.tail(self.bound).strip()
        return message if len(message) <= len(tail) else tail
