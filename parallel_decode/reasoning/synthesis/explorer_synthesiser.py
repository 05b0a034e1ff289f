"""Explorers write candidates, a synthesiser reads them all and writes the solution."""

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
from parallel_decode.reasoning.synthesis.shown import (
    collapse_warnings,
    sound,
    syntheses,
)

PRIMITIVES = ("prefill", "fork", "extend", "prune")


@dataclass(frozen=True)
class ExplorerSynthesiser(Method):
    """P has explorers write `n` candidates each for themselves; A shows them to the synthesiser, in
    an order that the seed gives, and takes its answer.

    It asks for a synthesiser that makes something of candidates; a small one must have been trained
    on the prompt. `aggregation_collapse` looks at what it made of them and warns.

    Args:
        n: candidates.
        explorer: who writes them.
        synthesiser: who reads them.
        orders: of the candidates that are shown, one synthesis each; their answers vote, and where
            they differ, a warning says so.
        strangers: texts to be shown instead of the candidates, such as those of another question: a
            control.
        shown: how candidates are shown.
        extract: text of a synthesis to its answer, and of a candidate.
    """

    n: int = 5
    explorer: Author = field(default_factory=Author)
    synthesiser: Author = field(default_factory=lambda: Author(SamplingParams(temperature=0)))
    orders: int = 1
    strangers: Sequence[str] = ()
    shown: Quotation = field(default_factory=partial(Quotation.named, "synthesis"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, n=self.n, orders=self.orders)
        self.shown.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._explore, self._synthesise)

    def _explore(self, branches: Sequence[Branch]) -> Steps:
        talk = Discussion(branches[0])
        yield from talk.ask([self.explorer] * self.n, [""] * self.n)
        return talk

    def _synthesise(self, question: Question, talk: Any) -> Steps:
        if not talk.over:
            talk.warnings += collapse_warnings((yield from self.read(talk)))
        return talk.conclude(self.extract)

    def read(self, talk: Discussion) -> Steps:
        """A round of the synthesiser over the candidates of the last one -> list[Synthesis]."""
        candidates = list(self.strangers) or sound(talk.last)
        rng = yield from draws(talk.question)
        orders = [rng.sample(candidates, len(candidates)) for _ in range(self.orders)]
        replies = yield from talk.ask(
            [self.synthesiser] * self.orders, [self.shown.of(order) for order in orders]
        )
        return syntheses(replies, talk.answers(self.extract, replies), orders, self.extract)


@dataclass(frozen=True)
class SSA(ExplorerSynthesiser):
    """Sample set aggregator: the same model, or a small one trained for it, reads K samples
    (Learning to Reason Across Parallel Samples for LLM Reasoning)."""

    card: ClassVar = Card("ssa", "synthesis", "Sample Set Aggregator", PRIMITIVES)


@dataclass(frozen=True)
class A2R(ExplorerSynthesiser):
    """Small explorers and a larger synthesiser: two models in one process. One of them solves the
    question, the other one is given as the engine of its `Author` (A2R: An Asymmetric Two-Stage
    Reasoning Framework for Parallel Reasoning).

    The synthesiser reasons again over what the explorers found, and samples as they do.
    """

    card: ClassVar = Card(
        "a2r", "synthesis", "Asymmetric Two-Stage Reasoning", (*PRIMITIVES, "delegate")
    )

    n: int = 4
    synthesiser: Author = field(default_factory=Author)


@dataclass(frozen=True)
class GenerativeSelfAggregation(ExplorerSynthesiser):
    """The model reads its own diverse responses and writes a new one; no training, no vote."""

    card: ClassVar = Card(
        "generative-self-aggregation",
        "synthesis",
        "Generative Self-Aggregation",
        PRIMITIVES,
    )

    n: int = 4
    shown: Quotation = field(default_factory=partial(Quotation.named, "self_aggregation"))
