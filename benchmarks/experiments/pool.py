"""A pool of traces: every question sampled once, so that methods are compared on the same samples.

Each trace is what one branch of self-consistency is; a method of n samples gets the first n of a
question's, in the order in which they were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.experiments.questions import Question
from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Branch, Extend, Steps
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
    """

    text: str
    answer: str | None
    correct: bool
    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    self_certainty: float
    scores: dict[str, float]

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
    ) -> Pool:
        """n traces of each question, with the scores that each scorer gives them.

        Raises:
            RuntimeError: a question could not be sampled.
        """
        at_once = max(1, MOST_BRANCHES // n)
        traces: list[list[Trace]] = []
        with Progress(transient=True) as bar:
            task = bar.add_task(f"sampling {n} traces a question", total=len(questions))
            for first in range(0, len(questions), at_once):
                programs = [
                    engine.submit(_traces(question, n, params, scorers or {}), seed=seed)
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
    question: Question, n: int, params: SamplingParams, scorers: Mapping[str, Scorer]
) -> Steps:
    branches = yield from Copies(n)(question.prompt)
    yield Extend(branches, params)
    columns = {}
    for name, scorer in scorers.items():
        columns[name] = yield from score_branches(scorer, branches)
    return [
        _trace(question, branch, {name: scores[i] for name, scores in columns.items()})
        for i, branch in enumerate(branches)
    ]


def _trace(question: Question, branch: Branch, scores: dict[str, float]) -> Trace:
    records = [record for record in branch.records if record.sampled]
    answer = question.extract(branch.text)
    return Trace(
        text=branch.text,
        answer=answer,
        correct=answer is not None and question.grade(answer),
        tokens=np.array(branch.output_tokens, np.int64),
        logprobs=np.array([record.logprob for record in records], np.float32),
        entropies=np.array([record.entropy for record in records], np.float32),
        self_certainty=float(np.mean([record.self_certainty for record in records])),
        scores=scores,
    )
