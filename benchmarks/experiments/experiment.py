"""What all experiments share: their arguments, their pools, their rows with intervals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.experiments.pool import Pool
from benchmarks.experiments.pool_cache import PoolCache, pool_key
from benchmarks.experiments.scores import SCORERS, TOP_K, open_verifiers
from benchmarks.experiments.selectors import Choice
from benchmarks.report import Report, Value, argument_parser
from parallel_decode import Engine, SamplingParams
from parallel_decode.questions import Question, asked, load_questions
from parallel_decode.reasoning.metrics import paired_bootstrap
from parallel_decode.tasks import TASKS

ROOT = Path(__file__).parents[2]


def parser(description: str | None, questions: int, samples: int) -> argparse.ArgumentParser:
    """`--quick` takes fewer of everything."""
    parser = argument_parser(description)
    parser.add_argument("--model", default="reasoner")
    parser.add_argument(
        "--data", default="test", help=f"test, {', '.join(TASKS)}, gym:NAME or FILE.jsonl"
    )
    parser.add_argument("--questions", type=int, default=questions)
    parser.add_argument("--samples", type=int, default=samples, help="traces of a question")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument(
        "--verifier",
        default="",
        help="heads on the model's states, or a reward model; of the reasoner its own",
    )
    parser.add_argument("--pools", type=Path, default=ROOT / ".experiments", help="stored samples")
    parser.add_argument("--figure", type=Path, metavar="PATH", help="draw it there (svg, png)")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if not args.verifier and args.model == "reasoner":
        args.verifier = "reasoner-verifier"
    if args.questions < 1 or args.samples < 1 or args.seeds < 1:
        parser.error("questions, samples and seeds must be at least 1")
    if args.quick:
        args.questions = min(args.questions, 60)
        args.seeds = 1
    return args


def open_engine(args: argparse.Namespace) -> Engine:
    return Engine.from_pretrained(args.model, threads=args.threads, kv_tokens=1 << 19)


def pools(args: argparse.Namespace, engine: Engine) -> list[Pool]:
    """One a seed, of the same questions; taken from disk where they are.

    All experiments ask for the same scores, so that one of them samples for all.
    """
    questions = asked(engine, load_questions(args.data, args.questions))
    return [stored_pool(args, engine, questions, seed) for seed in range(args.seeds)]


def stored_pool(
    args: argparse.Namespace, engine: Engine, questions: Sequence[Question], seed: int
) -> Pool:
    params = SamplingParams(
        temperature=args.temperature, max_tokens=args.max_tokens, logprobs=TOP_K
    )
    cache = PoolCache(args.pools)
    key = pool_key(args.model, args.verifier, questions, params, seed, SCORERS)
    found = cache.find(key, questions, args.samples, seed)
    if found is not None:
        return found
    verifiers = open_verifiers(args.verifier)
    pool = Pool.sample(engine, questions, args.samples, params, seed, SCORERS, verifiers)
    cache.store(key, pool)
    return pool


def report(name: str, args: argparse.Namespace, **conditions: Value) -> Report:
    return Report(
        f"experiments.{name}",
        {
            "model": args.model,
            "verifier": args.verifier or None,
            "data": args.data,
            "questions": args.questions,
            "samples": args.samples,
            "seeds": args.seeds,
            "temperature": args.temperature,
            "max_tokens": args.max_tokens,
            "quick": args.quick,
            "interval": "95 %, paired bootstrap over questions",
            **conditions,
        },
    )


def verdicts(pools: Sequence[Pool], choice: Choice, n: int) -> NDArray[np.float64]:
    """[num_seeds, num_questions]: 1 where the answer that `choice` takes from the first n traces is
    right."""
    rows = np.zeros((len(pools), len(pools[0].questions)))
    for row, pool in zip(rows, pools, strict=True):
        for column, (question, traces) in enumerate(pool):
            answer = choice(traces[:n])
            row[column] = answer is not None and question.grade(answer)
    return rows


def right(pools: Sequence[Pool], choice: Choice, n: int) -> NDArray[np.float64]:
    """[num_questions]: the mean of `verdicts` over the seeds."""
    return verdicts(pools, choice, n).mean(0)


def tokens(pools: Sequence[Pool], n: int) -> float:
    """Generated tokens of n traces of a question, in the mean."""
    counts = [sum(trace.num_tokens for trace in traces[:n]) for pool in pools for _, traces in pool]
    return float(np.mean(counts))


def against(base: Sequence[float], other: Sequence[float]) -> dict[str, Value]:
    """Columns of what `other` gains over `base`, question by question."""
    gain, low, high = paired_bootstrap(list(base), list(other))
    return {"gain": gain, "gain_low": low, "gain_high": high}


def powers(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to `most`."""
    n = 1
    while n <= most:
        yield n
        n *= 2


def draw(path: Path | None, panels: Sequence[Callable], width: float = 4.2) -> None:
    """One panel beside the other; each is a function of its axes."""
    if path is None:
        return
    figure = Figure(figsize=(width * len(panels), 3.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Equal reports give equal files.
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context({"svg.hashsalt": "parallel_decode"}):
        figure.savefig(path, metadata=metadata)
