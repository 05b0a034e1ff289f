"""Traces of the reasoner with their labels, sampled through the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel_decode import Branch, Engine, Extend, Fork, Prefill, Prune, SamplingParams, Score
from parallel_decode.engine import Steps
from parallel_decode.reasoning.ranking.step_statistics import step_statistics
from parallel_decode.tasks import TASKS, Problem

STEP = "\n"
PARAMS = SamplingParams(temperature=1.0, max_tokens=256)
BATCH_PROBLEMS = 64


@dataclass
class Trace:
    """One sampled solution.

    Attributes:
        question: number of its problem.
        answer: as votes count it.
        right: whether it is.
        steps: of each step, how right it is: 0 or 1 by the exact checker, or a share of roll-outs.
            Empty where the text's lines are not those of a solution.
        inputs: what a verifier on the trunk sees at the steps' ends, [num_steps, hidden_size + 10]:
            the hidden state and the statistics.
        mean_logprob: of the sampled tokens.
    """

    question: int
    answer: str | None
    right: bool
    steps: list[float]
    inputs: Tensor
    mean_logprob: float

    @property
    def labels(self) -> Tensor:
        """[num_steps, 2]: whether the outcome is right, whether the step is."""
        return torch.tensor([[float(self.right), step] for step in self.steps])


def sample(
    engine: Engine, problems: Sequence[Problem], num_samples: int, seed: int, rollouts: int = 0
) -> list[Trace]:
    """`num_samples` traces of each problem.

    Args:
        rollouts: completions of each step that make its label (Math-Shepherd); 0 for the exact
            checker.
    """
    traces = []
    for first in range(0, len(problems), BATCH_PROBLEMS):
        programs = [
            engine.submit(_traces(number, problem, num_samples, rollouts), seed=seed)
            for number, problem in enumerate(problems[first : first + BATCH_PROBLEMS], first)
        ]
        engine.wait(programs)
        for program in programs:
            if program.error is not None:
                raise program.error
            traces += program.result
        print(f"{len(traces)} traces", flush=True)
    return traces


def _traces(number: int, problem: Problem, num_samples: int, rollouts: int) -> Steps:
    root = yield Prefill(problem.question)
    kids = yield Fork(root, num_samples)
    yield Extend(kids, PARAMS, keep_hidden=STEP)
    states = yield Score(kids, head=lambda hidden: hidden, at=STEP)
    task = TASKS[problem.task]
    traces = []
    for kid, rows in zip(kids, states, strict=True):
        steps = [float(verdict) for verdict in task.check_steps(problem, kid.text)]
        if len(steps) != len(rows):  # there are empty lines, which no solution has
            steps = []
        elif rollouts:
            steps = yield from _shares(problem, kid, rollouts)
        answer = task.extract_answer(kid.text)
        statistics = torch.tensor(step_statistics(kid, kid.step_ends(STEP)))
        traces.append(
            Trace(
                number,
                answer,
                answer is not None and task.grade(problem, answer),
                steps,
                torch.cat([torch.stack(rows), statistics], dim=1),
                kid.mean_logprob,
            )
        )
    yield Prune(kids)
    return traces


def _shares(problem: Problem, kid: Branch, rollouts: int) -> Steps:
    """Of each step, the share of its completions that are right; of the last, whether it is."""
    *ends, _ = kid.step_ends(STEP)
    families = yield [Fork(kid, rollouts, at=end + 1) for end in ends]
    flat = [branch for family in families for branch in family]
    yield Extend(flat, PARAMS)
    task = TASKS[problem.task]
    shares = [sum(task.check(problem, b.text) for b in family) / rollouts for family in families]
    yield Prune(flat)
    return [*shares, float(task.check(problem, kid.text))]
