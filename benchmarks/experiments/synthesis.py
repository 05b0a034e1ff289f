"""A synthesiser against votes and rankings of the same samples; small explorers for a large model.

`python -m benchmarks.experiments.synthesis [--quick] [--json PATH] [--figure PATH]`

The synthesiser reads the first n traces of a question's pool, in orders that the seed gives. The
answer of the first order counts; the others tell how often the order changes it. `lost_right` is
the accuracy where the majority of the n is wrong though one of them is right, `super_oracle` where
none is. `gain` is over the majority of the same n traces, `equal_gain` over that of as many traces
as cost the same tokens. Controls: candidates of the next question, a planted copy of the majority,
and a planted perfect reader, which the exact checker makes (`oracle`).

With `--explorer`, traces of that model are read as well: `cost` counts its tokens by its share of
the synthesiser's weights. What is shown must be read first: `computed_tokens` counts that.

The reasoner's traces are read by `reasoner-judge`, which was taught to, of questions that it was
taught (`--data`); `--reader` names another model, or '' for the one that wrote them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

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
    tokens,
    verdicts,
)
from benchmarks.experiments.pool import Pool
from benchmarks.experiments.reader import Reader, Readings
from benchmarks.experiments.scores import open_verifiers, step_score
from benchmarks.experiments.search import at_tokens
from benchmarks.experiments.selectors import Choice
from benchmarks.experiments.wording import JUDGE, add_wording, training, worded
from benchmarks.report import Value
from parallel_decode import Engine, SamplingParams
from parallel_decode.reasoning import Author
from parallel_decode.reasoning.metrics import (
    aggregation_collapse,
    paired_bootstrap,
    selection,
)
from parallel_decode.reasoning.weighting import best_only


def graded(pools: Sequence[Pool], answers: Sequence[Sequence[str | None]]) -> NDArray[np.float64]:
    """[num_pools, num_questions]: 1 where an answer is right."""
    rows = zip(answers, pools, strict=True)
    return np.array(
        [
            [
                float(answer is not None and question.grade(answer))
                for answer, question in zip(row, pool.questions, strict=True)
            ]
            for row, pool in rows
        ]
    )


def compared(
    pools: Sequence[Pool], answers: Sequence[Sequence[str | None]], n: int, spent: float
) -> dict[str, Value]:
    """Columns of answers, one row a pool, beside votes of the same traces and of as many tokens."""
    right = graded(pools, answers)
    voted = verdicts(pools, selectors.majority, n)
    best = verdicts(pools, selectors.oracle, n)
    differs = selection(*(rows.ravel() > 0 for rows in (right, voted, best)))
    lost = (voted.ravel() == 0) & (best.ravel() > 0)
    equal = at_tokens(pools, selectors.majority, spent)
    gain, low, high = paired_bootstrap(list(equal.right), list(right.mean(0)))
    return {
        "accuracy": float(right.mean()),
        **against(voted.mean(0), right.mean(0)),
        "equal_gain": gain,
        "equal_gain_low": low,
        "equal_gain_high": high,
        "equal_tokens": equal.generated_tokens,
        "lost_questions": int(lost.sum()),
        "lost_right": float(right.ravel()[lost].mean()) if lost.any() else None,
        "harm": _known(differs.harm),
        "rescue": _known(differs.rescue),
        "super_oracle": _known(differs.super_oracle),
    }


def collapse_columns(readings: Sequence[Readings]) -> dict[str, Value]:
    """Of all syntheses; copies, length and new answers of the first orders too, alike in law."""
    found = [s for reading in readings for row in reading.syntheses for s in row]
    if not found:
        return {}
    collapse = aggregation_collapse(found)
    return {name: _known(value) for name, value in collapse._asdict().items()}


def chosen(pools: Sequence[Pool], choice: Choice, n: int) -> list[list[str | None]]:
    return [[choice(traces[:n]) for traces in pool.traces] for pool in pools]


def num_weights(engine: Engine) -> int:
    """Of the layers: what a token costs, embeddings aside."""
    config = engine.config
    attention = config.hidden_size * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def _known(value: float) -> Value:
    return None if math.isnan(value) else value


def main() -> None:
    arguments = parser(__doc__, questions=500, samples=32)
    arguments.add_argument("--orders", type=int, default=4, help="in which traces are shown")
    arguments.set_defaults(data="dag")
    arguments.add_argument("--reader", default=JUDGE, help="model that reads the traces")
    arguments.add_argument("--most", type=int, default=4, help="traces that are shown at once")
    arguments.add_argument("--explorer", default="reasoner-draft", help="small model; '' for none")
    add_wording(arguments)
    args = parsed(arguments)
    if args.orders < 1:
        arguments.error("orders must be at least 1")
    args.orders = min(args.orders, 2) if args.quick else args.orders
    engine = open_engine(args)
    sampled = pools(args, engine)
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens)
    read_by = args.reader or args.model
    judge = engine
    if read_by != args.model:
        judge = open_engine(argparse.Namespace(**{**vars(args), "model": read_by}))
    reader = Reader(Author(params), worded(args, "synthesis", read_by), args.orders)
    result = report(
        "synthesis",
        args,
        reader=read_by,
        most=args.most,
        orders=args.orders,
        training=training(args, read_by),
    )
    choices: dict[str, Choice] = {
        "majority": selectors.majority,
        "best of n, likelihood": selectors.scored("likelihood", best_only),
        "planted perfect reader (oracle)": selectors.oracle,
        "planted copy of the majority": selectors.majority,
    }
    verifier = open_verifiers(args.verifier).get("process")
    if verifier is not None:
        score = step_score("process", verifier.reduce)
        choices["best of n, process"] = selectors.scored(score, best_only)
    for n in (n for n in powers(min(args.samples, args.most)) if n >= 2):
        spent = tokens(sampled, n)
        for name, choice in choices.items():
            result.add(
                method=name,
                n=n,
                generated_tokens=spent,
                cost=spent,
                **compared(sampled, chosen(sampled, choice, n), n, spent),
            )
        for name, strangers in (("synthesis", False), ("synthesis of strangers", True)):
            readings = [reader.read(judge, pool, n, strangers=strangers) for pool in sampled]
            total = spent + fmean(r.generated_tokens for r in readings)
            result.add(
                method=name,
                n=n,
                generated_tokens=total,
                cost=total,
                computed_tokens=fmean(r.computed_tokens for r in readings),
                **compared(sampled, [r.answers for r in readings], n, total),
                **collapse_columns(readings),
            )
            result.save(args.json)
    if args.explorer:
        _small_to_big(args, judge, reader, sampled, result.add)
    draw(args.figure, [_panel(result.rows)], width=6)
    result.finish(args.json)


def _small_to_big(
    args: argparse.Namespace,
    engine: Engine,
    reader: Reader,
    large: Sequence[Pool],
    add: Callable[..., None],
) -> None:
    """Traces of the small model, read by the large one, against votes of either at equal cost."""
    small_args = argparse.Namespace(**{**vars(args), "model": args.explorer, "verifier": ""})
    explorer = open_engine(small_args)
    small = pools(small_args, explorer)
    share = num_weights(explorer) / num_weights(engine)
    for n in (n for n in powers(min(args.samples, args.most)) if n >= 2):
        readings = [reader.read(engine, pool, n) for pool in small]
        drafts, reading = tokens(small, n), fmean(r.generated_tokens for r in readings)
        voted = chosen(small, selectors.majority, n)
        for name, answers, read in (
            (f"majority of {args.explorer}", voted, 0.0),
            (f"synthesis, {args.explorer} explores", [r.answers for r in readings], reading),
        ):
            cost = share * drafts + read
            columns = compared(small, answers, n, drafts + read)
            equal = at_tokens(large, selectors.majority, cost)
            right = graded(small, answers).mean(0)
            gain, low, high = paired_bootstrap(list(equal.right), list(right))
            columns |= {"equal_gain": gain, "equal_gain_low": low, "equal_gain_high": high}
            columns["equal_tokens"] = equal.generated_tokens
            extra = collapse_columns(readings) if read else {}
            add(method=name, n=n, generated_tokens=drafts + read, cost=cost, **columns, **extra)


def _panel(rows: Sequence[dict]) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        for method in dict.fromkeys(row["method"] for row in rows):
            of = [row for row in rows if row["method"] == method]
            style = ":o" if "planted" in method or "strangers" in method else "-o"
            axes.plot(
                [r["cost"] for r in of],
                [r["accuracy"] for r in of],
                style,
                markersize=3,
                label=method,
            )
        axes.set_xscale("log")
        axes.set(xlabel="tokens a question, of the large model's cost", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))

    return panel


if __name__ == "__main__":
    main()
