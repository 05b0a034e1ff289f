"""`parallel-decode demo`: the main job, on the bundled reasoner and on SmolLM2."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from parallel_decode.cli import options
from parallel_decode.cli.evaluate import evaluation_table, run_evaluation
from parallel_decode.cli.session import Session, errors_on_stderr
from parallel_decode.engine import SamplingParams
from parallel_decode.questions import load_questions
from parallel_decode.reasoning import SelfConsistency, StepBeam
from parallel_decode.viewer import render_tree, write_html

CHAT_QUESTION = (
    "A baker sells 14 loaves in the morning and twice as many in the afternoon. Each loaf costs 3"
    " coins. How many coins does the baker take on that day? Think step by step."
)


def demo(
    html: Annotated[Path, typer.Option(help="where the search tree goes")] = Path("out/tree.html"),
    threads: options.Threads = None,
) -> None:
    """64 questions x 16 branches with a vote, a tree search, and 16 branches of a chat model."""
    with errors_on_stderr():
        session = Session()
        print_ = session.out.print
        print_("[bold]1. Sixteen branches a question, one stored prompt each, and a vote[/bold]")
        engine = session.open("reasoner", threads=threads)
        questions = load_questions("test", 64)
        params = SamplingParams(max_tokens=320)
        result = run_evaluation(
            session, engine, questions, lambda extract: SelfConsistency(16, params, extract)
        )
        print_(evaluation_table(result))
        session.finish({}, result.interrupted)

        print_(
            "\n[bold]2. A tree search: the likelier steps go on, the rest free their blocks[/bold]"
        )
        question = next(q for q in questions if q.kind == "countdown")
        session.say(
            "Each line is a step with the mean log-probability of its branch; ×3: three branches"
            " say the same; ↓: goes on from the line above; [x]: the branch ends with answer x;"
            " dim: pruned."
        )
        method = StepBeam(4, 4, params=params, extract=question.extract)
        solution = session.solve(engine, question.prompt, method, "searching")
        print_(render_tree(solution.tree))
        verdict = "right" if question.is_right(solution.answer) else "wrong"
        session.say(
            f"answer: {solution.answer}, which the checker finds {verdict}",
            "bold",
        )
        session.say(f"the whole tree, to open in a browser: {write_html(solution, html)}")
        session.finish({}, solution.interrupted)

        print_("\n[bold]3. Sixteen branches of SmolLM2-135M-Instruct over one prompt[/bold]")
        try:
            engine = session.open("smollm2", threads=threads)
        except ValueError as error:
            session.say(f"left out: {error}", "yellow")
            return
        prompt = engine.chat_prompt([{"role": "user", "content": CHAT_QUESTION}])
        params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=120)
        chat = session.solve(engine, prompt, SelfConsistency(16, params), "16 branches")
        session.say(f"question: {CHAT_QUESTION}")
        session.say(f"one of 16 texts: {chat.paths[0].text.strip()}")
        votes = ", ".join(f"{answer} ({weight:.0f})" for answer, weight in chat.votes)
        session.say(f"votes: {votes}")
        session.say_usage(chat.usage)
        session.finish({}, chat.interrupted)
        program, example = sys.argv[0], solution.question.strip()
        session.say(
            f"\nNext, for example:\n  {program} solve '{example}'\n"
            f"  {program} eval --questions 500\n  {program} --help"
        )
