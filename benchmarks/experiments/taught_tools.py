"""Tools by a model that was taught to call them: how often it is right, and how long it takes.

`reasoner-tools` writes its own calls, of questions of the test split. Each call takes its own time
on the simulated clock. `gain` is the seconds saved against the turns of calls, which go level by
level; the control of `accuracy` are a tool whose results are all 0, and the same model without
tools.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import fmean

from benchmarks.experiments.experiment import against
from benchmarks.experiments.timed_questions import simulated
from benchmarks.report import Value
from parallel_decode import Engine, SamplingParams
from parallel_decode.reasoning import Method, SelfConsistency
from parallel_decode.reasoning.tools import (
    reasoner_async,
    reasoner_plan,
    reasoner_toolbox,
    reasoner_turns,
)
from parallel_decode.tasks import TASKS, Problem, load_split
from parallel_decode.tasks.program import Program

MODEL = "reasoner-tools"
KINDS = (("chain", 12), ("dag", 4), ("dag", 7))
EXTRACT = TASKS["dag"].extract_answer
GREEDY = SamplingParams(temperature=0, max_tokens=400)


def methods() -> dict[str, Method]:
    """Name -> method; the first is what the times of the others are compared with."""
    box, liar = reasoner_toolbox(), reasoner_toolbox(lambda **assignment: 0)
    return {
        "turns of calls": reasoner_turns(box, GREEDY, EXTRACT),
        "LLMCompiler": reasoner_plan(box, GREEDY, EXTRACT),
        "AsyncLM": reasoner_async(box, GREEDY, EXTRACT),
        "LLMCompiler, results 0": reasoner_plan(liar, GREEDY, EXTRACT),
        "no tools": SelfConsistency(1, GREEDY, EXTRACT, speculation=None),
    }


Seconds = Callable[[str, str], float]
"""(name, worth) of an assignment -> what the call takes."""


def critical_path(problem: Problem, seconds: Seconds) -> float:
    """Of the calls that a right solution makes."""
    program = Program.parse(problem.question)
    ends: dict[str, float] = {}
    for s in (s for s in program if s.op):
        left, right = (program.values.get(x, x) for x in (s.left, s.right))
        taken = seconds(s.name, f"{left}{s.op}{right} mod {program.modulus}")
        ends[s.name] = taken + max(ends.get(s.left, 0.0), ends.get(s.right, 0.0))
    return max(ends.values())


def rows(args: argparse.Namespace, shortest: float, longest: float) -> Iterator[dict[str, Value]]:
    """One a kind of question and method; of `args`: threads, problems, step_seconds."""
    engine = Engine.from_pretrained(MODEL, threads=args.threads, kv_tokens=1 << 19)

    def seconds(name: str, worth: str) -> float:
        """By what is computed, so that all methods meet the same times."""
        return Random(f"{name} {worth}").uniform(shortest, longest)

    def of_call(call: Callable, args: Sequence) -> float:
        [assignment] = call.arguments.items()
        return seconds(*assignment)

    for kind in KINDS:
        problems = load_split("test", args.problems, 0, {kind: 1})
        questions = [problem.question for problem in problems]
        path = fmean(critical_path(problem, seconds) for problem in problems)
        base: list[float] = []
        for name, method in methods().items():
            runs = simulated(
                engine, questions, [method] * len(questions), of_call, args.step_seconds
            )
            makespans = [run.makespan_s for run in runs]
            base = base or makespans
            right = [r.solution.answer == p.answer for r, p in zip(runs, problems, strict=True)]
            yield {
                "clock": "simulated",
                "shape": f"{kind[0]} {kind[1]}, taught",
                "method": name,
                "graphs": len(problems),
                "accuracy": fmean(right),
                "makespan_s": fmean(makespans),
                "critical_path_s": path,
                "over_critical_path": fmean(makespans) / path,
                "forward_steps": fmean(run.forward_steps for run in runs),
                "times_faster": sum(base) / sum(makespans),
                **against([-s for s in base], [-s for s in makespans]),
            }
