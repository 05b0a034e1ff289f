"""`parallel-decode eval`: how often a method is right on questions with exact answers."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table

from parallel_decode.cli import options
from parallel_decode.cli.choice import chosen_method
from parallel_decode.cli.session import Session, errors_on_stderr
from parallel_decode.engine import Engine, Interrupted, SamplingParams
from parallel_decode.questions import Question, asked, load_questions
from parallel_decode.reasoning import Method, Solution
from parallel_decode.reasoning.extract import Extractor, named
from parallel_decode.reasoning.metrics import maj_at_k, paired_bootstrap, pass_at_k

MethodOf = Callable[[Extractor], Method]


@dataclass(frozen=True)
class Score:
    """Of one question, or the mean over several.

    Attributes:
        accuracy: whether the method's answer is right.
        pass_at_1: share of its n paths that are right.
        maj_at_n: whether a plain vote of these paths is right, ties broken evenly.
        pass_at_n: whether any of them is right.
    """

    accuracy: float
    pass_at_1: float
    maj_at_n: float
    pass_at_n: float

    @classmethod
    def of(cls, question: Question, solution: Solution) -> "Score":
        answers = question.answers([path.text for path in solution.paths])
        correct = [question.is_right(answer) for answer in answers]
        n = len(correct)
        # An answer in the question's own spelling: 3+5 and 5+3 are one.
        return cls(
            float(question.is_right(solution.answer)),
            sum(correct) / n,
            maj_at_k(answers, correct, n),
            pass_at_k(n, sum(correct), n),
        )

    @classmethod
    def mean(cls, scores: Sequence["Score"]) -> "Score":
        columns = zip(*(dataclasses.astuple(score) for score in scores), strict=True)
        return cls(*(sum(column) / len(scores) for column in columns))


@dataclass(frozen=True)
class Evaluation:
    """Means over the questions that came to their end; the others count in `failures`.

    Intervals are 95 %, from a paired bootstrap over questions. After Ctrl-C the questions that are
    left are those with short answers, so their figures are not those of the whole set.

    Attributes:
        n: paths of a question, at the most.
        gain: of the method's answer over a single path.
    """

    method: str
    questions: int
    n: int
    accuracy: float
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
    by_kind: dict[str, dict[str, float]]
    failures: int
    interrupted: bool


def run_evaluation(
    session: Session, engine: Engine, questions: Sequence[Question], method_of: MethodOf
) -> Evaluation:
    """All questions in one batch, each with a method that reads its answers; what is right is only
    asked once they are solved."""
    made: Mapping[Extractor, Method] = {
        extract: method_of(extract) for extract in {question.extract for question in questions}
    }
    methods = [made[question.extract] for question in questions]
    name = methods[0].card.name
    start, before = time.perf_counter(), engine.usage
    with session.progress(engine, len(questions), f"{len(questions)} questions, {name}") as done:
        prompts = [question.prompt for question in questions]
        solutions = engine.solve_many(prompts, methods, on_result=done)
    seconds, after = time.perf_counter() - start, engine.usage
    rows = [
        (question, solution)
        for question, solution in zip(questions, solutions, strict=True)
        if not isinstance(solution, Exception) and not _was_cut(solution)
    ]
    if not rows:
        if isinstance(solutions[0], Exception):
            raise solutions[0]
        raise KeyboardInterrupt
    scores = [Score.of(question, solution) for question, solution in rows]
    gain, low, high = paired_bootstrap([s.pass_at_1 for s in scores], [s.accuracy for s in scores])
    tokens = after.generated_tokens - before.generated_tokens
    return Evaluation(
        method=name,
        questions=len(rows),
        n=max(len(solution.paths) for _, solution in rows),
        **dataclasses.asdict(Score.mean(scores)),
        gain=gain,
        gain_low=low,
        gain_high=high,
        generated_tokens=tokens,
        tokens_per_s=tokens / seconds,
        wall_seconds=seconds,
        peak_kv_tokens_stored=after.peak_kv_tokens_stored,
        peak_kv_tokens_logical=after.peak_kv_tokens_logical,
        by_kind=_by_kind([question.kind for question, _ in rows], scores),
        failures=len(questions) - len(rows),
        interrupted=any(_was_interrupted(solution) for solution in solutions),
    )


def _by_kind(kinds: Sequence[str], scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    rows = {}
    for kind in sorted(set(kinds)):
        own = [score for score, other in zip(scores, kinds, strict=True) if other == kind]
        rows[kind] = {"questions": float(len(own)), **dataclasses.asdict(Score.mean(own))}
    return rows


def evaluation_table(result: Evaluation) -> Group:
    """One row a kind of question and one for all; gain and cost below."""
    table = Table(title=f"{result.questions} questions, {result.method}")
    n = result.n
    for name in ("kind", "questions", "accuracy", "pass@1", f"maj@{n}", f"pass@{n}"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    keys = ("accuracy", "pass_at_1", "maj_at_n", "pass_at_n")
    for kind, row in result.by_kind.items():
        table.add_row(kind, f"{row['questions']:.0f}", *(f"{row[key]:.3f}" for key in keys))
    table.add_section()
    figures = [f"{getattr(result, key):.3f}" for key in keys]
    table.add_row("all", str(result.questions), *figures, style="bold")
    lines = (
        f"{result.method} gains {result.gain:+.3f} over one of its paths"
        f" (95 % interval {result.gain_low:+.3f} to {result.gain_high:+.3f})",
        f"{result.generated_tokens:,} tokens generated, {result.tokens_per_s:,.0f} tokens/s",
        f"KV at the peak: {result.peak_kv_tokens_stored:,} tokens stored for"
        f" {result.peak_kv_tokens_logical:,} seen by branches",
    )
    return Group(table, *lines)


def evaluate(
    model: options.Model = "reasoner",
    data: options.Data = "test",
    questions: Annotated[int, typer.Option(help="the first so many")] = 500,
    method: options.MethodName = "self-consistency",
    settings: options.Settings = None,
    n: options.Samples = 16,
    temperature: options.Temperature = 1.0,
    max_tokens: options.MaxTokens = 320,
    extract: Annotated[
        str | None,
        typer.Option(help="how answers are read, as of solve, where not as the data are"),
    ] = None,
    chat: options.Chat = True,
    seed: options.Seed = 0,
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    download: options.Download = False,
    json: options.AsJson = False,
) -> None:
    """Measure how often a method's answers are right, beside pass@1, maj@n and pass@n of its
    paths."""
    with errors_on_stderr():
        session = Session(json)
        found = load_questions(data, questions)
        if extract is not None:
            own = named(extract)
            found = [dataclasses.replace(question, extract=own) for question in found]
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens)

        def method_of(extract: Extractor) -> Method:
            return chosen_method(method, settings or (), n=n, params=params, extract=extract)

        method_of(found[0].extract)
        engine = session.open(
            model, dtype=dtype, threads=threads, seed=seed, allow_download=download
        )
        result = run_evaluation(session, engine, asked(engine, found, chat), method_of)
        if not json:
            session.out.print(evaluation_table(result))
        session.finish(
            {"model": model, "data": data, **dataclasses.asdict(result)}, result.interrupted
        )


def _was_cut(solution: Solution) -> bool:
    return any(path.finish_reason == "aborted" for path in solution.paths)


def _was_interrupted(solution: Solution | Exception) -> bool:
    return isinstance(solution, Interrupted) or (
        isinstance(solution, Solution) and solution.interrupted
    )
