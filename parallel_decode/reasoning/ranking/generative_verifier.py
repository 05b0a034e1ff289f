"""Generative verifiers: the model says whether a solution is right, or how good it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from parallel_decode.engine import Branch, Engine, SamplingParams, Steps
from parallel_decode.reasoning.ranking.follow_up import follow_up
from parallel_decode.reasoning.reply_share import share
from parallel_decode.reasoning.template import Template


@dataclass(frozen=True)
class GenerativeVerifier:
    """A scorer: the probability of "Yes" to the question whether a solution is right (Zhang et al.,
    Generative Verifiers, 2024). With rationales (GenRM-CoT), the mean over K of them.

    It asks for a model that was trained to answer such questions.

    Args:
        ask: behind the solution, or behind a rationale; a template without places.
        yes: the reply that counts, as it follows `ask`.
        no: the other reply, for p(yes) / (p(yes) + p(no)); "" for p(yes).
        rationales: K; 0 to ask at once.
        reason: begins a rationale.
        params: how rationales are drawn.
        engine: with the model that is asked; None for the one that wrote the solutions.
    """

    ask: Template = field(default_factory=partial(Template.named, "verify"))
    yes: str = " Yes"
    no: str = ""
    rationales: int = 0
    reason: Template = field(default_factory=partial(Template.named, "verify_reason"))
    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.7))
    engine: Engine | None = None

    def __post_init__(self) -> None:
        if self.rationales < 0:
            raise ValueError(f"rationales must not be negative, got {self.rationales}")
        if not self.yes:
            raise ValueError("yes must not be empty")
        self.ask.require()
        self.reason.require()

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        replies = (self.yes, self.no) if self.no else (self.yes,)
        verdicts = yield from follow_up(
            branches,
            self.ask.fill(),
            replies,
            self.engine,
            max(1, self.rationales),
            self.reason.fill(),
            self.params if self.rationales else None,
        )
        return [math.fsum(map(share, copies)) / len(copies) for copies in verdicts]


@dataclass(frozen=True)
class LlmJudge:
    """A scorer: the expected grade of a solution, from 1 to 10, over the probabilities of the
    grades as the next text (Zheng et al., 2023; Liu et al., G-Eval, 2023).

    It asks for a model that was trained to answer such questions; of another one the grades are
    noise. It costs the tokens of `ask` and of each grade, for each solution.

    Args:
        ask: behind the solution; a template without places.
        grades: the replies, the lowest first; the first counts as 1.
        engine: with the model that is asked; None for the one that wrote the solutions.
    """

    ask: Template = field(default_factory=partial(Template.named, "judge"))
    grades: tuple[str, ...] = tuple(f" {grade}" for grade in range(1, 11))
    engine: Engine | None = None

    def __post_init__(self) -> None:
        if len(set(self.grades)) != len(self.grades) or len(self.grades) < 2 or "" in self.grades:
            raise ValueError(f"grades must be two or more different texts, got {self.grades!r}")
        self.ask.require()

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        verdicts = yield from follow_up(branches, self.ask.fill(), self.grades, self.engine)
        return [expected_grade(self.grades, copies[0]) for copies in verdicts]


def expected_grade(grades: Sequence[str], logprobs: Sequence[Sequence[float]]) -> float:
    """Σ g·p(g) / Σ p(g), the first grade being 1.

    Where one grade begins another ("1" and "10") and stands for its first tokens, the longer one's
    probability is not the shorter one's as well.

    Args:
        grades: texts of the grades.
        logprobs: of each grade's tokens.
    """
    chances = [math.exp(math.fsum(row)) for row in logprobs]
    alone = list(chances)
    for i, grade in enumerate(grades):
        for j, other in enumerate(grades):
            begins = other.startswith(grade) and len(logprobs[j]) > len(logprobs[i])
            if begins and list(logprobs[j][: len(logprobs[i])]) == list(logprobs[i]):
                alone[i] = max(0.0, alone[i] - chances[j])
    total = math.fsum(alone)
    if not total:
        return (1 + len(grades)) / 2
    return math.fsum(number * chance for number, chance in enumerate(alone, 1)) / total
