"""Recursive self-aggregation: a population of solutions, each made of some of those before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.author import Author
from parallel_decode.reasoning.discussion import Discussion
from parallel_decode.reasoning.draws import draws
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.interaction.termination import semantic_entropy
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.quotation import Quotation
from parallel_decode.reasoning.stages import root
from parallel_decode.reasoning.synthesis.shown import collapse_warnings, sound, syntheses


@dataclass(frozen=True)
class RecursiveSelfAggregation(Method):
    """P writes a population of solutions; in each round every member of the next one is written
    from a random subset of this one, until `rounds` are over; A lets the last population vote
    (Recursive Self-Aggregation Unlocks Deep Thinking in Large Language Models).

    A member that fails leaves the population. A population that agrees has nothing left to
    aggregate: a warning names the round.

    Args:
        population: N, solutions of a round.
        subset: K, that are read for one of the next round; all there are, where there are fewer.
        rounds: T, after the first population; 0 is self-consistency.
        final: "majority", or "random" for any one of the last population, as the seed says.
        author: who writes.
        shown: how a subset is shown.
        extract: text of a solution to its answer.
    """

    card: ClassVar = Card(
        "recursive-self-aggregation",
        "synthesis",
        "Recursive Self-Aggregation",
        ("prefill", "fork", "extend", "prune"),
    )

    population: int = 16
    subset: int = 4
    rounds: int = 10
    final: Literal["majority", "random"] = "majority"
    author: Author = field(default_factory=Author)
    shown: Quotation = field(default_factory=partial(Quotation.named, "synthesis"))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, population=self.population, subset=self.subset)
        at_least(0, rounds=self.rounds)
        if self.final not in ("majority", "random"):
            raise ValueError(f"final must be majority or random, got {self.final!r}")
        self.shown.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(root, self._evolve, self._conclude)

    def _evolve(self, branches: Sequence[Branch]) -> Steps:
        talk = Discussion(branches[0])
        rng = yield from draws(talk.question)
        authors = [self.author] * self.population
        yield from talk.ask(authors, [""] * self.population)
        answers = talk.answers(self.extract, talk.last)
        entropies = [semantic_entropy(answers)]
        for _ in range(self.rounds):
            if talk.over:
                break
            texts = sound(talk.last)
            subsets = [rng.sample(texts, min(self.subset, len(texts))) for _ in authors]
            yield from talk.ask(authors, [self.shown.of(subset) for subset in subsets])
            answers = talk.answers(self.extract, talk.last)
            entropies.append(semantic_entropy(answers))
        agreed = entropies.index(0.0) if 0.0 in entropies else len(entropies)
        if agreed < len(entropies) - 1:
            talk.warnings.append(
                f"the population has one answer from round {agreed} on, of {len(entropies) - 1}:"
                " its diversity has collapsed"
            )
        if len(talk.rounds) > 1:
            talk.warnings += collapse_warnings(syntheses(talk.last, answers, subsets, self.extract))
        return talk

    def _conclude(self, question: Question, talk: Any) -> Steps:
        weights = None
        if self.final == "random":
            rng = yield from draws(talk.question)
            answers = talk.answers(self.extract, talk.last)
            voting = [place for place, answer in enumerate(answers) if answer is not None]
            chosen = rng.choice(voting) if voting else None
            weights = [float(place == chosen) for place in range(len(talk.last))]
        return talk.conclude(self.extract, weights=weights)
