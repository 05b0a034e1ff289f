"""A pool of traces: every question sampled once, so that methods are compared on the same samples.

Each trace is what one branch of self-consistency is; a method of n samples gets the first n of a
question's, in the order in which they were drawn. So a pool of many samples holds all smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Branch, Extend, Steps
from parallel_decode.questions import Question
from parallel_decode.reasoning import Verifier
from parallel_decode.reasoning.scorer import Scorer, score_branches
from parallel_decode.reasoning.stages import Copies

MOST_BRANCHES = 2048
"""That are decoded together."""


@dataclass(frozen=True)
class Trace:
    """One sample.

    Attributes:
        answer: what it votes for; None where it says nothing.
        correct: by the exact checker, which no method sees.
        tokens, logprobs, entropies: of each sampled token.
        scores: by the name of the scorer.
        steps: of each step, by the name of the verifier.
    """

    text: str
    answer: str | None
    correct: bool
    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    self_certainty: float
    scores: dict[str, float]
    steps: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Pool:
    """traces: n for each question."""

    questions: list[Question]
    traces: list[list[Trace]]
    seed: int

    def __iter__(self) -> Iterator[tuple[Question, list[Trace]]]:
        return iter(zip(self.questions, self.traces, strict=True))

    @classmethod
    def sample(
        cls,
        engine: Engine,
        questions: Sequence[Question],
        n: int,
        params: SamplingParams,
        seed: int,
        scorers: Mapping[str, Scorer] | None = None,
        verifiers: Mapping[str, Verifier] | None = None,
    ) -> Pool:
        """n traces of each question, with what each scorer says of them, and each verifier of their
        steps.

        Raises:
            RuntimeError: a question could not be sampled.
        """
        at_once = max(1, MOST_BRANCHES // n)
        traces: list[list[Trace]] = []
        with Progress(transient=True) as bar:
            task = bar.add_task(f"sampling {n} traces a question", total=len(questions))
            for first in range(0, len(questions), at_once):
                programs = [
                    engine.submit(
                        _traces(question, n, params, scorers or {}, verifiers or {}), seed=seed
                    )
                    for question in questions[first : first + at_once]
                ]
                if engine.wait(programs):
                    raise KeyboardInterrupt
                for program in programs:
                    if program.error is not None:
                        raise RuntimeError(f"a question failed: {program.error}")
                    traces.append(program.result)
                bar.advance(task, len(programs))
        return cls(list(questions), traces, seed)


def _traces(
    question: Question,
    n: int,
    params: SamplingParams,
    scorers: Mapping[str, Scorer],
    verifiers: Mapping[str, Verifier],
) -> Steps:
    branches = yield from Copies(n)(question.prompt)
    looked_at = sorted({v.keep_hidden for v in verifiers.values()} - {""})
    yield Extend(branches, params, keep_hidden=looked_at)
    scores, steps = {}, {}
    for name, scorer in scorers.items():
        scores[name] = yield from score_branches(scorer, branches)
    for name, verifier in verifiers.items():
        steps[name] = yield from verifier.step_scores(branches)
    return [
        trace_of(
            question,
            branch,
            {name: column[i] for name, column in scores.items()},
            {name: column[i] for name, column in steps.items()},
        )
        for i, branch in enumerate(branches)
    ]


def trace_of(
    question: Question, branch: Branch, scores: dict[str, float], steps: dict[str, list[float]]
) -> Trace:
    """What is kept of a branch, with its scores."""
    records = [record for record in branch.records if record.sampled]
    text = branch.text
    return Trace(
        text,
        *verdict(question, text),
        tokens=np.array(branch.output_tokens, np.int64),
        logprobs=np.array([record.logprob for record in records], np.float32),
        entropies=np.array([record.entropy for record in records], np.float32),
        self_certainty=float(np.mean([record.self_certainty for record in records])),
        scores=scores,
        steps=steps,
    )


def verdict(question: Question, text: str) -> tuple[str | None, bool]:
    """The answer of a text, and whether it is right."""
    answer = question.extract(text)
    return answer, answer is not None and question.grade(answer)
