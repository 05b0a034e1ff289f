"""Searches with an exact value, which no method has: whether they reach what can be reached."""

import math
from collections.abc import Sequence

import pytest

from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.engine import Branch
from parallel_decode.reasoning import (
    ABMCTS,
    DVTS,
    ETS,
    MCTS,
    Forest,
    Method,
    ParticleFilter,
    Rebase,
    SelfEvalBeam,
    StepBeam,
    TreeOfThoughts,
)
from parallel_decode.reasoning.extract import after
from parallel_decode.tasks import TASKS, load_split

EXTRACT = after("answer ")
PROBLEMS = {problem.question: problem for problem in load_split("test", 12, mix={("chain", 14): 1})}
BUDGET = 16


def exact(branches: Sequence[Branch]) -> list[float]:
    """1 while every line so far is right, a little where one is not."""
    values = []
    for branch in branches:
        problem = PROBLEMS[branch.text_before_output]
        right = TASKS[problem.task].check_steps(problem, branch.text)
        # A line that is being written is judged once it is there.
        values.append(1.0 if all(right) else 0.01)
    return values


def log_exact(branches: Sequence[Branch]) -> list[float]:
    return [10 * math.log(value) for value in exact(branches)]


def solved(engine: Engine, method: Method) -> tuple[list[bool], int]:
    """Which questions a method gets right, and the tokens that it drew."""
    solutions = engine.solve_many(list(PROBLEMS), method)
    right = []
    for problem, solution in zip(PROBLEMS.values(), solutions, strict=True):
        if isinstance(solution, Exception):
            raise solution
        task = TASKS[problem.task]
        answer = solution.answer and task.normalise(solution.answer)
        right.append(answer is not None and task.grade(problem, answer))
    assert engine.blocks_in_use == 0
    return right, sum(solution.usage.generated_tokens for solution in solutions)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner", kv_tokens=1 << 15, threads=1)


@pytest.fixture(scope="module")
def samples(engine) -> tuple[int, float, int]:
    """Of 16 independent samples: the questions that any gets right, the number that one gets right
    on average, and their tokens."""
    params = SamplingParams(max_tokens=256)
    solutions = engine.solve_many(list(PROBLEMS), SelfConsistency(BUDGET, params, EXTRACT))
    right = [
        [TASKS[problem.task].check(problem, path.text) for path in solution.paths]
        for problem, solution in zip(PROBLEMS.values(), solutions, strict=True)
    ]
    tokens = sum(solution.usage.generated_tokens for solution in solutions)
    return sum(map(any, right)), sum(map(sum, right)) / BUDGET, tokens


def methods(scorer, log_scorer) -> dict[str, Method]:
    common: dict = {"extract": EXTRACT, "scorer": scorer}
    return {
        "step-beam": StepBeam(4, 4, distinct=False, **common),
        "dvts": DVTS(4, 4, **common),
        "rebase": Rebase(BUDGET, **common),
        "ets": ETS(BUDGET, **common),
        "tot-bfs": TreeOfThoughts("bfs", 4, 4, **common),
        "tot-dfs": TreeOfThoughts("dfs", 4, threshold=0.5, **common),
        "mcts": MCTS(14, 2, 4, exploration=0.2, **common),
        "ab-mcts": ABMCTS(40, 4, **common),
        "particle-filter": ParticleFilter(BUDGET, **(common | {"scorer": log_scorer})),
        "self-eval-beam": SelfEvalBeam(4, 4, mix=0.0, temperature=0.0, **common),
        "forest": Forest(DVTS(2, 4, **common), 2),
    }


@pytest.mark.parametrize("name", list(methods(exact, log_exact)))
def test_an_exact_value_reaches_the_ceiling(engine, samples, name):
    """What 16 samples of a question reach when the right one is picked, a search that knows which
    steps are right reaches with about as many tokens. Both counts have a standard error of about 1
    of 12 (a hard step is drawn rightly or not), so that 2 fewer are no evidence."""
    ceiling, one_sample, budget = samples
    right, tokens = solved(engine, methods(exact, log_exact)[name])
    assert sum(right) >= ceiling - 2
    assert sum(right) >= one_sample + 2
    assert tokens < (4 if name in ("mcts", "ab-mcts") else 1.5) * budget
