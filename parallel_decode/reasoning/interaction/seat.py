"""SEAT: rounds of parallel answers, each from those before, until they agree enough."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, Extend, Fork, Join, Prune, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.interaction.termination import (
    Termination,
    low_entropy,
    semantic_entropy,
)
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.solution import Solution
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.template import Template
from parallel_decode.reasoning.vote import tally


@dataclass(frozen=True)
class SEAT(Method):
    """D copies the question; P draws a round of answers and, until the rule says that they agree
    enough, another one behind the question and the answers of the round before; A lets the answers
    of the last round vote.

    Adaptive Termination for Multi-round Parallel Reasoning: An Universal Semantic Entropy-Guided
    Framework (Xu et al., 2025).

    It asks for a model that makes something of earlier attempts. Answers that agree may be wrong.

    Args:
        n: answers of a round.
        rounds: at the most.
        stop: semantic entropies of the rounds so far to whether that is enough; `secretary` is a
            rule without a threshold.
        attempt: how an answer of the round before is shown, with {number} and {text}.
        again: what follows the last of them; a template without places.
        params: how answers are drawn.
        extract: text of an answer, without what it was shown, to what votes.
    """

    card: ClassVar = Card(
        "seat", "interaction", "Xu et al., 2025", ("prefill", "fork", "extend", "join", "prune")
    )

    n: int = 4
    rounds: int = 4
    stop: Termination = field(default_factory=lambda: low_entropy(0.5))
    attempt: Template = field(default_factory=partial(Template.named, "seat_attempt"))
    again: Template = field(default_factory=partial(Template.named, "seat_again"))
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds)
        self.attempt.require("number", "text")
        self.again.require()
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._repeat, self._conclude)

    def _repeat(self, branches: Sequence[Branch]) -> Steps:
        question = branches[0].parent
        assert question is not None
        entropies: list[float] = []
        for number in range(self.rounds):
            yield Extend(branches, self.params)
            sound = [branch for branch in branches if branch.status != "failed"]
            if not sound or any(b.finish_reason in ("aborted", "budget") for b in sound):
                break
            entropies.append(semantic_entropy(self._answers(sound)))
            if self.stop(entropies, self.rounds) or number == self.rounds - 1:
                break
            try:
                following = yield from self._next(question, sound)
            except ValueError:  # the context has no room for another round
                break
            yield Prune(branches)
            branches = following
        return list(branches)

    def _next(self, question: Branch, branches: Sequence[Branch]) -> Steps:
        """The question with the answers of the last round behind it, for each of the next."""
        numbers = {id(branch): str(number) for number, branch in enumerate(branches, 1)}
        shown = yield Join(
            question,
            branches,
            "answer",
            extract=lambda b: self.attempt.fill(number=numbers[id(b)], text=b.own_text.strip()),
        )
        yield Extend([shown], tokens=self.again.fill())
        kids = yield Fork(shown, self.n)
        yield Prune([shown])
        return kids

    def _answers(self, branches: Sequence[Branch]) -> list[str | None]:
        return answers_of(self.extract, [branch.own_text for branch in branches])

    def _conclude(self, question: Question, branches: Sequence[Branch]) -> Steps:
        yield from ()
        sound = [branch for branch in branches if branch.status != "failed"]
        answers = self._answers(sound)
        weights = [float(answer is not None) for answer in answers]
        votes = tally(answers, weights)
        ids = [id(branch) for branch in sound]
        return Solution.of(
            branches,
            dict(zip(ids, answers, strict=True)),
            dict(zip(ids, weights, strict=True)),
            votes,
            votes[0][0] if votes else None,
        )
