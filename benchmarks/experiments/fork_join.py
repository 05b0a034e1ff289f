"""Fork-join against the chain, by the model that was trained for both: accuracy, steps, time.

`python -m benchmarks.experiments.fork_join [--quick] [--json PATH] [--figure PATH]`

DAGs of growing width, and as a control chains, in which there is nothing to fork and nothing may be
gained. `steps_optimum` is what the gold traces take: all their tokens, over those of the longest
path and of the reduction, without tags. Accuracy is of all questions in one batch, at
`--temperature`; `forward_steps` and `wall_ms` are of a question alone on the engine, greedy, the
formats in turn, with nothing of it stored before.

Each model was taught chains of some shapes and not of others. `chain, other model` is the answer of
the model for peers, which was taught chains of the narrow DAGs better; of the widest no model was
taught the chain well, so that there the steps and the time are fair and the accuracy is not.
`text` puts the paths where this model never saw them: what it loses is the price of a join that the
model was not trained for, not that of text.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.experiments.experiment import against, draw, open_engine, parsed, parser, report
from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.reasoning import Method, Multiverse, Solution, ThreadWeaver
from parallel_decode.reasoning.fork_join import PARALLEL, reasoner_tags
from parallel_decode.reasoning.fork_join.fork_join import ForkJoin
from parallel_decode.tasks import TASKS, Problem, load_split
from parallel_decode.tasks.program import Program

KINDS = (("chain", 12), ("dag", 3), ("dag", 7), ("dag", 8))
OTHER_MODEL = "reasoner-peers"
OTHER_CHAIN = "chain, other model"
PATH_TOKENS = 64
"""A path of the longest sub-chains takes half of them."""


@dataclass(frozen=True)
class Format:
    """How questions are put, and the method that reads the answers."""

    suffix: str
    method: Callable[[SamplingParams], Method]


def formats(engine: Engine) -> dict[str, Format]:
    tags = reasoner_tags(engine.tokenizer)
    extract = TASKS["dag"].extract_answer

    def chain(params: SamplingParams) -> Method:
        return SelfConsistency(1, params, extract, speculation=None)

    def forked(kind: type[ForkJoin]) -> Callable[[SamplingParams], Method]:
        def method(params: SamplingParams) -> Method:
            paths = SamplingParams(temperature=params.temperature, max_tokens=PATH_TOKENS)
            return kind(tags=tags, params=params, path_params=paths, extract=extract)

        return method

    return {
        "chain": Format("", chain),
        "kv_union": Format(PARALLEL, forked(Multiverse)),
        "text": Format(PARALLEL, forked(ThreadWeaver)),
    }


def optimum(engine: Engine, problem: Problem) -> float:
    """How many times fewer steps the gold trace takes on its critical path."""

    def count(lines: Sequence[str]) -> int:
        return len(engine.tokenizer.encode("\n".join(lines), add_bos=False)) + 1

    program = Program.parse(problem.question)
    lines = program.trace.split("\n")
    if len(program.groups) == 1:
        return 1.0
    rest, longest = lines, 0
    for chain in program.groups[:-1]:
        steps = sum(bool(statement.op) for statement in chain)
        longest = max(longest, count(rest[:steps]))
        rest = rest[steps:]
    return count(lines) / (longest + count(rest))


def solved(
    engine: Engine, problems: Sequence[Problem], form: Format, args: argparse.Namespace
) -> list[list[Solution]]:
    """One row a seed."""
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    prompts = [problem.question + form.suffix for problem in problems]
    method = form.method(params)
    rows = []
    for seed in range(args.seeds):
        engine.clear_prefixes()
        rows.append(engine.solve_many(prompts, method, seed=seed))
    for failure in (s for row in rows for s in row if isinstance(s, Exception)):
        raise failure
    return rows


def right(problems: Sequence[Problem], rows: Sequence[Sequence[Solution]]) -> NDArray[np.float64]:
    """[num_questions]: the share of seeds with the right answer."""
    verdicts = [[s.answer == p.answer for p, s in zip(problems, row, strict=True)] for row in rows]
    return np.array(verdicts, float).mean(0)


def alone(
    engine: Engine, problems: Sequence[Problem], forms: dict[str, Format], max_tokens: int
) -> dict[str, NDArray[np.float64]]:
    """[num_questions, 2]: seconds and forward steps of each question by itself, a format. They take
    turns, so that a busy machine meets all."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    methods = {name: form.method(params) for name, form in forms.items()}
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in forms}
    for number, problem in enumerate((problems[0], *problems)):  # the first one warms up
        for name, form in forms.items():
            engine.clear_prefixes()
            began = time.perf_counter()
            solution = engine.solve(problem.question + form.suffix, methods[name])
            if number:
                seen[name].append((time.perf_counter() - began, solution.usage.forward_steps))
    return {name: np.array(rows, float) for name, rows in seen.items()}


def speed(timed: NDArray[np.float64], base_seconds: float, base_steps: float) -> dict[str, float]:
    """Columns of a format against the chain."""
    seconds, steps = timed.sum(0)
    return {
        "forward_steps": float(steps) / len(timed),
        "steps_fewer": float(base_steps / steps),
        "wall_ms": 1e3 * float(np.median(timed[:, 0])),
        "wall_faster": float(base_seconds / seconds),
    }


def main() -> None:
    arguments = parser(__doc__, questions=500, samples=1)
    arguments.set_defaults(model="reasoner-formats", max_tokens=400)
    arguments.add_argument(
        "--timed", type=int, default=40, help="questions of a kind that are timed"
    )
    args = parsed(arguments)
    if args.quick:
        args.timed = min(args.timed, 6)
    engine = open_engine(args)
    forms = formats(engine)
    result = report("fork_join", args, threads=args.threads, timed=args.timed)
    kinds = [load_split("test", args.questions, 0, {kind: 1}) for kind in KINDS]
    timings = [alone(engine, problems[: args.timed], forms, args.max_tokens) for problems in kinds]
    print("timed", flush=True)  # what follows may share the machine
    other = open_engine(argparse.Namespace(**{**vars(args), "model": OTHER_MODEL}))
    for (task, difficulty), problems, timed in zip(KINDS, kinds, timings, strict=True):
        answers = {name: solved(engine, problems, form, args) for name, form in forms.items()}
        if task == "dag":
            answers[OTHER_CHAIN] = solved(other, problems, forms["chain"], args)
        width, length = TASKS["dag"].shapes[difficulty] if task == "dag" else (1, difficulty)
        base = right(problems, answers["chain"])
        base_seconds, base_steps = timed["chain"].sum(0)
        for name, rows in answers.items():
            now = right(problems, rows)
            usages = [solution.usage for row in rows for solution in row]
            result.add(
                shape="chain" if task == "chain" else f"{width}x{length}",
                width=width,
                format=name,
                accuracy=float(now.mean()),
                **against(base, now),
                generated_tokens=float(np.mean([usage.generated_tokens for usage in usages])),
                computed_tokens=float(np.mean([usage.computed_tokens for usage in usages])),
                share_warned=sum(bool(s.warnings) for row in rows for s in row) / len(usages),
                **(speed(timed[name], base_seconds, base_steps) if name in timed else {}),
                steps_optimum=float(np.mean([optimum(engine, p) for p in problems[: args.timed]])),
            )

    def panel(column: str, label: str) -> Callable[[Axes], None]:
        def paint(axes: Axes) -> None:
            rows = [row for row in result.rows if column in row]
            shapes = list(dict.fromkeys(row["shape"] for row in rows))
            for number, name in enumerate(dict.fromkeys(row["format"] for row in rows)):
                bars = {row["shape"]: row[column] for row in rows if row["format"] == name}
                places = [shapes.index(shape) + 0.2 * number - 0.3 for shape in bars]
                axes.bar(places, list(bars.values()), 0.2, label=name)
            axes.set_xticks(range(len(shapes)), shapes)
            axes.set(xlabel="DAG, width x length", ylabel=label)
            axes.legend(frameon=False, fontsize=7)

        return paint

    draw(
        args.figure,
        [
            panel("accuracy", "accuracy"),
            panel("steps_fewer", "times fewer sequential steps"),
            panel("wall_faster", "times faster"),
        ],
    )
    result.finish(args.json)


if __name__ == "__main__":
    main()
