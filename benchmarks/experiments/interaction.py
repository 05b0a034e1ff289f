"""Branches that talk against branches that don't, by the model that was trained for both.

`python -m benchmarks.experiments.interaction [--quick] [--json PATH] [--figure PATH]`

Live visibility: DAGs whose sub-chains are split between workers (Group Think), so that each needs
values that only the others compute. The isolated branches are as many whole chains, and a vote;
`path_accuracy` is that of one of them. Of the widest the model was not taught the chain well.
Controls: nobody sees anybody, and the workers of the next question are seen; both must fall to
`chance`, which is one over the modulus.

Shared summaries: paths through a chain that tell each other the value that they have come to
(LeaP). The isolated branches are the same paths who write it for nobody, and draw the same until
the first exchange. Controls: as many samples as generate the same tokens, and what a path of the
next question would say. They are drawn hot, since the model makes no mistake in a chain otherwise.

The prefix trap: the same with the first step of none, half or all of the paths wrong. `freed` is
the share of poisoned paths that end right; `infected` that of the paths that were right in
isolation and are wrong now, `rescued` that of those that were wrong and are right now; `recovery`
is (half - all) / (none - all), of accuracies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.experiments.experiment import against, draw, open_engine, parsed, parser, report
from benchmarks.experiments.fork_join import right
from benchmarks.experiments.prefix_trap import ARMS, is_wrong, recovery, wrong_step
from benchmarks.report import Report
from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.engine import Branch, Extend, Steps
from parallel_decode.reasoning import GroupThink, LeaP, Solution
from parallel_decode.reasoning.interaction.reasoner_format import (
    HEARD,
    PEERS,
    STEP_TOKENS,
    TEAM,
    VALUE_TOKENS,
    reasoner_peers,
    reasoner_team,
)
from parallel_decode.reasoning.pipeline import Process
from parallel_decode.reasoning.stages import Copies
from parallel_decode.tasks import TASKS, Problem, load_split
from parallel_decode.tasks.program import Program

DAGS = (3, 5, 7)
CHAIN = 12
"""Steps of the chains."""
HOT = 2.0
"""Temperature of summaries."""
AT_ONCE = 64
"""Questions; more of them no longer fit the cache of a core, and take a fifth longer each."""
PATHS = 4
STEPS = 4
"""Of a path between two exchanges."""
WORKER_TOKENS = 80
EXTRACT = TASKS["dag"].extract_answer

Row = Sequence[Solution]
"""Of all questions, with one seed."""
Make = Callable[[Problem, Problem], tuple[str, Callable[[str], Steps]]]
"""A question and the next one -> a prompt and the program for it."""


@dataclass(frozen=True, kw_only=True)
class Overhearing(LeaP):
    """A control: paths are told what those of another question would say by now, if right.

    Args:
        values: of that question, by name.
    """

    values: Mapping[str, int]

    def heard(self, paths: Sequence[Branch], said: Sequence[str]) -> Steps:
        yield from ()
        names = [text.partition("=")[0] for text in said]
        return [[f"{name}={self.values.get(name, 0)}"] * self.peers for name in names]


@dataclass(frozen=True)
class Trap:
    """D: paths that begin with their first turn, some with a wrong step, and exchange what they
    have come to."""

    method: LeaP
    exchange: Process
    problem: Problem
    arm: str

    def __call__(self, question: str) -> Steps:
        paths: list[Branch] = yield from Copies(self.method.n)(question)
        given = Program.parse(self.problem.question).groups[0][0]
        rng = Random(question)  # each poisoned path is wrong in its own way
        poisoned = [path for number, path in enumerate(paths) if is_wrong(number, self.arm)]
        clean = [path for path in paths if path not in poisoned]
        first = replace(self.method.params, max_tokens=VALUE_TOKENS + STEP_TOKENS)
        rest = replace(self.method.params, max_tokens=(STEPS - 1) * STEP_TOKENS)
        wrong = [f"{given}\n{wrong_step(self.problem, rng)}\n" for _ in poisoned]
        traps = [Extend([path], tokens=w) for path, w in zip(poisoned, wrong, strict=True)]
        yield [*traps, Extend(clean, first)]
        yield Extend(paths, rest)
        return (yield from self.exchange(paths))


@dataclass(frozen=True)
class Each:
    """Solves each question by a program of its own."""

    programs: Mapping[str, Callable[[str], Steps]]

    def program(self, question: str) -> Steps:
        return self.programs[question](question)


def solved(
    engine: Engine, problems: Sequence[Problem], make: Make, seeds: int
) -> list[list[Solution]]:
    """One row a seed."""
    following = [*problems[1:], problems[0]]
    made = [make(problem, other) for problem, other in zip(problems, following, strict=True)]
    method, prompts = Each(dict(made)), [prompt for prompt, _ in made]
    rows: list[list[Solution]] = []
    for seed in range(seeds):
        engine.clear_prefixes()
        rows.append([])
        for first in range(0, len(prompts), AT_ONCE):
            some = prompts[first : first + AT_ONCE]
            # A draw depends on the number of the question in its call.
            rows[-1] += engine.solve_many(some, method, seed=seed * len(prompts) + first)
    for failure in (s for row in rows for s in row if isinstance(s, Exception)):
        raise failure
    return rows


def paths_right(problems: Sequence[Problem], rows: Sequence[Row]) -> NDArray[np.bool_]:
    """[num_seeds, num_questions, num_paths]."""
    return np.array(
        [
            [
                [path.answer == p.answer for path in s.paths]
                for p, s in zip(problems, row, strict=True)
            ]
            for row in rows
        ]
    )


def mean_of(rows: Sequence[Row], figure: Callable[[Solution], float]) -> float:
    return float(np.mean([figure(solution) for row in rows for solution in row]))


def cost(rows: Sequence[Row], base: Sequence[Row]) -> dict[str, float]:
    """Columns of what a method takes, and how much more than another."""
    generated = mean_of(rows, lambda s: s.usage.generated_tokens)
    return {
        "forward_steps": mean_of(rows, lambda s: s.usage.forward_steps),
        "generated_tokens": generated,
        "computed_tokens": mean_of(rows, lambda s: s.usage.computed_tokens),
        "extra_tokens": generated - mean_of(base, lambda s: s.usage.generated_tokens),
    }


def chance(problems: Sequence[Problem]) -> float:
    return float(np.mean([1 / Program.parse(p.question).modulus for p in problems]))


def sampled(n: int, params: SamplingParams) -> Make:
    method = SelfConsistency(n, params, EXTRACT, speculation=None)
    return lambda problem, other: (problem.question, method.program)


def team(size: int, params: SamplingParams, seen: str) -> Make:
    """seen: "team", "nobody" or "strangers"."""
    work = replace(params, max_tokens=WORKER_TOKENS)
    method = reasoner_team(size, work, EXTRACT, visible=seen != "nobody")

    def make(problem: Problem, other: Problem) -> tuple[str, Callable[[str], Steps]]:
        stranger = other.question + TEAM if seen == "strangers" else None
        own: GroupThink = replace(method, stranger=stranger)
        return problem.question + TEAM, own.program

    return make


def peers(params: SamplingParams, told: str, arm: str | None = None) -> Make:
    """told: "nothing", "summaries" or "strangers"; arm: of the prefix trap."""
    turns = -(-CHAIN // STEPS) + 1
    method = reasoner_peers(PATHS, STEPS, turns, params, EXTRACT)
    if told == "nothing":
        method = replace(method, peers=0)

    def make(problem: Problem, other: Problem) -> tuple[str, Callable[[str], Steps]]:
        own = method
        if told == "strangers":
            own = Overhearing(**vars(method), values=Program.parse(other.question).values)
        pipeline = own.pipeline()
        if arm is not None:
            assert pipeline.exchange is not None
            trap = Trap(own, pipeline.exchange, problem, arm)
            pipeline = replace(pipeline, decompose=trap, rounds=pipeline.rounds - 1)
        return problem.question + PEERS, pipeline.program

    return make


def live(engine: Engine, args: argparse.Namespace, result: Report) -> None:
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    for difficulty in DAGS:
        problems = load_split("test", args.questions, 0, {("dag", difficulty): 1})
        size, length = TASKS["dag"].shapes[difficulty]
        base = solved(engine, problems, sampled(size, params), args.seeds)
        arms = {
            "isolated chains": None,
            "live": team(size, params, "team"),
            "live, nobody seen": team(size, params, "nobody"),
            "live, strangers seen": team(size, params, "strangers"),
        }
        for name, make in arms.items():
            rows = base if make is None else solved(engine, problems, make, args.seeds)
            now = right(problems, rows)
            result.add(
                puzzle=f"dag {size}x{length}",
                method=name,
                branches=size,
                accuracy=float(now.mean()),
                path_accuracy=float(paths_right(problems, rows).mean()),
                **against(right(problems, base), now),
                chance=chance(problems),
                **cost(rows, base),
            )


def summaries(engine: Engine, args: argparse.Namespace, result: Report) -> None:
    params = SamplingParams(temperature=HOT, max_tokens=args.max_tokens)
    problems = load_split("test", args.questions, 0, {("chain", CHAIN): 1})
    base = solved(engine, problems, peers(params, "nothing"), args.seeds)
    told = solved(engine, problems, peers(params, "summaries"), args.seeds)
    one = solved(engine, problems, sampled(1, params), args.seeds)
    tokens = mean_of(told, lambda s: s.usage.generated_tokens)
    n = round(tokens / mean_of(one, lambda s: s.usage.generated_tokens))
    arms = {
        "isolated paths": base,
        "one chain": one,
        "as many tokens": solved(engine, problems, sampled(n, params), args.seeds),
        "summaries": told,
        "summaries of strangers": solved(engine, problems, peers(params, "strangers"), args.seeds),
    }
    for name, rows in arms.items():
        now = right(problems, rows)
        result.add(
            puzzle=f"chain {CHAIN}",
            method=name,
            branches={"one chain": 1, "as many tokens": n}.get(name, PATHS),
            accuracy=float(now.mean()),
            path_accuracy=float(paths_right(problems, rows).mean()),
            **against(right(problems, base), now),
            chance=chance(problems),
            **cost(rows, base),
            exchanges=mean_of(rows, lambda s: s.paths[0].text.count(HEARD)),
        )


def trap(engine: Engine, args: argparse.Namespace, result: Report) -> None:
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
    problems = load_split("test", args.questions, 0, {("chain", CHAIN): 1})
    alone: dict[str, list[list[Solution]]] = {}
    for told in ("nothing", "summaries", "strangers"):
        accuracy: dict[str, float] = {}
        added: list[dict[str, Any]] = []
        for arm in ("half",) if told == "strangers" else ARMS:
            rows = solved(engine, problems, peers(params, told, arm), args.seeds)
            base = alone.setdefault(arm, rows)
            now, before = paths_right(problems, rows), paths_right(problems, base)
            poisoned = np.array([is_wrong(number, arm) for number in range(PATHS)])
            accuracy[arm] = float(right(problems, rows).mean())
            added.append(
                {
                    "puzzle": f"trap {CHAIN}",
                    "method": told,
                    "poisoned": arm,
                    "accuracy": accuracy[arm],
                    **against(right(problems, base), right(problems, rows)),
                    "freed": float(now[..., poisoned].mean()) if poisoned.any() else None,
                    "clean_right": float(now[..., ~poisoned].mean()) if arm != "all" else None,
                    "infected": float((before & ~now).sum() / max(1, before.sum())),
                    "rescued": float((~before & now).sum() / max(1, (~before).sum())),
                    **cost(rows, base),
                }
            )
        recovered = None
        if told != "strangers":
            recovered = recovery(accuracy["half"], accuracy["all"], accuracy["none"])
        for row in added:
            result.add(**row, recovery=recovered if row["poisoned"] == "half" else None)


def bars(result: Report, puzzles: str, across: str) -> Callable[[Axes], None]:
    """Accuracy by method of the puzzles whose names begin so."""

    def paint(axes: Axes) -> None:
        rows = [row for row in result.rows if row["puzzle"].startswith(puzzles)]
        places = list(dict.fromkeys(row[across] for row in rows))
        methods = list(dict.fromkeys(row["method"] for row in rows))
        for offset, name in enumerate(methods):
            values = [row["accuracy"] for row in rows if row["method"] == name]
            left = (offset - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axes.bar(np.arange(len(places)) + left, values, 0.8 / len(methods), label=name)
        axes.set_xticks(range(len(places)), places)
        axes.set(ylim=(0, 1), xlabel=across, ylabel="accuracy")
        axes.legend(frameon=False, fontsize=7)

    return paint


def main() -> None:
    arguments = parser(__doc__, questions=500, samples=PATHS)
    arguments.set_defaults(model="reasoner-peers", max_tokens=400)
    args = parsed(arguments)
    engine = open_engine(args)
    result = report("interaction", args, threads=args.threads)
    for part in (live, summaries, trap):
        part(engine, args, result)
        result.save(args.json)
    panels = (("dag", "puzzle"), ("chain", "puzzle"), ("trap", "poisoned"))
    draw(args.figure, [bars(result, *panel) for panel in panels])
    result.finish(args.json)


if __name__ == "__main__":
    main()
