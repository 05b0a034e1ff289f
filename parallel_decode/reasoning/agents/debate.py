"""Multi-agent debate: agents answer, read each other's answers, and revise their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.agents.listening import Listening
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.author import Author
from parallel_decode.reasoning.discussion import Conclude, Discussion
from parallel_decode.reasoning.draws import draws
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.quotation import Quotation
from parallel_decode.reasoning.stages import root


@dataclass(frozen=True)
class Debate(Method):
    """P has every agent answer, and in each further round answer again behind its own last answer
    and those of others; A lets the answers of the last round vote (Improving Factuality and
    Reasoning in Language Models through Multiagent Debate).

    The others' answers are read as text: what an agent is shown costs as much as a prompt, n^2 of
    them a round. It asks for models that weigh what others say; with the same number of samples a
    plain vote is often as good, and right agents may give in.

    Args:
        agents: of one or several models.
        rounds: the first one too; 1 is self-consistency.
        listening: who hears whom.
        shown: with {own}, what the agent said itself, and {texts} of others.
        extract: text of an agent to its answer.
    """

    card: ClassVar = Card(
        "debate",
        "agents",
        "Multiagent Debate",
        ("prefill", "fork", "extend", "prune", "delegate"),
    )

    agents: Sequence[Author] = field(default_factory=lambda: (Author(),) * 3)
    rounds: int = 2
    listening: Listening = field(default_factory=Listening)
    shown: Quotation = field(default_factory=partial(Quotation.named, "debate"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if not self.agents:
            raise ValueError("a debate needs at least one agent")
        at_least(1, rounds=self.rounds)
        self.shown.require("own")
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._debate, Conclude(self.extract))

    def _debate(self, branches: Sequence[Branch]) -> Steps:
        talk = Discussion(branches[0])
        rng = yield from draws(talk.question)
        yield from talk.ask(self.agents, [""] * len(self.agents))
        own = [reply.text for reply in talk.last]
        for _ in range(self.rounds - 1):
            if talk.over:
                break
            heard = self.listening.heard(talk.last, rng)
            shown = [self.shown.of(texts, own=mine) for mine, texts in zip(own, heard, strict=True)]
            yield from talk.ask(self.agents, shown)
            own = [
                mine if reply.error else reply.text
                for mine, reply in zip(own, talk.last, strict=True)
            ]
        return talk
