"""The experiments that sample for themselves: searches, and the prefix trap."""

import math
import random

import pytest

from benchmarks.experiments import prefix_trap, search
from benchmarks.experiments.scores import open_verifiers
from parallel_decode import Engine, SamplingParams
from parallel_decode.questions import load_questions
from parallel_decode.tasks import TASKS

PARAMS = SamplingParams(max_tokens=160)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner", threads=1, kv_tokens=1 << 15)


@pytest.mark.parametrize("value", ["verifier", "constant", "oracle"])
def test_every_search_solves_with_every_value(engine, value):
    questions = [*load_questions("countdown", 2), *load_questions("dag", 1)]
    scorer = {
        "verifier": open_verifiers("reasoner-verifier")["process"],
        "constant": search.constant,
        "oracle": search.exact(questions),
    }[value]

    def make(extract):
        return search.searches(4, scorer, 1.0, 160, extract)

    for name in make(questions[0].extract):
        run = search.solve(engine, questions, name, make, seed=0)
        assert [s for s in run.solutions if isinstance(s, Exception)] == [], name
        assert len(run.verdicts) == 3 and engine.blocks_in_use == 0
        row = search.of_runs([run])
        assert row["failed_questions"] == 0 and math.isfinite(row["unique_answers"])


def test_a_question_that_fails_is_wrong(engine):
    def bad(branches):
        raise ValueError("no score")

    questions = load_questions("countdown", 2)
    run = search.solve(
        engine, questions, "REBASE", lambda e: search.searches(4, bad, 1.0, 160, e), seed=0
    )
    assert run.verdicts == [0, 0] and run.sound == [] and engine.blocks_in_use == 0


def test_wrong_first_steps_are_wrong():
    for kind in ("chain", "dag"):
        for question in load_questions(kind, 20):
            step = prefix_trap.wrong_step(question.problem, random.Random(0))
            assert TASKS[kind].check_steps(question.problem, step) == [False]
            assert "=" in step and "\n" not in step


def test_which_branches_are_poisoned(engine):
    [question] = load_questions("dag", 1)
    verifiers = open_verifiers("reasoner-verifier")
    for arm, shares in {"none": 0, "half": 2, "all": 4}.items():
        steps = prefix_trap.tangle(question, 4, 8, arm, PARAMS, verifiers, 3)
        tangle = engine.run_program(steps, seed=3)
        assert sum(tangle.poisoned) == 2 * shares
        for trace, poisoned in zip(tangle.traces, tangle.poisoned, strict=True):
            first = TASKS["dag"].check_steps(question.problem, trace.text)[0]
            assert not (poisoned and first)
            assert len(trace.steps["process"]) >= 1
        assert all(map(math.isfinite, tangle.diversity.values()))
        assert engine.blocks_in_use == 0
        again = engine.run_program(
            prefix_trap.tangle(question, 4, 8, arm, PARAMS, verifiers, 3), seed=3
        )
        assert [t.text for t in again.traces] == [t.text for t in tangle.traces]


def test_recovery():
    assert prefix_trap.recovery(0.5, 0.25, 0.75) == 0.5
    assert prefix_trap.recovery(0.5, 0.5, 0.5) is None
