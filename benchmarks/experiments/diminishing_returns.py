"""Where more samples stop to pay, for each way to aggregate, up to 256 of them.

`python -m benchmarks.experiments.diminishing_returns [--quick] [--json PATH] [--figure PATH]`

`flat_from` of a method is the smallest n from which on no doubling gains anything that its interval
tells from zero. Early stops stand on the same axis of generated tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from benchmarks.experiments.aggregation import METHODS, SCORERS, STOPS, TOP_K, early, stopped_tokens
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

SHOWN = (
    "majority",
    "likelihood-weighted",
    "CISC, likelihood",
    "best of n, likelihood",
    "Borda 1.2, self-certainty",
    "DeepConf, best half",
    "oracle",
)


def flat_from(rows: Sequence[dict]) -> int | None:
    """Of rows in the order of their n; None where the last doubling still pays."""
    paying = [row["n"] for row in rows[1:] if row["gain_low"] > 0]
    if not paying:
        return rows[0]["n"]
    last = max(paying)
    return last if last < rows[-1]["n"] else None


def main() -> None:
    arguments = parser(__doc__, questions=500, samples=256)
    arguments.set_defaults(seeds=1)
    args = parsed(arguments)
    if args.quick:
        args.samples = min(args.samples, 64)
    sampled = pools(args, open_engine(args), SCORERS, logprobs=TOP_K)
    result = report("diminishing_returns", args)
    choices = {name: (METHODS[name][0], None) for name in SHOWN}
    choices |= {name: (early(stop), stop) for name, stop in STOPS.items()}
    for method, (choice, stop) in choices.items():
        rows = []
        before = None
        for n in powers(args.samples):
            now = right(sampled, choice, n)
            spent = tokens(sampled, n) if stop is None else stopped_tokens(sampled, stop, n)[1]
            gains = against(now if before is None else before, now)
            rows.append(
                {
                    "method": method,
                    "n": n,
                    "generated_tokens": spent,
                    "accuracy": float(now.mean()),
                    **gains,
                }
            )
            before = now
        flat = flat_from(rows)
        for row in rows:
            result.add(**row, flat_from=flat)

    def panel(axes: Axes) -> None:
        for method in choices:
            rows = [row for row in result.rows if row["method"] == method]
            axes.plot(
                [row["generated_tokens"] for row in rows],
                [row["accuracy"] for row in rows],
                "o-" if method != "oracle" else "o:",
                markersize=3,
                label=method,
            )
        axes.set_xscale("log")
        axes.set(xlabel="generated tokens a question", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=7)

    draw(args.figure, [panel], width=6)
    result.finish(args.json)


if __name__ == "__main__":
    main()
