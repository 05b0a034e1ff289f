"""The formats of `reasoner-tools`: what it is taught is what methods show it, and tools answer."""

import importlib
import re
from pathlib import Path

import pytest

from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import SimulatedExecutor
from parallel_decode.reasoning.tools import (
    reasoner_async,
    reasoner_plan,
    reasoner_toolbox,
    reasoner_turns,
)
from parallel_decode.reasoning.tools.reasoner_format import ASYNC, PLAN, TURNS, compute
from parallel_decode.tasks import TASKS, load_split
from parallel_decode.tasks.program import Program
from tests.training_text import TrainingText

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EXTRACT = TASKS["dag"].extract_answer
GREEDY = SamplingParams(temperature=0, max_tokens=400)
FORMS = {PLAN: reasoner_plan, TURNS: reasoner_turns, ASYNC: reasoner_async}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("reasoner-tools", threads=1, kv_tokens=1 << 16)


@pytest.mark.parametrize("kind", [("dag", 2), ("chain", 4)], ids=["dag", "chain"])
@pytest.mark.parametrize("tag", FORMS)
def test_the_training_form_is_what_the_method_makes(monkeypatch, engine, tag, kind):
    """Token by token, what is told included; where results interrupt is a matter of time."""
    monkeypatch.syspath_prepend(EXAMPLES)
    text = TrainingText.of("format_tools", "reasoner-tools", kind)
    first = text.tokens.index(engine.tokenizer.encode(tag, add_bos=False)[0])
    length = 1 + text.tokens[first:].index(engine.tokenizer.eos_ids[0])
    taught = text.tokens[first : first + length]
    [problem] = load_split("test", 1, 0, {kind: 1})
    method = FORMS[tag](reasoner_toolbox(), GREEDY, EXTRACT)
    solution = engine.solve(problem.question, method)
    assert solution.answer == problem.answer
    branch = solution.paths[0]
    shown = engine.tokenizer.decode(taught)
    written = tag + branch.text.split(tag)[1]
    if tag == ASYNC:
        results = r"<result>\d+ \d+\n"
        assert re.sub(results, "", written) == re.sub(results, "", shown)
        assert sorted(re.findall(results, written)) == sorted(re.findall(results, shown))
    else:
        assert written == shown


def last_of(program: Program, values: dict[str, int]) -> str:
    return str(values[program.groups[-1][-1].name])


@pytest.mark.parametrize("tag", FORMS)
def test_the_answer_is_what_the_tool_says(engine, tag):
    """Right as long as it computes right; of a tool that is off by one the answer is what a program
    of its steps would give, and so is not the right one."""
    problems = load_split("test", 40, 0, {("chain", 8): 1, ("dag", 4): 1})

    def wrong(**assignment: str) -> int:
        [worth] = assignment.values()
        return (compute(**assignment) + 1) % int(worth.split(" mod ")[1])

    engine.executor = SimulatedExecutor(lambda call, args: 1.0)  # the same run each time
    right, followed, calls = [], [], 0
    for tool in (compute, wrong):
        made: list[str] = []

        def counted(tool=tool, made=made, **assignment: str) -> int:
            made.append(next(iter(assignment)))
            return tool(**assignment)

        method = FORMS[tag](reasoner_toolbox(counted), GREEDY, EXTRACT)
        solutions = engine.solve_many([p.question for p in problems], method)
        for problem, solution in zip(problems, solutions, strict=True):
            program = Program.parse(problem.question)
            if tool is compute:
                right.append(solution.answer == problem.answer)
                calls += sum(bool(statement.op) for statement in program)
            else:
                values: dict[str, int] = {}
                for s in program:
                    left = values[s.left] if s.left in values else int(s.left)
                    if s.op:
                        place = values[s.right] if s.right in values else int(s.right)
                        left = wrong(**{s.name: f"{left}{s.op}{place} mod {program.modulus}"})
                    values[s.name] = left
                followed.append(solution.answer == last_of(program, values))
        assert len(made) >= 0.9 * calls
    assert sum(right) / len(right) > 0.85
    assert sum(followed) / len(followed) > 0.85
    assert engine.blocks_in_use == 0


def test_calls_of_a_plan_run_side_by_side(engine):
    """Four sub-chains of three calls and a reduction of three: six calls deep, so that fifteen
    take the time of six under a clock on which decoding takes none; one a turn takes as long,
    as the turns are levels; a chain can save nothing."""
    seconds = {}
    depths = {("dag", 6): 6, ("chain", 8): 8}
    for kind in depths:
        problems = load_split("test", 8, 0, {kind: 1})
        for tag, form in FORMS.items():
            for problem in problems:
                clock = SimulatedExecutor(lambda call, args: 1.0)
                engine.executor = clock
                solution = engine.solve(problem.question, form(reasoner_toolbox(), GREEDY, EXTRACT))
                if solution.answer == problem.answer:
                    seconds.setdefault((kind, tag), []).append(clock.now())
    for kind, depth in depths.items():
        for tag in FORMS:
            taken = seconds[kind, tag]
            assert len(taken) >= 6
            assert taken == pytest.approx([depth] * len(taken))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("7*3", "such as"),
        ("7/3 mod 5", "such as"),
        ("$1*3 mod 5", "such as"),
        ("1+1 mod 0", "above"),
    ],
)
def test_the_tool_says_what_it_does_not_compute(expression, message):
    with pytest.raises(ValueError, match=message):
        compute(b=expression)
    assert compute(b="3-5 mod 7") == 5
    with pytest.raises(ValueError):
        compute()
    with pytest.raises(ValueError):
        compute(a="1+1 mod 3", b="1+1 mod 3")


def test_levels_need_what_comes_before_alone(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    levels = importlib.import_module("format_tools").levels

    for problem in load_split("test", 20, 0, {("dag", 7): 1, ("chain", 5): 1}):
        program = Program.parse(problem.question)
        steps = [statement for statement in program if statement.op]
        done: set[str] = set()
        for level in levels(steps):
            needs = {x for s in level for x in (s.left, s.right)} & {s.name for s in steps}
            assert needs <= done
            done |= {s.name for s in level}
        assert done == {s.name for s in steps}
