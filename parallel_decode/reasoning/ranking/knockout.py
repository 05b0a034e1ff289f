"""Knockout: solutions meet in pairs, the better one goes on (Liu et al., PairJudge RM, 2025)."""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

from parallel_decode.engine import (
    Branch,
    Delegate,
    Engine,
    Prefill,
    Prune,
    SamplingParams,
    Score,
    Steps,
)
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor, answers_of
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.reply_share import share
from parallel_decode.reasoning.scorer import Scorer, mean_logprob, ranked, score_branches
from parallel_decode.reasoning.solution import Solution
from parallel_decode.reasoning.stages import Copies, Samples
from parallel_decode.reasoning.template import Template

Pair = tuple[Branch, Branch]
Comparator = Callable[[Sequence[Pair]], Any]
"""Pairs to the probability, each, that the first is the better one. A comparator that asks a model
is a generator function: it yields operations and returns the numbers."""


@dataclass(frozen=True)
class PairwiseJudge:
    """A comparator: which of two solutions the model prefers, as the probability of the reply that
    names the first.

    It asks for a model that was trained to compare. A model that prefers a place, whatever stands
    there, is found out by asking in both orders, as `Knockout` does.

    Args:
        compare: template with the places question, first and second.
        replies: those that name the first and the second solution.
        engine: with the model that is asked; None for the one that wrote the solutions.
    """

    compare: Template = field(default_factory=partial(Template.named, "compare"))
    replies: tuple[str, str] = (" A", " B")
    engine: Engine | None = None

    def __post_init__(self) -> None:
        self.compare.require("question", "first", "second")
        if len(set(self.replies)) != 2 or "" in self.replies:
            raise ValueError(f"replies must be two different texts, got {self.replies!r}")

    def __call__(self, pairs: Sequence[Pair]) -> Steps:
        texts = [
            self.compare.fill(
                question=first.text_before_output.strip(), first=first.text, second=second.text
            )
            for first, second in pairs
        ]
        if self.engine is None:
            return (yield from self._ask(texts))
        return (yield Delegate(self.engine, self._ask(texts)))

    def _ask(self, texts: Sequence[str]) -> Steps:
        roots = yield [Prefill(text) for text in texts]
        columns = yield [Score(roots, continuation=reply) for reply in self.replies]
        yield Prune(roots)
        return [share(replies) for replies in zip(*columns, strict=True)]


class Match(NamedTuple):
    """Two contestants of a round, by number; the second is None where the first has no match."""

    first: int
    second: int | None


def matches(contestants: Sequence[int]) -> list[Match]:
    """A round: of contestants in the order of their seeds the first meets the last; the first of an
    odd number goes on by itself.

    From N contestants there are N - 1 matches in ceil(log2 N) rounds.
    """
    byes, rest = contestants[: len(contestants) % 2], contestants[len(contestants) % 2 :]
    half = len(rest) // 2
    pairs = zip(rest[:half], reversed(rest[half:]), strict=True)
    return [Match(one, None) for one in byes] + [Match(*pair) for pair in pairs]


@dataclass(frozen=True)
class Knockout(Method):
    """D copies the question, P samples, A holds a tournament of the answers.

    Candidates with the same answer stand together, and the best of them by `scorer` plays for all.
    Groups are seeded by size, those of one size by `scorer`. An even match is the better seed's.

    Args:
        n: samples.
        comparator: of two solutions.
        both_orders: play each match twice, with the solutions exchanged, and take the mean: what a
            comparator gives to a place counts for nothing then.
        scorer: chooses who plays for an answer.
        params: how samples are drawn.
        extract: text of a branch to its answer; a branch without one does not take part.
    """

    card: ClassVar = Card(
        "knockout",
        "ranking",
        "Liu et al., 2025",
        ("prefill", "fork", "extend", "score", "prune"),
    )

    n: int = 16
    comparator: Comparator = field(default_factory=PairwiseJudge)
    both_orders: bool = True
    scorer: Scorer = mean_logprob
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), Samples(self.params), self._tournament)

    def _tournament(self, question: Question, branches: Sequence[Branch]) -> Steps:
        sound = [branch for branch in branches if branch.status != "failed"]
        found = answers_of(self.extract, [branch.text for branch in sound])
        answers = dict(zip(map(id, sound), found, strict=True))
        yield from score_branches(self.scorer, sound)
        groups: dict[str, list[Branch]] = {}
        for branch in ranked(sound):
            answer = answers[id(branch)]
            if answer is not None:
                groups.setdefault(answer, []).append(branch)
        seeds = sorted(groups, key=lambda answer: -len(groups[answer]))
        players = [groups[answer][0] for answer in seeds]
        left = list(range(len(seeds)))
        rounds = [0] * len(seeds)  # that each one was in
        while left:
            for number in left:
                rounds[number] += 1
            if len(left) == 1:
                break
            played = matches(left)
            wins = yield from self._compare(
                [(players[m.first], players[m.second]) for m in played if m.second is not None]
            )
            results = iter(wins)
            # The first is the better seed: an even match is its.
            left = sorted(
                m.first if m.second is None or next(results) >= 0.5 else m.second for m in played
            )
        weights = {id(player): float(rounds[i]) for i, player in enumerate(players)}
        votes = sorted(zip(seeds, map(float, rounds), strict=True), key=lambda vote: -vote[1])
        answer = seeds[left[0]] if left else None
        return Solution.of(branches, answers, weights, votes, answer)

    def _compare(self, pairs: Sequence[Pair]) -> Steps:
        """Probability that the first is the better one, of each pair."""
        asked = list(pairs)
        if self.both_orders:
            asked += [(second, first) for first, second in pairs]
        given = self.comparator(asked)
        if isinstance(given, Generator):
            given = yield from given
        chances = [float(chance) for chance in given]
        if len(chances) != len(asked):
            raise ValueError(f"the comparator gave {len(chances)} results for {len(asked)} pairs")
        for chance in chances:
            if not 0 <= chance <= 1:
                raise ValueError(f"the comparator gave {chance}, which is no probability")
        if not self.both_orders:
            return chances
        forth, back = chances[: len(pairs)], chances[len(pairs) :]
        return [math.fsum((a, 1 - b)) / 2 for a, b in zip(forth, back, strict=True)]
