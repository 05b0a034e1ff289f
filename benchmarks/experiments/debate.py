"""Debate and mixture of agents against self-consistency at equal tokens: who is turned, which way?

`python -m benchmarks.experiments.debate [--quick] [--json PATH] [--figure PATH]`

The first round of a debate, or layer of a mixture, is what as many samples of self-consistency are,
token by token; `before` is their vote. `right_to_wrong` and `wrong_to_right` are shares of all
questions whose answer the further rounds change, `agent_...` of all agents. `gain` is over the
majority of as many samples as generate the same tokens. What agents read of each other is not
generated but computed: `computed_tokens` counts that. Tokens of a second model are all counted as
generated. The controls read answers to another question.

`reasoner-judge` was taught to read others' solutions, of questions that it was taught (`--data`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes

from benchmarks.experiments import selectors
from benchmarks.experiments.experiment import (
    against,
    draw,
    open_engine,
    parsed,
    parser,
    pools,
    powers,
    report,
    right,
    tokens,
)
from benchmarks.experiments.pool import Pool
from benchmarks.experiments.search import Run, at_tokens, solve
from benchmarks.experiments.wording import JUDGE, add_wording, training, worded
from benchmarks.report import Value
from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.questions import Question, asked, load_questions
from parallel_decode.reasoning import Author, Debate, Listening, Method, MixtureOfAgents
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.interaction.routing import at_random


def methods(
    args: argparse.Namespace, second: Engine | None, strangers: Sequence[str], extract: Extractor
) -> dict[str, tuple[Method, Method]]:
    """Name -> the method, and its first round alone."""
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    author = Author(params)
    alike = (author,) * args.agents
    read = worded(args, "mixture", args.model)

    def debate(
        agents: Sequence[Author] = alike, rounds: int = 2, listening: Listening | None = None
    ) -> tuple[Method, Method]:
        listening = listening or Listening()
        peers = args.agents - 1 if listening.peers is None else listening.peers
        shown = worded(args, "debate", args.model, peers)
        made = [Debate(agents, number, listening, shown, extract) for number in (rounds, 1)]
        return made[0], made[1]

    def mixture(controls: Sequence[str] = ()) -> tuple[Method, Method]:
        mixed = MixtureOfAgents(alike, 2, author, strangers=controls, shown=read, extract=extract)
        return mixed, SelfConsistency(args.agents, params, extract)

    found = {
        "debate": debate(),
        "debate, 3 rounds": debate(rounds=3),
        "debate, 1 peer": debate(listening=Listening(1, at_random)),
        "debate, strangers' answers": debate(listening=Listening(strangers=strangers)),
        "mixture of agents": mixture(),
        "mixture, strangers' answers": mixture(strangers),
    }
    if second is not None:
        found[f"debate with {args.second}"] = debate((*alike[1:], Author(params, second)))
    return found


def flips(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Shares of all verdicts that go from right to wrong, and from wrong to right."""
    pairs = list(zip(before, after, strict=True))
    return fmean(b > a for b, a in pairs), fmean(b < a for b, a in pairs)


def agents_right(run: Run) -> list[float]:
    """Of each path of each question."""
    return [
        float(path.answer is not None and question.grade(path.answer))
        for question, solution in zip(run.questions, run.solutions, strict=True)
        if not isinstance(solution, Exception)
        for path in solution.paths
    ]


def compared(runs: Sequence[Run], firsts: Sequence[Run], sampled: Sequence[Pool]) -> dict:
    """Columns of a method, one run a seed, beside its first rounds and beside samples."""
    for run in (*runs, *firsts):
        failed = [s for s in run.solutions if isinstance(s, Exception)]
        if failed:
            raise RuntimeError(f"{len(failed)} questions failed: {failed[0]}")
    usages = [solution.usage for run in runs for solution in run.sound]
    spent = fmean(usage.generated_tokens + usage.delegated_tokens for usage in usages)
    verdicts = np.mean([run.verdicts for run in runs], axis=0)
    samples = at_tokens(sampled, selectors.majority, spent)
    before = [v for run in firsts for v in run.verdicts]
    after = [v for run in runs for v in run.verdicts]
    lost, saved = flips(before, after)
    row: dict[str, Value] = {
        "generated_tokens": spent,
        "computed_tokens": fmean(u.computed_tokens + u.delegated_tokens for u in usages),
        "accuracy": float(verdicts.mean()),
        "before": fmean(before),
        "right_to_wrong": lost,
        "wrong_to_right": saved,
        "samples_n": samples.n,
        "samples_tokens": samples.generated_tokens,
        "samples_accuracy": float(samples.right.mean()),
        **against(samples.right, verdicts),
    }
    one, other = ([v for run in some for v in agents_right(run)] for some in (firsts, runs))
    if len(one) == len(other):
        row["agent_right_to_wrong"], row["agent_wrong_to_right"] = flips(one, other)
    return row


def answers_to_another(
    args: argparse.Namespace, engine: Engine, questions: Sequence[Question]
) -> list[str]:
    """Samples of a question that is not one of these."""
    try:
        [other] = asked(engine, load_questions(args.data, len(questions) + 1)[-1:])
    except ValueError as error:
        raise ValueError(
            "peers from another question are a control: give --questions less than"
            f" {len(questions)}, so that {args.data} has one more"
        ) from error
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    solution = engine.solve(other.prompt, SelfConsistency(args.agents, params, other.extract))
    return [path.text for path in solution.paths]


def main() -> None:
    arguments = parser(__doc__, questions=500, samples=32)
    arguments.set_defaults(model=JUDGE, data="dag")
    arguments.add_argument("--agents", type=int, default=3)
    arguments.add_argument("--second", default="reasoner-draft", help="other model; '' for none")
    add_wording(arguments)
    args = parsed(arguments)
    if args.agents < 2:
        arguments.error("agents must be at least 2")
    engine = open_engine(args)
    sampled = pools(args, engine)
    questions = sampled[0].questions
    second = None
    if args.second:
        second = open_engine(argparse.Namespace(**{**vars(args), "model": args.second}))
    strangers = answers_to_another(args, engine, questions)
    result = report("debate", args, agents=args.agents, training=training(args, args.model))
    for n in powers(args.samples):
        result.add(
            method="majority",
            generated_tokens=tokens(sampled, n),
            accuracy=float(right(sampled, selectors.majority, n).mean()),
            samples_n=float(n),
        )
    for name in methods(args, second, strangers, questions[0].extract):

        def make(extract: Extractor, place: int = 0) -> dict[str, Method]:
            made = methods(args, second, strangers, extract)
            return {name: pair[place] for name, pair in made.items()}

        def first(extract: Extractor) -> dict[str, Method]:
            return make(extract, 1)

        runs = [solve(engine, questions, name, make, pool.seed) for pool in sampled]
        firsts = [solve(engine, questions, name, first, pool.seed) for pool in sampled]
        result.add(method=name, **compared(runs, firsts, sampled))
        result.save(args.json)
    draw(args.figure, [_panel(result.rows)], width=6)
    result.finish(args.json)


def _panel(rows: Sequence[dict]) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        line = [row for row in rows if row["method"] == "majority"]
        axes.plot(
            [r["generated_tokens"] for r in line], [r["accuracy"] for r in line], "o-", label="vote"
        )
        for row in rows:
            if row["method"] != "majority":
                axes.plot([row["generated_tokens"]], [row["accuracy"]], "s", label=row["method"])
        axes.set_xscale("log")
        axes.set(xlabel="generated tokens a question", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))

    return panel


if __name__ == "__main__":
    main()
