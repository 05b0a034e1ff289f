"""What is only to be seen on samples of a trained model: the vote against its closed form, and
what a method loses by the traces that it ends early."""

import math
from statistics import fmean, stdev

import pytest

from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.reasoning import DeepConfOnline
from parallel_decode.reasoning.extract import after
from parallel_decode.reasoning.metrics import maj_at_k
from parallel_decode.tasks import TASKS, load_split

PARAMS = SamplingParams(max_tokens=200)
EXTRACT = after("answer ")
N = 16


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 16)


@pytest.fixture(scope="module")
def problems() -> list:
    return load_split("test", 40, seed=3)


def is_right(problem, answer) -> bool:
    return answer is not None and TASKS[problem.task].grade(problem, answer)


@pytest.fixture(scope="module")
def pool(engine, problems) -> list:
    """The paths of each question, all of them to their end."""
    return sampled(engine, problems, SelfConsistency(N, PARAMS, EXTRACT))


def sampled(engine, problems, method, seed=0) -> list:
    solutions = engine.solve_many([p.question for p in problems], method, seed=seed)
    return [solution.paths for solution in solutions]


def test_self_consistency_is_as_good_as_the_histogram_of_answers_says(engine, problems):
    """maj@5 of a large pool in closed form, against the method itself on samples of its own."""
    large = sampled(engine, problems, SelfConsistency(64, PARAMS, EXTRACT), seed=1)
    answers = [[path.answer for path in paths] for paths in large]
    right = [
        [is_right(problem, answer) for answer in row]
        for problem, row in zip(problems, answers, strict=True)
    ]
    one, five = (
        [maj_at_k(row, verdicts, k) for row, verdicts in zip(answers, right, strict=True)]
        for k in (1, 5)
    )
    voted = []
    for seed in range(2, 7):
        solutions = engine.solve_many(
            [p.question for p in problems], SelfConsistency(5, PARAMS, EXTRACT), seed=seed
        )
        voted.append([is_right(p, s.answer) for p, s in zip(problems, solutions, strict=True)])
    of_method = [fmean(column) for column in zip(*voted, strict=True)]
    gaining = [i for i in range(len(problems)) if five[i] > one[i] + 0.02]
    assert len(gaining) >= 10
    for group in (range(len(problems)), gaining):
        differences = [of_method[i] - five[i] for i in group]
        error = stdev(differences) / math.sqrt(len(group))
        assert abs(fmean(differences)) < 4 * error
    # The control: what a single sample reaches is not what the method does.
    assert fmean(of_method[i] for i in gaining) > fmean(one[i] + five[i] for i in gaining) / 2


def test_traces_that_deepconf_kills_would_have_been_right_less_often(engine, problems, pool):
    """Its regret, by those very traces to their end: they are the pool's."""
    method = DeepConfOnline(N, 4, 0.5, None, params=PARAMS, extract=EXTRACT)
    solutions = engine.solve_many([p.question for p in problems], method)
    killed: list[bool] = []
    kept: list[bool] = []
    for problem, paths, solution in zip(problems, pool, solutions, strict=True):
        for path, node in zip(paths, solution.tree.children, strict=True):
            assert path.text.startswith(node.text)
            group = killed if node.status == "pruned" else kept
            group.append(is_right(problem, path.answer))
    assert len(killed) > 50 and len(kept) > 50
    # Kills at random would lose as many right ones as there are: this loses fewer, and some.
    assert 0 < fmean(killed) < fmean(kept) - 0.1
