"""`parallel-decode eval`: accuracy of self-consistency on held-out problems."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from parallel_decode.cli import options
from parallel_decode.cli.session import Session, errors_on_stderr, extractor_of
from parallel_decode.engine import Engine, Interrupted, SamplingParams
from parallel_decode.reasoning import SelfConsistency, Solution
from parallel_decode.reasoning.metrics import maj_at_k, paired_bootstrap, pass_at_k
from parallel_decode.tasks import TASKS, Problem, load_split


@dataclass(frozen=True)
class Evaluation:
    """Means over the questions that came to their end; the others count in `failures`.

    Intervals are 95 %, from a paired bootstrap over questions. After Ctrl-C the questions that are
    left are those with short answers, so their figures are not those of the whole set.
    """

    questions: int
    n: int
    pass_at_1: float
    maj_at_n: float
    pass_at_n: float
    gain: float
    gain_low: float
    gain_high: float
    generated_tokens: int
    tokens_per_s: float
    wall_seconds: float
    peak_kv_tokens_stored: int
    peak_kv_tokens_logical: int
    by_task: dict[str, dict[str, float]]
    failures: int
    interrupted: bool


def run_evaluation(
    session: Session, engine: Engine, problems: Sequence[Problem], n: int, params: SamplingParams
) -> Evaluation:
    """Samples n branches a problem, all problems in one batch; the checker only scores them."""
    method = SelfConsistency(n, params, extractor_of(engine, None))
    questions = [problem.question for problem in problems]
    start, before = time.perf_counter(), engine.usage
    with session.progress(engine, len(problems), f"{len(problems)} questions x {n}") as done:
        solutions = engine.solve_many(questions, method, on_result=done)
    seconds, after = time.perf_counter() - start, engine.usage
    rows = [
        (problem, solution)
        for problem, solution in zip(problems, solutions, strict=True)
        if not isinstance(solution, Exception) and not _was_cut(solution)
    ]
    if not rows:
        if isinstance(solutions[0], Exception):
            raise solutions[0]
        raise KeyboardInterrupt
    single, voted, covered = [], [], []
    for problem, solution in rows:
        task = TASKS[problem.task]
        correct = [task.check(problem, path.text) for path in solution.paths]
        single.append(sum(correct) / n)
        # Votes are counted on the task's normal form: 3+5 and 5+3 are one answer.
        answers = [task.extract_answer(path.text) for path in solution.paths]
        voted.append(maj_at_k(answers, correct, n))
        covered.append(pass_at_k(n, sum(correct), n))
    gain, low, high = paired_bootstrap(single, voted)
    by_task = {
        name: {
            "questions": float(len(chosen)),
            "pass_at_1": _mean([single[i] for i in chosen]),
            "maj_at_n": _mean([voted[i] for i in chosen]),
            "pass_at_n": _mean([covered[i] for i in chosen]),
        }
        for name in sorted({problem.task for problem, _ in rows})
        if (chosen := [i for i, (problem, _) in enumerate(rows) if problem.task == name])
    }
    tokens = after.generated_tokens - before.generated_tokens
    return Evaluation(
        questions=len(rows),
        n=n,
        pass_at_1=_mean(single),
        maj_at_n=_mean(voted),
        pass_at_n=_mean(covered),
        gain=gain,
        gain_low=low,
        gain_high=high,
        generated_tokens=tokens,
        tokens_per_s=tokens / seconds,
        wall_seconds=seconds,
        peak_kv_tokens_stored=after.peak_kv_tokens_stored,
        peak_kv_tokens_logical=after.peak_kv_tokens_logical,
        by_task=by_task,
        failures=len(problems) - len(rows),
        interrupted=any(_was_interrupted(solution) for solution in solutions),
    )


def evaluation_table(result: Evaluation) -> Group:
    """One row a task and one for all; gain and cost below."""
    table = Table(title=f"{result.questions} test questions x {result.n} branches")
    for name in ("task", "questions", "pass@1", f"maj@{result.n}", f"pass@{result.n}"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task, row in result.by_task.items():
        table.add_row(
            task,
            f"{row['questions']:.0f}",
            f"{row['pass_at_1']:.3f}",
            f"{row['maj_at_n']:.3f}",
            f"{row['pass_at_n']:.3f}",
        )
    table.add_section()
    table.add_row(
        "all",
        str(result.questions),
        f"{result.pass_at_1:.3f}",
        f"{result.maj_at_n:.3f}",
        f"{result.pass_at_n:.3f}",
        style="bold",
    )
    lines = (
        f"voting gains {result.gain:+.3f} over one sample"
        f" (95 % interval {result.gain_low:+.3f} to {result.gain_high:+.3f})",
        f"{result.generated_tokens:,} tokens generated, {result.tokens_per_s:,.0f} tokens/s",
        f"KV at the peak: {result.peak_kv_tokens_stored:,} tokens stored for"
        f" {result.peak_kv_tokens_logical:,} seen by branches",
    )
    return Group(table, *lines)


def evaluate(
    model: options.Model = "reasoner",
    questions: Annotated[int, typer.Option(help="problems of the test split")] = 500,
    n: options.Samples = 16,
    task: Annotated[str | None, typer.Option(help=f"one of {', '.join(TASKS)}; all mixed")] = None,
    temperature: options.Temperature = 1.0,
    max_tokens: options.MaxTokens = 320,
    seed: options.Seed = 0,
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    json: options.AsJson = False,
) -> None:
    """Measure pass@1, maj@n and pass@n of a reasoner on the held-out test split."""
    with errors_on_stderr():
        session = Session(json)
        if questions < 1:
            raise ValueError(f"questions must be at least 1, got {questions}")
        problems = _problems(task, questions)
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
        engine = session.open(model, dtype=dtype, threads=threads, seed=seed)
        result = run_evaluation(session, engine, problems, n, params)
        if not json:
            session.out.print(evaluation_table(result))
        session.finish(_as_dict(result, model), result.interrupted)


def _problems(task: str | None, count: int) -> list[Problem]:
    if task is None:
        return load_split("test", count, 0)
    if task not in TASKS:
        raise ValueError(f"no task {task!r}: there are {', '.join(TASKS)}")
    # The mixed split holds every task; draw until there are enough of this one.
    size = count
    while True:
        chosen = [p for p in load_split("test", size, 0) if p.task == task]
        if len(chosen) >= count:
            return chosen[:count]
        size *= 2


def _was_cut(solution: Solution) -> bool:
    return any(path.finish_reason == "aborted" for path in solution.paths)


def _was_interrupted(solution: Solution | Exception) -> bool:
    return isinstance(solution, Interrupted) or (
        isinstance(solution, Solution) and solution.interrupted
    )


def _as_dict(result: Evaluation, model: str) -> dict[str, Any]:
    return {"model": model, **dataclasses.asdict(result)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
