"""The prefix trap: half of the branches begin with a wrong step. Is it better to go wide or deep?

`python -m benchmarks.experiments.prefix_trap [--quick] [--json PATH] [--figure PATH]`

Each question gets `samples` branches over 1, 2, 4, ... `samples` / 2, or as many first steps: few
first steps with many continuations each are depth first, a first step for each branch is breadth
first. Three arms of each shape: no first step is wrong, every second one is, all are. A wrong first
step is the right one of the task's own solution with another value, as the task's checker confirms;
the other first steps are the model's own. The verifier sees the whole text, the wrong step too.

`recovery` is (half - all) / (none - all), of accuracies by the same choice in the same shape: 1
where the poison does no harm. `freed` is the share of poisoned branches that end right.
Diversity is of the branches of one question, in the mean, by every measure of `reasoning.metrics`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.experiments import selectors
from benchmarks.experiments.experiment import (
    against,
    draw,
    open_engine,
    parsed,
    parser,
    powers,
    report,
)
from benchmarks.experiments.pool import Trace, trace_of
from benchmarks.experiments.scores import open_verifiers, step_score
from benchmarks.experiments.selectors import Choice
from benchmarks.report import Value
from parallel_decode import Engine, SamplingParams
from parallel_decode.engine import Branch, Extend, Fork, Prefill, Prune, Score, Steps
from parallel_decode.questions import Question, load_questions
from parallel_decode.reasoning import Verifier
from parallel_decode.reasoning.metrics import (
    answer_entropy,
    distinct_answers,
    effective_sample_size,
    first_divergence,
    mean_cosine,
    pairwise_agreement,
    path_collapse,
)
from parallel_decode.reasoning.scorer import likelihood, score_branches
from parallel_decode.tasks import TASKS, Problem
from parallel_decode.tasks.program import Program
from parallel_decode.tasks.task import split_steps

STEP = "\n"
ARMS = ("none", "half", "all")
"""Which first steps are wrong."""
AT_ONCE = 128
"""Questions."""


@dataclass(frozen=True)
class Tangle:
    """The branches of one question in one arm.

    Attributes:
        poisoned: whether each began with the wrong step.
        diversity: by the name of the measure.
        generated_tokens: of all branches, what they share once.
    """

    traces: list[Trace]
    poisoned: list[bool]
    diversity: dict[str, float]
    generated_tokens: int


def wrong_step(problem: Problem, rng: random.Random) -> str:
    """The first line of the problem's solution, with another value."""
    task = TASKS[problem.task]
    line = split_steps(task.solution(problem, rng))[0]
    head, _, value = line.rpartition("=")
    modulus = Program.parse(problem.question).modulus
    others = [f"{head}={other}" for other in range(modulus) if str(other) != value]
    wrong = [other for other in others if task.check_steps(problem, other) == [False]]
    return rng.choice(wrong)


def is_wrong(number: int, arm: str) -> bool:
    """Whether first step `number` of an arm is a wrong one: every second one of the half."""
    return arm == "all" or (arm == "half" and number % 2 == 1)


def tangle(
    question: Question,
    prefixes: int,
    n: int,
    arm: str,
    params: SamplingParams,
    verifiers: dict[str, Verifier],
    seed: int,
) -> Steps:
    """Samples the branches of a question -> Tangle."""
    assert question.problem is not None
    rng = random.Random(f"{question.prompt}-{seed}")
    root = yield Prefill(question.prompt)
    firsts: list[Branch] = yield Fork(root, prefixes)
    poison = [is_wrong(number, arm) for number in range(prefixes)]
    given = [
        # The statistics of a verifier need to know what the model thinks of the step.
        Extend([first], tokens=wrong_step(question.problem, rng) + STEP, logprobs=True)
        for first, wrong in zip(firsts, poison, strict=True)
        if wrong
    ]
    own = [first for first, wrong in zip(firsts, poison, strict=True) if not wrong]
    step = SamplingParams(temperature=params.temperature, max_tokens=64, stop=STEP)
    yield [*given, *([Extend(own, step)] if own else [])]
    spent = sum(first.num_sampled for first in firsts)
    families = yield [Fork(first, n // prefixes) for first in firsts]
    kids = [kid for family in families for kid in family]
    # A first step that is the whole text has no more to come.
    more = [kid for kid in kids if kid.finish_reason != "eos"]
    yield Extend(more, params)
    spent += sum(len(kid.own_tokens) for kid in kids)
    scores = yield from score_branches(likelihood, kids)
    steps = {}
    for name, verifier in verifiers.items():
        steps[name] = yield from verifier.step_scores(kids)
    hidden = yield Score(kids, head=lambda rows: rows)
    traces = [
        trace_of(
            question,
            kid,
            {"likelihood": scores[i]},
            {name: column[i] for name, column in steps.items()},
        )
        for i, kid in enumerate(kids)
    ]
    yield Prune(kids)
    return Tangle(
        traces,
        [wrong for wrong in poison for _ in range(n // prefixes)],
        diversity(traces, np.stack([row.numpy() for row in hidden])),
        spent,
    )


def diversity(traces: Sequence[Trace], hidden: NDArray) -> dict[str, float]:
    """By every measure."""
    answers = [trace.answer for trace in traces]
    tokens = [trace.tokens.tolist() for trace in traces]
    collapse = path_collapse(tokens, answers)
    return {
        "distinct_answers": float(distinct_answers(answers)),
        "answer_entropy": answer_entropy(answers),
        "pairwise_agreement": pairwise_agreement(answers),
        "effective_sample_size": effective_sample_size(answers),
        "edit_distance": collapse.edit_distance,
        "first_divergence": first_divergence(tokens),
        "overlap_at_half": collapse.overlap_at_half,
        "hidden_cosine": mean_cosine(hidden),
        "collapsed_share": float(collapse.warning is not None),
    }


def sample(
    engine: Engine, questions: Sequence[Question], make: Callable[[Question, int], Steps], seed: int
) -> list[Tangle]:
    tangles: list[Tangle] = []
    for first in range(0, len(questions), AT_ONCE):
        programs = [
            engine.submit(make(question, seed), seed=seed)
            for question in questions[first : first + AT_ONCE]
        ]
        if engine.wait(programs):
            raise KeyboardInterrupt
        for program in programs:
            if program.error is not None:
                raise RuntimeError(f"a question failed: {program.error}")
            tangles.append(program.result)
    return tangles


def accuracy(
    questions: Sequence[Question], runs: Sequence[Sequence[Tangle]], choice: Choice
) -> NDArray[np.float64]:
    """[num_questions], the mean over the seeds."""
    rows = []
    for tangles in runs:
        answers = [choice(tangle.traces) for tangle in tangles]
        rows.append(
            [
                float(answer is not None and question.grade(answer))
                for question, answer in zip(questions, answers, strict=True)
            ]
        )
    return np.array(rows).mean(0)


def choices(verifiers: dict[str, Verifier]) -> dict[str, Choice]:
    found: dict[str, Choice] = {
        "majority": selectors.majority,
        "likelihood-weighted": selectors.scored("likelihood"),
    }
    if "process" in verifiers:
        score = step_score("process", "min")
        found["weighted, process, min"] = selectors.scored(score)
        found["shuffled, process, min"] = selectors.shuffled(score)
    return {**found, "oracle": selectors.oracle}


def recovery(half: float, everything: float, none: float) -> float | None:
    """None where the poison does no harm that could be recovered from."""
    return (half - everything) / (none - everything) if none > everything else None


def questions_of(args: argparse.Namespace) -> list[Question]:
    """Of the tasks whose solution is a program; its first step is one of the two kinds.

    Raises:
        ValueError: the questions are of another kind.
    """
    kinds = ("chain", "dag") if args.data == "test" else (args.data,)
    if not set(kinds) <= {"chain", "dag"}:
        raise ValueError(f"the prefix trap is laid in chain and dag problems, not in {args.data!r}")
    share = -(-args.questions // len(kinds))
    found = [q for kind in kinds for q in load_questions(kind, share)]
    return found[: args.questions]


def main() -> None:
    args = parsed(parser(__doc__, questions=500, samples=8))
    shapes = list(powers(args.samples))
    if args.samples != shapes[-1] or args.samples < 4:
        raise SystemExit("--samples must be a power of two, and at least 4")
    questions = questions_of(args)
    engine = open_engine(args)
    verifiers = open_verifiers(args.verifier)
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    # One first step cannot be half wrong.
    runs: dict[tuple[int, str], list[list[Tangle]]] = {}
    for prefixes in shapes[1:]:
        for arm in ARMS:

            def make(
                question: Question, seed: int, prefixes: int = prefixes, arm: str = arm
            ) -> Steps:
                return tangle(question, prefixes, args.samples, arm, params, verifiers, seed)

            runs[prefixes, arm] = [
                sample(engine, questions, make, seed) for seed in range(args.seeds)
            ]
    result = report("prefix_trap", args)
    for prefixes in shapes[1:]:
        for arm in ARMS:
            result.add(**shape(prefixes, args.samples, arm), **of_branches(runs[prefixes, arm]))
    for name, choice in choices(verifiers).items():
        right = {key: accuracy(questions, tangles, choice) for key, tangles in runs.items()}
        for prefixes in shapes[1:]:
            means = [float(right[prefixes, arm].mean()) for arm in ("half", "all", "none")]
            for arm in ARMS:
                result.add(
                    **shape(prefixes, args.samples, arm),
                    choice=name,
                    accuracy=float(right[prefixes, arm].mean()),
                    **against(right[shapes[1], arm], right[prefixes, arm]),
                    recovery=recovery(*means) if arm == "half" else None,
                )

    def trapped(axes: Axes) -> None:
        for arm, style in zip(ARMS, ("-", "--", ":"), strict=True):
            for number, name in enumerate(n for n in choices(verifiers) if "shuffled" not in n):
                line = [r for r in result.rows if r.get("choice") == name and r["poisoned"] == arm]
                axes.plot(
                    [row["first_steps"] for row in line],
                    [row["accuracy"] for row in line],
                    style + "o",
                    color=f"C{number}",
                    markersize=3,
                    label=f"{name}, {arm} poisoned",
                )
        axes.set_xscale("log", base=2)
        axes.set(xlabel=f"first steps of {args.samples} branches", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=5)

    def spread(axes: Axes) -> None:
        for measure in ("answer_entropy", "edit_distance", "overlap_at_half", "hidden_cosine"):
            line = [r for r in result.rows if measure in r and r["poisoned"] == "half"]
            axes.plot(
                [row["first_steps"] for row in line],
                [row[measure] for row in line],
                "o-",
                markersize=3,
                label=measure.replace("_", " "),
            )
        axes.set_xscale("log", base=2)
        axes.set(xlabel="first steps, half of them poisoned", ylabel="diversity")
        axes.legend(frameon=False, fontsize=7)

    draw(args.figure, [trapped, spread], width=5)
    result.finish(args.json)


def shape(prefixes: int, n: int, arm: str) -> dict[str, Value]:
    order = {2: "depth first", n: "breadth first"}.get(prefixes, "between")
    return {"order": order, "first_steps": prefixes, "poisoned": arm}


def of_branches(runs: Sequence[Sequence[Tangle]]) -> dict[str, Value]:
    """Columns of what does not depend on a choice."""
    tangles = [tangle for run in runs for tangle in run]
    verdicts = [
        (trace.correct, poisoned)
        for tangle in tangles
        for trace, poisoned in zip(tangle.traces, tangle.poisoned, strict=True)
    ]
    freed = [correct for correct, poisoned in verdicts if poisoned]
    clean = [correct for correct, poisoned in verdicts if not poisoned]
    return {
        "generated_tokens": fmean(tangle.generated_tokens for tangle in tangles),
        "freed": fmean(freed) if freed else None,
        "clean_right": fmean(clean) if clean else None,
        **{name: fmean(t.diversity[name] for t in tangles) for name in tangles[0].diversity},
    }


if __name__ == "__main__":
    main()
