"""Gold traces pass, corrupted ones fail, splits are disjoint and the same everywhere."""

import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_decode.tasks import SPLITS, TASKS, Problem, load_split, split_of, split_steps

KINDS = [(name, d) for name, task in TASKS.items() for d in task.difficulties]
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32)


def draw(kind: tuple[str, int], seed: int) -> tuple[Problem, str]:
    rng = Random(seed)
    problem = TASKS[kind[0]].generate(rng, kind[1])
    return problem, TASKS[kind[0]].solution(problem, rng)


@given(kinds, seeds)
def test_gold_trace_passes(kind, seed):
    problem, trace = draw(kind, seed)
    task = TASKS[problem.task]
    assert problem.question.endswith("\n")
    assert task.check(problem, trace)
    assert all(task.check_steps(problem, trace))
    assert len(task.check_steps(problem, trace)) == len(split_steps(trace))
    assert task.grade(problem, task.extract_answer(trace))


@given(kinds, seeds, st.data())
def test_a_wrong_result_fails_its_own_step(kind, seed, data):
    problem, trace = draw(kind, seed)
    lines = trace.split("\n")
    i = data.draw(st.integers(0, len(lines) - 2))
    head, result = lines[i].rsplit("=", 1)
    lines[i] = f"{head}={(int(result) + 1) % 100}"
    verdicts = TASKS[problem.task].check_steps(problem, "\n".join(lines))
    assert verdicts[:i] == [True] * i
    assert not verdicts[i]


@given(kinds, seeds)
def test_a_wrong_answer_fails(kind, seed):
    problem, trace = draw(kind, seed)
    task = TASKS[problem.task]
    wrong = trace.rsplit("\n", 1)[0] + f"\nanswer {int(problem.answer) + 1}"
    assert not task.check(problem, wrong)
    assert not task.check_steps(problem, wrong)[-1]


@given(kinds, seeds, st.integers(1, 30))
def test_a_trace_that_was_cut_off_has_no_answer(kind, seed, cut):
    problem, trace = draw(kind, seed)
    body = trace.rsplit("\n", 1)[0][:-cut]
    assert TASKS[problem.task].extract_answer(body) is None
    assert not TASKS[problem.task].check(problem, body)


@given(kinds, seeds, st.text(alphabet="abc=+-*|; ?\nanswer0123456789()", max_size=60))
def test_any_text_gets_a_verdict(kind, seed, text):
    problem, _ = draw(kind, seed)
    task = TASKS[problem.task]
    assert len(task.check_steps(problem, text)) == len(split_steps(text))
    assert task.check(problem, "answer " + text) in (True, False)


def test_after_a_wrong_step_what_depends_on_it_is_wrong():
    problem = Problem("chain", 2, "chain mod 10; a=3; b=a*4; c=b+1; c?\n", "3")
    assert TASKS["chain"].check_steps(problem, "b=3*4=4\nc=4+1=5\nanswer 5") == [False] * 3


def test_independent_chains_may_be_solved_in_any_order_but_the_reduction_comes_after():
    question = "dag mod 10; a=3; b=a*4 | c=1; d=c+1 | e=b-d; e?\n"
    problem, task = Problem("dag", 1, question, "0"), TASKS["dag"]
    assert task.check_steps(problem, "d=1+1=2\nb=3*4=2\ne=2-2=0\nanswer 0") == [True] * 4
    assert task.check_steps(problem, "b=3*4=2\ne=2-2=0\nd=1+1=2") == [True, False, True]
    assert task.check_steps(problem, "b=3*4=2\nb=3*4=2") == [True, False]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(3+5)*3", True),
        ("3*(5+3)", True),
        ("3*8", False),  # 8 is not given
        ("(3+5)*3*1", False),  # nor is 1
        ("3+5+3", False),
        ("24", False),
        ("3**3", False),
        ("__import__('os')", False),
        ("(" * 70, False),
        ("", False),
    ],
)
def test_countdown_answers(answer, right):
    problem = Problem("countdown", 3, "countdown 24 from 3 5 3\n", "24")
    assert TASKS["countdown"].check(problem, f"answer {answer}") is right


def test_countdown_step_that_leads_nowhere_is_wrong():
    problem = Problem("countdown", 3, "countdown 24 from 3 5 3\n", "24")
    verdicts = TASKS["countdown"].check_steps(problem, "3+3=6\n5+3=8\n8*3=24\nanswer (5+3)*3")
    assert verdicts == [False, True, True, True]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(3+5)*4", "4*(5+3)"),
        ("9-(2-1)", "1+9-2"),
        ("2*(3*4)", "(4*2)*3"),
        ("5-(3*2)", "5-2*3"),
    ],
)
def test_spellings_of_one_expression_share_their_votes(one, other):
    extract = TASKS["countdown"].extract_answer
    assert extract(f"answer {one}") == extract(f"answer {other}") is not None


def test_different_expressions_do_not_share_votes():
    extract = TASKS["countdown"].extract_answer
    assert extract("answer 2*(3+4)") != extract("answer 2*3+4")
    assert extract("answer 5-3") != extract("answer 3-5")


@given(kinds, seeds)
def test_split_follows_structure_not_presentation(kind, seed):
    problem, _ = draw(kind, seed)
    if problem.task == "countdown":
        head, given_numbers = problem.question.strip().split(" from ")
        turned = " ".join(reversed(given_numbers.split()))
        same = Problem("countdown", problem.difficulty, f"{head} from {turned}\n", problem.answer)
        assert split_of(same) == split_of(problem)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
def test_splits_are_disjoint_and_hold_what_they_say(seed):
    loaded = {split: load_split(split, 60, seed) for split in SPLITS}
    for split, problems in loaded.items():
        assert {split_of(p) for p in problems} == {split}
        assert len({(p.task, TASKS[p.task].canonical(p)) for p in problems}) == 60
    questions = [p.question for problems in loaded.values() for p in problems]
    assert len(set(questions)) == len(questions)


def test_load_split_is_the_same_in_another_process():
    code = (
        "from parallel_decode.tasks import load_split;"
        "print([p.question for p in load_split('test', 20, 7)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str([p.question for p in load_split("test", 20, 7)])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_every_kind_has_test_problems(kind):
    assert len(load_split("test", 20, 0, {kind: 1.0})) == 20


def test_too_small_a_mix_is_refused(monkeypatch):
    monkeypatch.setattr(TASKS["chain"], "moduli", (10,))
    with pytest.raises(ValueError, match="fewer than 100 "):
        load_split("test", 100, 0, {("chain", 1): 1.0})


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'validation'"):
        load_split("validation", 1)
    with pytest.raises(ValueError, match="not 99"):
        TASKS["chain"].generate(Random(0), 99)
