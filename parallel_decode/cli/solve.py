"""`parallel-decode solve`: one question by any method, self-consistency if none is named."""

from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from parallel_decode.cli import options
from parallel_decode.cli.choice import chosen_method
from parallel_decode.cli.session import Session, errors_on_stderr, extractor_of
from parallel_decode.engine import SamplingParams
from parallel_decode.questions import prompt_of
from parallel_decode.reasoning import Solution
from parallel_decode.viewer import printable, write_html

Vote = Annotated[
    Literal["majority", "logprob"], typer.Option(help="logprob weighs by the model's confidence")
]


def solve(
    question: Annotated[str, typer.Argument(help="the question; see the model card for formats")],
    model: options.Model = "reasoner",
    method: options.MethodName = "self-consistency",
    settings: options.Settings = None,
    n: options.Samples = 16,
    temperature: options.Temperature = 1.0,
    max_tokens: options.MaxTokens = 256,
    vote: Vote = "majority",
    extract: options.Extract = None,
    chat: options.Chat = True,
    seed: options.Seed = 0,
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    draft: options.Draft = "auto",
    download: options.Download = False,
    html: options.HtmlPath = None,
    json: options.AsJson = False,
) -> None:
    """Sample many answers to one question over one stored prompt, and let them vote."""
    with errors_on_stderr():
        session = Session(json)
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
        engine = session.open(
            model, dtype=dtype, threads=threads, seed=seed, allow_download=download
        )
        speculation = "auto" if draft == "auto" else None
        votes = {} if vote == "majority" else {"vote": vote}
        if votes and method != "self-consistency":
            raise ValueError(f"--vote is for self-consistency, not for {method}")
        chosen = chosen_method(
            method,
            settings or (),
            n=n,
            params=params,
            extract=extractor_of(engine, extract),
            speculation=speculation,
            **votes,
        )
        prompt = prompt_of(engine, question, chat)
        session.speculate(engine, draft, prompt)
        solution = session.solve(engine, prompt, chosen, "solving")
        if not json:
            print_solution(session, solution)
        if html is not None:
            session.err.print(f"tree: {write_html(solution, html)}")
        session.finish(solution.as_dict(), solution.interrupted)


def print_solution(session: Session, solution: Solution) -> None:
    """Answer, votes, one text that gave it, and what it cost."""
    table = Table(title="votes", title_justify="left")
    table.add_column("answer")
    table.add_column("weight", justify="right")
    for answer, weight in solution.votes[:8]:
        table.add_row(Text(printable(answer)), f"{weight:.3g}")
    session.out.print(table)
    winner = next((p for p in solution.paths if p.answer == solution.answer), None)
    if winner is not None:
        session.say(winner.text.strip())
    session.say(f"\nanswer: {solution.answer}", "bold")
    session.say_usage(solution.usage)
    for warning in solution.warnings:
        session.say(f"warning: {warning}", "yellow")
