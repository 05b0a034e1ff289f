"""Mixture of agents: layers of models, each of which reads what the layer before wrote."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.author import Author
from parallel_decode.reasoning.discussion import Discussion
from parallel_decode.reasoning.draws import draws
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.quotation import Quotation
from parallel_decode.reasoning.stages import root

DRAW = partial(SamplingParams, temperature=0.7)


@dataclass(frozen=True)
class MixtureOfAgents(Method):
    """P has the proposers answer, layer by layer, behind the answers of the layer before; A is what
    the aggregator writes behind those of the last layer (Mixture-of-Agents Enhances Large Language
    Model Capabilities).

    Args:
        proposers: of each layer, of one or several models.
        layers: with the aggregator's, which is the last; 2 is one layer of proposers.
        aggregator: who writes the answer.
        sparse: answers that each reads, drawn as the seed gives; None for all.
        strangers: texts to be read instead, such as those of another question: a control.
        shown: how answers are shown.
        extract: text of the aggregator to its answer.
    """

    card: ClassVar = Card(
        "mixture-of-agents",
        "agents",
        "Mixture-of-Agents",
        ("prefill", "fork", "extend", "prune", "delegate"),
    )

    proposers: Sequence[Author] = field(default_factory=lambda: (Author(DRAW()),) * 6)
    layers: int = 3
    aggregator: Author = field(default_factory=lambda: Author(DRAW()))
    sparse: int | None = None
    strangers: Sequence[str] = ()
    shown: Quotation = field(default_factory=partial(Quotation.named, "mixture"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if not self.proposers:
            raise ValueError("a mixture needs at least one proposer")
        at_least(2, layers=self.layers)
        at_least(1, sparse=self.sparse)
        self.shown.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._propose, self._aggregate)

    def _propose(self, branches: Sequence[Branch]) -> Steps:
        talk = Discussion(branches[0])
        rng = yield from draws(talk.question)
        yield from talk.ask(self.proposers, [""] * len(self.proposers))
        for _ in range(self.layers - 2):
            if talk.over:
                break
            yield from talk.ask(self.proposers, [self._read(talk, rng) for _ in self.proposers])
        return talk, rng

    def _read(self, talk: Discussion, rng: random.Random) -> str:
        texts = list(self.strangers) or [r.text for r in talk.last if r.error is None]
        if self.sparse is not None and self.sparse < len(texts):
            texts = rng.sample(texts, self.sparse)
        return self.shown.of(texts)

    def _aggregate(self, question: Question, proposed: Any) -> Steps:
        talk, rng = proposed
        if not talk.over:
            yield from talk.ask([self.aggregator], [self._read(talk, rng)])
        return talk.conclude(self.extract)
