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
from benchmarks.experiments.scores import verifier_scores
from benchmarks.experiments.selectors import Choice, Score, Stop
from benchmarks.report import Value
from parallel_decode.reasoning.consistency.stopping import beta_criterion, unanimous_window
from parallel_decode.reasoning.metrics import selection, within_question_discrimination
from parallel_decode.reasoning.weighting import (
    Weighting,
    best_only,
    borda,
    by_score,
    softmax,
    top_fraction,
)

Entry = tuple[Choice, Score | None]
"""A way to choose, and the score that it goes by."""


def _by(score: str, weigh: Weighting = by_score) -> Entry:
    return selectors.scored(score, weigh), selectors.stored(score)


METHODS: dict[str, Entry] = {
    "single sample": (lambda traces: traces[0].answer, None),
    "majority": (selectors.majority, None),
    "likelihood-weighted": _by("likelihood"),
    "CISC, likelihood": _by("likelihood", softmax(0.05)),
    "best of n, likelihood": _by("likelihood", best_only),
    "best of n, self-certainty": _by("self_certainty", best_only),
    "Borda 0.5, self-certainty": _by("self_certainty", borda(0.5)),
    "Borda 1.2, self-certainty": _by("self_certainty", borda(1.2)),
    "DeepConf, best half": _by("lowest_window", top_fraction(0.5)),
    "DeepConf, best tenth": _by("lowest_window", top_fraction(0.1)),
    "shuffled CISC": (selectors.shuffled("likelihood", softmax(0.05)), None),
    "shuffled best of n": (selectors.shuffled("likelihood", best_only), None),
    "oracle": (selectors.oracle, None),
}
STOPS: dict[str, Stop] = {
    "adaptive consistency, 0.95": selectors.stopped(beta_criterion(0.95), batch=1),
    "ESC, windows of 5": selectors.stopped(unanimous_window(5), batch=5),
    "ESC, windows of 8": selectors.stopped(unanimous_window(8), batch=8),
}


def verified(pools: Sequence[Pool]) -> dict[str, Entry]:
    """Best-of-n and the weighted vote by each verifier that looked at these pools."""
    entries = {}
    for name, score in verifier_scores(set(pools[0].traces[0][0].steps)).items():
        entries[f"best of n, {name}"] = selectors.scored(score, best_only), score
        entries[f"weighted, {name}"] = selectors.scored(score), score
    return entries


def auroc(pools: Sequence[Pool], score: Score) -> float | None:
    """Within questions; None where none has both right and wrong traces."""
    traces = [traces for pool in pools for _, traces in pool]
    correct = [[t.correct for t in row] for row in traces]
    if all(len(set(row)) < 2 for row in correct):
        return None
    return within_question_discrimination([[score(t) for t in row] for row in traces], correct)


def stopped_tokens(pools: Sequence[Pool], stop: Stop, n: int) -> tuple[float, float]:
    """Samples and generated tokens of a question, in the mean."""
    drawn = [stop(traces[:n]) for pool in pools for _, traces in pool]
    return fmean(map(len, drawn)), fmean(sum(t.num_tokens for t in row) for row in drawn)


def early(stop: Stop) -> Choice:
    """The vote of the samples that a stop lets be drawn."""
    return lambda traces: selectors.majority(stop(traces))


def compared(pools: Sequence[Pool], choice: Choice, n: int) -> dict[str, Value]:
    """Columns of a choice from n traces beside the majority of the same ones."""
    chosen, voted, best = (
        verdicts(pools, c, n) for c in (choice, selectors.majority, selectors.oracle)
    )
    differs = selection(*(rows.ravel() > 0 for rows in (chosen, voted, best)))
    return {
        "accuracy": float(chosen.mean()),
        **against(voted.mean(0), chosen.mean(0)),
        "harm": None if math.isnan(differs.harm) else differs.harm,
        "rescue": None if math.isnan(differs.rescue) else differs.rescue,
    }


def main() -> None:
    args = parsed(parser(__doc__, questions=500, samples=64))
    sampled = pools(args, open_engine(args))
    result = report("aggregation", args)
    methods = METHODS | verified(sampled)
    separations = {
        method: None if score is None else auroc(sampled, score)
        for method, (_, score) in methods.items()
    }
    for n in (n for n in powers(args.samples) if n >= 4):
        for method, (choice, _) in methods.items():
            used = 1 if method == "single sample" else n
            result.add(
                method=method,
                n=n,
                samples=float(used),
                generated_tokens=tokens(sampled, used),
                **compared(sampled, choice, n),
                auroc=separations[method],
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
