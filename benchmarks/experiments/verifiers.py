"""What a verifier is worth: outcome scores, process scores and the vote, and how good is enough.

`python -m benchmarks.experiments.verifiers [--quick] [--json PATH] [--figure PATH]`

Scores of the outcome head, and of the process head with each way to make one score of its steps,
choose among the first n traces: the best one, or by a weighted vote. `auroc` is within questions.

The rows `oracle, p` are controls that no method may use: an exact checker whose verdict is flipped
with probability p. Its AUROC is about 1 - p, so they say what gain a verifier of a given quality
brings here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from benchmarks.experiments import selectors
from benchmarks.experiments.aggregation import auroc, compared
from benchmarks.experiments.experiment import (
    draw,
    open_engine,
    parsed,
    parser,
    pools,
    powers,
    report,
    tokens,
)
from benchmarks.experiments.pool import Pool
from benchmarks.experiments.scores import verifier_scores
from benchmarks.experiments.selectors import Choice, Score
from parallel_decode.reasoning.weighting import best_only, by_score

FLIPS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
WEIGHINGS = {"best": best_only, "weighted": by_score}


def noisy_checker(pools: Sequence[Pool], flip: float, seed: int = 0) -> Score:
    """1 for a right trace and 0 for a wrong one, or the other way round with probability `flip`,
    decided once for each trace. Equal scores are told apart by chance."""
    rng = random.Random(f"{flip}-{seed}")
    verdicts = {
        id(trace): float(trace.correct != (rng.random() < flip)) + 1e-6 * rng.random()
        for pool in pools
        for _, traces in pool
        for trace in traces
    }
    return lambda trace: verdicts[id(trace)]


def choices(scores: dict[str, Score]) -> Iterator[tuple[str, str, Choice, Score]]:
    """Name of the scores, how they are used, the choice, the scores."""
    for name, score in scores.items():
        for how, weigh in WEIGHINGS.items():
            yield name, how, selectors.scored(score, weigh), score


def main() -> None:
    args = parsed(parser(__doc__, questions=500, samples=64))
    sampled = pools(args, open_engine(args))
    result = report("verifiers", args)
    scores = {"likelihood": selectors.stored("likelihood")}
    scores |= verifier_scores(set(sampled[0].traces[0][0].steps))
    mixed = "process, min" if "process, min" in scores else list(scores)[-1]
    noisy = {f"oracle, {flip:g}": noisy_checker(sampled, flip) for flip in FLIPS}
    rows = list(choices(scores | noisy))
    for how, weigh in WEIGHINGS.items():
        control = selectors.shuffled(scores[mixed], weigh)
        rows.append((f"shuffled {mixed}", how, control, None))
    separations = {name: auroc(sampled, score) for name, score in (scores | noisy).items()}
    for n in sorted({*powers(args.samples), min(10, args.samples)}):
        spent = tokens(sampled, n)
        for name, how, choice in [
            ("none", "majority", selectors.majority),
            ("oracle", "any", selectors.oracle),
            *((name, how, choice) for name, how, choice, _ in rows),
        ]:
            result.add(
                scores=name,
                used=how,
                n=n,
                generated_tokens=spent,
                **compared(sampled, choice, n),
                auroc=separations.get(name),
            )

    def over_n(axes: Axes) -> None:
        shown = [("none", "majority"), ("oracle", "any"), (f"shuffled {mixed}", "best")]
        shown += [(name, how) for name in scores for how in WEIGHINGS]
        for name, how in shown:
            line = [r for r in result.rows if (r["scores"], r["used"]) == (name, how)]
            style = ":" if name.startswith(("shuffled", "oracle")) else "-"
            axes.plot(
                [row["n"] for row in line],
                [row["accuracy"] for row in line],
                style + ("o" if how == "best" else "s"),
                markersize=3,
                label=f"{name}, {how}",
            )
        axes.set_xscale("log", base=2)
        axes.set(xlabel="samples n", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=5)

    def over_quality(axes: Axes) -> None:
        n = 16 if args.samples >= 16 else max(powers(args.samples))
        for how in WEIGHINGS:
            at = [r for r in result.rows if r["n"] == n and r["used"] == how and r["auroc"]]
            line = [r for r in at if r["scores"] in noisy]
            axes.plot(
                [row["auroc"] for row in line],
                [row["gain"] for row in line],
                "o:",
                markersize=3,
                label=f"noisy checker, {how}",
            )
            real = [r for r in at if r["scores"] in scores]
            axes.plot(
                [row["auroc"] for row in real],
                [row["gain"] for row in real],
                "*",
                label=f"verifiers, {how}",
            )
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xlabel="AUROC within questions", ylabel=f"gain over the majority of {n}")
        axes.legend(frameon=False, fontsize=7)

    draw(args.figure, [over_n, over_quality], width=5)
    result.finish(args.json)


if __name__ == "__main__":
    main()
