"""Structured searches against weighted best-of-n at equal generated tokens.

`python -m benchmarks.experiments.search [--quick] [--json PATH] [--figure PATH]`

Every search gets the process verifier as its value. Its gain is over a vote of independent samples,
weighted by the same verifier, of as many generated tokens (all that were drawn, pruned ones too):
between two numbers of samples the accuracy is interpolated, question by question.

Controls, on the first `control-questions`: `constant` says the same of everything, and what wins
then wins by something else than search; `oracle` is an exact value that no method may use: 1 while
all steps are right. They stand against the vote, and against the exact choice among samples.

KV blocks and steps are those of a question alone, the mean of the first `alone`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from rich.progress import Progress

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
from benchmarks.experiments.scores import open_verifiers, step_score
from benchmarks.experiments.selectors import Choice
from benchmarks.report import Value
from parallel_decode import Engine, SamplingParams, SelfConsistency
from parallel_decode.engine import Branch, Steps
from parallel_decode.questions import Question
from parallel_decode.reasoning import (
    ABMCTS,
    DVTS,
    ETS,
    MCTS,
    Aggregate,
    Forest,
    Generate,
    GraphOfThoughts,
    KeepBest,
    Method,
    ParticleFilter,
    Rebase,
    Scorer,
    SelfEvalBeam,
    Solution,
    StepBeam,
    StochasticBeam,
    TreeOfThoughts,
    likelihood,
)
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.metrics import distinct_answers
from parallel_decode.reasoning.scorer import score_branches
from parallel_decode.tasks import TASKS

LOWEST = 1e-6
AT_ONCE = 128
"""Questions."""
Searches = Callable[[Extractor], dict[str, Method]]


def searches(
    width: int, scorer: Scorer, temperature: float, max_tokens: int, extract: Extractor
) -> dict[str, Method]:
    """Every search, of about the tokens of `width` samples. The last two have no value of steps."""
    beams = max(1, width // 4)
    params = SamplingParams(temperature=temperature, max_tokens=64)
    common: dict = {"params": params, "extract": extract}
    given: dict = {**common, "scorer": scorer}
    whole = SamplingParams(temperature=temperature, max_tokens=max_tokens)
    plan = (Generate(max(1, width - 2)), KeepBest(2), Aggregate(n=2), KeepBest(1))
    return {
        "step beam": StepBeam(beams, 4, **given),
        "DVTS": DVTS(beams, 4, **given),
        "REBASE": Rebase(width, **given),
        "ETS": ETS(width, **given),
        "ToT, breadth first": TreeOfThoughts("bfs", 4, beams, **given),
        "ToT, depth first": TreeOfThoughts("dfs", 4, threshold=0.5, solutions=beams, **given),
        "MCTS": MCTS(max(1, width // 2), 4, 2, **given),
        "AB-MCTS": ABMCTS(width, 4, **given),
        "particle filter": ParticleFilter(width, **common, scorer=logarithm(scorer)),
        "self-evaluation beam": SelfEvalBeam(beams, 4, **common, scorer=positive(scorer)),
        "forest of DVTS": Forest(DVTS(max(1, width // 4), 2, **given), 2),
        "stochastic beam": StochasticBeam(
            width, max_tokens=max_tokens, temperature=temperature, extract=extract
        ),
        "graph of thoughts": GraphOfThoughts(
            plan, params=whole, scorer=likelihood, extract=extract
        ),
    }


VALUELESS = ("stochastic beam", "graph of thoughts")


def constant(branches: Sequence[Branch]) -> list[float]:
    return [1.0] * len(branches)


def exact(questions: Sequence[Question]) -> Scorer:
    """1 while all steps are right, nearly 0 after a wrong one: for controls named `oracle`."""
    problems = [q.problem for q in questions if q.problem is not None]

    @lru_cache(maxsize=1 << 16)
    def value(prompt: str, text: str) -> float:
        # A chat template may stand around the question.
        problem = next(p for p in problems if p.question.strip() in prompt)
        return 1.0 if all(TASKS[problem.task].check_steps(problem, text)) else 0.01

    return lambda branches: [value(b.text_before_output, b.text) for b in branches]


def _mapped(scorer: Scorer, function: Callable[[float], float]) -> Scorer:
    def score(branches: Sequence[Branch]) -> Steps:
        scores = yield from score_branches(scorer, branches)
        return [function(value) for value in scores]

    return score


def logarithm(scorer: Scorer) -> Scorer:
    """Log-potentials of what gives probabilities."""
    return _mapped(scorer, lambda value: math.log(max(value, LOWEST)))


def positive(scorer: Scorer) -> Scorer:
    return _mapped(scorer, lambda value: max(value, LOWEST))


@dataclass(frozen=True)
class Run:
    """One method on all questions, with one seed; an exception where a question failed."""

    questions: list[Question]
    solutions: list[Solution | Exception]

    @property
    def sound(self) -> list[Solution]:
        return [s for s in self.solutions if isinstance(s, Solution)]

    @property
    def verdicts(self) -> list[float]:
        return [
            float(
                isinstance(solution, Solution)
                and solution.answer is not None
                and question.grade(solution.answer)
            )
            for question, solution in zip(self.questions, self.solutions, strict=True)
        ]


def solve(
    engine: Engine, questions: Sequence[Question], name: str, make: Searches, seed: int
) -> Run:
    """Nothing is found stored from an earlier run."""
    engine.clear_prefixes()
    made = {extract: make(extract)[name] for extract in {q.extract for q in questions}}
    solutions: list[Solution | Exception] = []
    for first in range(0, len(questions), AT_ONCE):
        some = questions[first : first + AT_ONCE]
        methods = [made[question.extract] for question in some]
        solutions += engine.solve_many([q.prompt for q in some], methods, seed=seed)
    if any(isinstance(s, Solution) and s.interrupted for s in solutions):
        raise KeyboardInterrupt
    return Run(list(questions), solutions)


@dataclass(frozen=True)
class Samples:
    """What independent samples reach with as many tokens.

    Attributes:
        n: samples, between two whole numbers.
        generated_tokens: of them; more or less than was asked for at the ends of the pool.
        right: of each question.
    """

    n: float
    generated_tokens: float
    right: NDArray[np.float64]


def at_tokens(pools: Sequence[Pool], choice: Choice, wanted: float) -> Samples:
    most = len(pools[0].traces[0])
    spent = [tokens(pools, n) for n in range(1, most + 1)]
    above = next((n for n, count in enumerate(spent, 1) if count > wanted), None)
    if above is None or above == 1:
        n = most if above is None else 1
        return Samples(float(n), spent[n - 1], right(pools, choice, n))
    share = (wanted - spent[above - 2]) / (spent[above - 1] - spent[above - 2])
    low, high = right(pools, choice, above - 1), right(pools, choice, above)
    return Samples(above - 1 + share, wanted, (1 - share) * low + share * high)


def of_runs(runs: Sequence[Run]) -> dict[str, Value]:
    sound = [solution for run in runs for solution in run.sound]
    total = sum(len(run.solutions) for run in runs)
    return {
        "unique_answers": fmean(distinct_answers([p.answer for p in s.paths]) for s in sound),
        "computed_tokens": fmean(s.usage.computed_tokens for s in sound),
        "failed_questions": total - len(sound),
    }


def alone(
    engine: Engine, questions: Sequence[Question], name: str, make: Searches
) -> dict[str, Value]:
    """Of questions that nothing runs beside."""
    usages = []
    for question in questions:
        engine.clear_prefixes()
        method = make(question.extract)[name]
        usages.append(engine.solve(question.prompt, method, seed=0).usage)
    return {
        "peak_kv_blocks": fmean(usage.peak_blocks for usage in usages),
        "forward_steps": fmean(usage.forward_steps for usage in usages),
    }


def first_questions(pools: Sequence[Pool], count: int) -> list[Pool]:
    return [Pool(p.questions[:count], p.traces[:count], p.seed) for p in pools]


def main() -> None:
    arguments = parser(__doc__, questions=500, samples=32)
    arguments.add_argument("--width", type=int, default=8, help="samples that a search is worth")
    arguments.add_argument("--control-questions", type=int, default=200)
    arguments.add_argument("--alone", type=int, default=8, help="questions for KV and steps")
    args = parsed(arguments)
    args.alone = min(args.alone, 2) if args.quick else args.alone
    args.control_questions = min(args.questions, args.control_questions)
    engine = open_engine(args)
    sampled = pools(args, engine)
    questions = sampled[0].questions
    verifier = open_verifiers(args.verifier).get("process")
    value, weigh = ("likelihood", selectors.scored("likelihood"))
    if verifier is not None:
        value, weigh = "process, min", selectors.scored(step_score("process", verifier.reduce))
    result = report(
        "search",
        args,
        width=args.width,
        control_questions=args.control_questions,
        alone=args.alone,
    )
    for n in powers(args.samples):

        def plain(extract: Extractor, n: int = n) -> dict[str, Method]:
            params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens)
            return {"samples": SelfConsistency(n, params, extract)}

        result.add(
            method="weighted best of n",
            value=value,
            generated_tokens=tokens(sampled, n),
            accuracy=float(right(sampled, weigh, n).mean()),
            unique_answers=fmean(
                distinct_answers([t.answer for t in traces[:n]])
                for pool in sampled
                for _, traces in pool
            ),
            **alone(engine, questions[: args.alone], "samples", plain),
        )
    passes: list[tuple[str, Scorer, Choice, int, int]] = [
        (value, verifier or likelihood, weigh, args.seeds, args.questions),
        ("constant", constant, selectors.majority, 1, args.control_questions),
    ]
    if all(question.problem is not None for question in questions):
        passes.append(("oracle", exact(questions), selectors.oracle, 1, args.control_questions))
    with Progress(transient=True) as bar:
        task = bar.add_task("searching", total=None)
        for named, scorer, choice, seeds, count in passes:

            def make(extract: Extractor, scorer: Scorer = scorer) -> dict[str, Method]:
                return searches(args.width, scorer, args.temperature, args.max_tokens, extract)

            base = first_questions(sampled, count)
            for name in make(questions[0].extract):
                if name in VALUELESS and named != value:
                    continue
                bar.update(task, description=f"{name}, {named}")
                runs = [solve(engine, questions[:count], name, make, s) for s in range(seeds)]
                spent = fmean(s.usage.generated_tokens for run in runs for s in run.sound)
                verdicts = np.mean([run.verdicts for run in runs], axis=0)
                samples = at_tokens(base, choice, spent)
                result.add(
                    method=name,
                    value="none" if name in VALUELESS else named,
                    generated_tokens=spent,
                    accuracy=float(verdicts.mean()),
                    samples_n=samples.n,
                    samples_tokens=samples.generated_tokens,
                    samples_accuracy=float(samples.right.mean()),
                    **against(samples.right, verdicts),
                    **of_runs(runs),
                    **(
                        alone(engine, questions[: args.alone], name, make) if named == value else {}
                    ),
                )
                result.save(args.json)
    draw(args.figure, [_by_tokens(result.rows, value), _by_blocks(result.rows, value)], width=5)
    result.finish(args.json)


def _by_tokens(rows: Sequence[dict], value: str) -> Callable[[Axes], None]:
    return lambda axes: _panel(axes, rows, value, "generated_tokens", "generated tokens a question")


def _by_blocks(rows: Sequence[dict], value: str) -> Callable[[Axes], None]:
    return lambda axes: _panel(axes, rows, value, "peak_kv_blocks", "peak KV blocks of a question")


def _panel(axes: Axes, rows: Sequence[dict], value: str, over: str, label: str) -> None:
    line = [row for row in rows if row["method"] == "weighted best of n"]
    axes.plot([r[over] for r in line], [r["accuracy"] for r in line], "o-", label="weighted best")
    points = [r for r in rows if "gain" in r and r["value"] in (value, "none")]
    for number, row in enumerate(points):
        style = {"color": f"C{number % 10}", "marker": "sD^v*P"[number % 6]}
        axes.plot([row[over]], [row["accuracy"]], linestyle="", label=row["method"], **style)
    axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="accuracy")
    axes.legend(frameon=False, fontsize=5)


if __name__ == "__main__":
    main()
