"""A command's engine, its console and its exit."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from parallel_decode.engine import Engine, Interrupted, PoolExhausted, Solver, StepStats, Usage
from parallel_decode.reasoning import Solution, extract
from parallel_decode.speculation.speculate import NAMED, speculate
from parallel_decode.viewer import printable

BAD_INPUT, INTERRUPTED = 2, 130


class Session:
    """Results go to stdout; progress and errors go to stderr, so that --json stays clean."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console()
        self.err = Console(stderr=True)

    def open(self, model: str, **options: Any) -> Engine:
        with self.err.status(f"opening {model}"):
            return Engine.from_pretrained(model, **options)

    def speculate(self, engine: Engine, draft: str, prompt: str | Sequence[int]) -> None:
        """See `options.Draft`; "auto" is left to the method."""
        if draft not in ("auto", "none"):
            with self.err.status("measuring what steps take"):
                named = draft if draft in NAMED else Engine.from_pretrained(draft)
                speculate(engine, named, [prompt])

    def say(self, text: str, style: str = "") -> None:
        """Prints a text as it is: what a model wrote is no markup and cannot move the cursor."""
        self.out.print(Text(printable(text), style))

    def solve(
        self, engine: Engine, question: str | Sequence[int], method: Solver, what: str
    ) -> Solution:
        """One question with a live bar; raises what went wrong with it."""
        with self.progress(engine, 1, what) as done:
            [solution] = engine.solve_many([question], method, on_result=done)
        if isinstance(solution, Exception):
            raise solution
        return solution

    def say_usage(self, usage: Usage) -> None:
        """What a solution cost, in one line."""
        self.say(
            f"{usage.generated_tokens:,} tokens in {usage.wall_seconds:.2f} s"
            f" ({usage.generated_tokens / max(usage.wall_seconds, 1e-9):,.0f}/s); KV at the peak:"
            f" {usage.peak_kv_tokens_stored:,} tokens stored for"
            f" {usage.peak_kv_tokens_logical:,} seen by branches"
        )
        if usage.drafted_tokens:
            self.say(
                f"{usage.accepted_tokens:,} of {usage.drafted_tokens:,} drafted tokens were right;"
                f" {usage.forward_steps:,} steps of the model"
            )

    def finish(self, data: dict[str, Any], interrupted: bool = False) -> None:
        """Prints the JSON if it was asked for; leaves with 130 after Ctrl-C."""
        if self.as_json:
            json.dump(data, sys.stdout, indent=2, allow_nan=False)
            sys.stdout.write("\n")
        if interrupted:
            self.err.print("[yellow]stopped by Ctrl-C: these are partial results")
            raise typer.Exit(INTERRUPTED)

    @contextmanager
    def progress(
        self, engine: Engine, total: int, what: str
    ) -> Iterator[Callable[[int, Any], None]]:
        """A live bar over `total` questions; call the result with (index, result) for each."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(what, total=total, rate="")
            before, start = engine.usage.generated_tokens, time.perf_counter()

            def step(stats: StepStats) -> None:
                tokens = engine.usage.generated_tokens - before
                rate = tokens / (time.perf_counter() - start)
                bar.update(
                    task,
                    rate=f"{stats.num_branches:,} branches  {rate:,.0f} tokens/s  KV stored"
                    f" {stats.kv_tokens_stored:,} of {stats.kv_tokens_logical:,} tokens",
                )

            stop = engine.observe(step)
            try:
                yield lambda index, result: bar.advance(task)
            finally:
                stop()


@contextmanager
def errors_on_stderr() -> Iterator[None]:
    """Turns bad input into one line and exit code 2, a Ctrl-C without any result into 130."""
    err = Console(stderr=True)
    try:
        yield
    except (ValueError, OSError, PoolExhausted) as error:
        line = " ".join(printable(f"error: {error}").split())
        err.print(Text(line, "red"), soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from error
    except (KeyboardInterrupt, Interrupted) as interrupt:
        err.print("[yellow]stopped by Ctrl-C before there was a result")
        raise typer.Exit(INTERRUPTED) from interrupt


def extractor_of(engine: Engine, spec: str | None) -> extract.Extractor:
    if spec is not None:
        return extract.named(spec)
    return extract.after("answer ") if engine.name.startswith("reasoner") else extract.last_number
