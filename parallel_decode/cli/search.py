"""`parallel-decode search`: a step-level tree search on one question."""

from typing import Annotated

import typer

from parallel_decode.cli import options
from parallel_decode.cli.session import Session, errors_on_stderr, extractor_of
from parallel_decode.engine import SamplingParams
from parallel_decode.questions import prompt_of
from parallel_decode.reasoning import StepBeam
from parallel_decode.viewer import render_tree, write_html


def search(
    question: Annotated[str, typer.Argument(help="the question; see the model card for formats")],
    model: options.Model = "reasoner",
    width: Annotated[int, typer.Option(help="branches kept after each step")] = 4,
    expand: Annotated[int, typer.Option(help="children of each kept branch")] = 4,
    max_steps: Annotated[int, typer.Option(help="steps at the most")] = 40,
    temperature: options.Temperature = 1.0,
    max_tokens: Annotated[int, typer.Option(help="tokens of a step at the most")] = 64,
    extract: options.Extract = None,
    chat: options.Chat = True,
    seed: options.Seed = 0,
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    download: options.Download = False,
    html: options.HtmlPath = None,
    json: options.AsJson = False,
) -> None:
    """Grow a tree of reasoning steps, keep the most likely ones, and show it."""
    with errors_on_stderr():
        session = Session(json)
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
        engine = session.open(
            model, dtype=dtype, threads=threads, seed=seed, allow_download=download
        )
        method = StepBeam(
            width,
            expand,
            max_steps=max_steps,
            params=params,
            extract=extractor_of(engine, extract),
        )
        prompt = prompt_of(engine, question, chat)
        solution = session.solve(engine, prompt, method, "searching")
        if not json:
            session.out.print(render_tree(solution.tree))
            session.say(f"answer: {solution.answer}", "bold")
            for warning in solution.warnings:
                session.say(f"warning: {warning}", "yellow")
        if html is not None:
            session.err.print(f"tree: {write_html(solution, html)}")
        session.finish(solution.as_dict(), solution.interrupted)
