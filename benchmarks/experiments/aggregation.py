"""Votes, rankings and early stops on identical samples: accuracy and cost.

`python -m benchmarks.experiments.aggregation [--quick] [--json PATH] [--figure PATH]`

Every row is one way to get an answer from the first n traces of each question, with its gain over
the majority of the same traces. `auroc` tells how well a score separates right from wrong traces of
one question; where it is 0.5, the score can only lose. Shuffled scores are the control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes

from benchmarks.experiments import selectors
from benchmarks.experiments.experiment import (
    Choice,
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
from benchmarks.experiments.selectors import Stop
from benchmarks.report import Value
from parallel_decode.reasoning.consistency.confidence import TraceConfidence
from parallel_decode.reasoning.consistency.stopping import beta_criterion, unanimous_window
from parallel_decode.reasoning.metrics import selection, within_question_discrimination
from parallel_decode.reasoning.scorer import likelihood
from parallel_decode.reasoning.weighting import best_only, borda, softmax, top_fraction

TOP_K = 5  # a vocabulary of some hundred tokens has no 20 likely ones
SCORERS = {
    "likelihood": likelihood,
    "lowest_window": TraceConfidence("lowest", top_k=TOP_K),
    "self_certainty": lambda branches: [
        fmean(r.self_certainty for r in branch.records if r.sampled) for branch in branches
    ],
}
METHODS: dict[str, tuple[Choice, str | None]] = {
    "single sample": (lambda traces: traces[0].answer, None),
    "majority": (selectors.majority, None),
    "likelihood-weighted": (selectors.scored("likelihood"), "likelihood"),
    "CISC, likelihood": (selectors.scored("likelihood", softmax(0.05)), "likelihood"),
    "best of n, likelihood": (selectors.scored("likelihood", best_only), "likelihood"),
    "best of n, self-certainty": (selectors.scored("self_certainty", best_only), "self_certainty"),
    "Borda 0.5, self-certainty": (selectors.scored("self_certainty", borda(0.5)), "self_certainty"),
    "Borda 1.2, self-certainty": (selectors.scored("self_certainty", borda(1.2)), "self_certainty"),
    "DeepConf, best half": (
        selectors.scored("lowest_window", top_fraction(0.5)),
        "lowest_window",
    ),
    "DeepConf, best tenth": (
        selectors.scored("lowest_window", top_fraction(0.1)),
        "lowest_window",
    ),
    "shuffled CISC": (selectors.shuffled("likelihood", softmax(0.05)), None),
    "shuffled best of n": (selectors.shuffled("likelihood", best_only), None),
    "oracle": (selectors.oracle, None),
}
STOPS: dict[str, Stop] = {
    "adaptive consistency, 0.95": selectors.stopped(beta_criterion(0.95), batch=1),
    "ESC, windows of 5": selectors.stopped(unanimous_window(5), batch=5),
    "ESC, windows of 8": selectors.stopped(unanimous_window(8), batch=8),
}


def auroc(pools: Sequence[Pool], score: str) -> float:
    traces = [traces for pool in pools for _, traces in pool]
    return within_question_discrimination(
        [[t.scores[score] for t in row] for row in traces],
        [[t.correct for t in row] for row in traces],
    )


def stopped_tokens(pools: Sequence[Pool], stop: Stop, n: int) -> tuple[float, float]:
    """Samples and generated tokens of a question, in the mean."""
    drawn = [stop(traces[:n]) for pool in pools for _, traces in pool]
    return fmean(map(len, drawn)), fmean(sum(t.num_tokens for t in row) for row in drawn)


def early(stop: Stop) -> Choice:
    """The vote of the samples that a stop lets be drawn."""
    return lambda traces: selectors.majority(stop(traces))


def compared(pools: Sequence[Pool], choice: Choice, n: int) -> dict[str, Value]:
    """Columns of a choice from n traces beside the majority of the same ones."""
    chosen, voted = right(pools, choice, n), right(pools, selectors.majority, n)
    differs = selection(chosen > 0.5, voted > 0.5, right(pools, selectors.oracle, n) > 0)
    return {
        "accuracy": float(chosen.mean()),
        **against(voted, chosen),
        "harm": None if math.isnan(differs.harm) else differs.harm,
        "rescue": None if math.isnan(differs.rescue) else differs.rescue,
    }


def main() -> None:
    args = parsed(parser(__doc__, questions=500, samples=64))
    sampled = pools(args, open_engine(args), SCORERS, logprobs=TOP_K)
    result = report("aggregation", args)
    separations = {score: auroc(sampled, score) for score in SCORERS}
    for n in (n for n in powers(args.samples) if n >= 4):
        for method, (choice, score) in METHODS.items():
            used = 1 if method == "single sample" else n
            result.add(
                method=method,
                n=n,
                samples=float(used),
                generated_tokens=tokens(sampled, used),
                **compared(sampled, choice, n),
                auroc=separations[score] if score else None,
            )
        for method, stop in STOPS.items():
            samples, spent = stopped_tokens(sampled, stop, n)
            result.add(
                method=method,
                n=n,
                samples=samples,
                generated_tokens=spent,
                **compared(sampled, early(stop), n),
                auroc=None,
            )

    def panel(axes: Axes) -> None:
        for method in dict.fromkeys(row["method"] for row in result.rows):
            rows = [row for row in result.rows if row["method"] == method]
            style = ":" if "shuffled" in method or method == "oracle" else "-"
            axes.plot(
                [row["generated_tokens"] for row in rows],
                [row["accuracy"] for row in rows],
                style + "o",
                markersize=3,
                label=method,
            )
        axes.set_xscale("log")
        axes.set(xlabel="generated tokens a question", ylabel="accuracy")
        axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))

    draw(args.figure, [panel], width=8)
    result.finish(args.json)


if __name__ == "__main__":
    main()
