"""What more samples bring: pass@1, maj@n and pass@n, and where the vote falls.

`python -m benchmarks.experiments.self_consistency [--quick] [--json PATH] [--figure PATH]`

Questions are also split by what most of their samples say, the even ones; the odd ones are
measured. Where a wrong answer leads, more votes must lose, and they are shown to. Coverage is
fitted by log c = a n^b (Brown et al., 2024).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes

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
)
from benchmarks.experiments.pool import Pool, Trace
from parallel_decode.reasoning.metrics import CoverageLaw, maj_at_k, pass_at_k

GROUPS = ("all", "right answer leads", "wrong answer leads")


def leading(traces: Sequence[Trace]) -> str:
    """Which group a question belongs to, by these samples."""
    counts = Counter(trace.answer for trace in traces if trace.answer is not None)
    if not counts:
        return "no answer"
    [(first, _)] = counts.most_common(1)
    shares = [trace.correct for trace in traces if trace.answer == first]
    return GROUPS[1] if fmean(shares) > 0.5 else GROUPS[2]


def curves(pools: Sequence[Pool], group: str, n: int) -> tuple[list[float], list[float]]:
    """maj@n and pass@n of each question of a group, over all subsets of its samples."""
    voted, covered = [], []
    for index in range(len(pools[0].questions)):
        of_seeds = [pool.traces[index] for pool in pools]
        if group != "all":
            if leading([trace for traces in of_seeds for trace in traces[::2]]) != group:
                continue
            of_seeds = [traces[1::2] for traces in of_seeds]
        columns = [([t.answer for t in traces], [t.correct for t in traces]) for traces in of_seeds]
        voted.append(fmean(maj_at_k(answers, correct, n) for answers, correct in columns))
        covered.append(fmean(pass_at_k(len(c), sum(c), n) for _, c in columns))
    return voted, covered


def coverage_law(rows: Sequence[dict]) -> CoverageLaw | None:
    """None where no question, or every one, is covered: there is nothing to fit."""
    try:
        return CoverageLaw.fit([r["n"] for r in rows], [r["pass_at_n"] for r in rows])
    except ValueError:
        return None


def main() -> None:
    args = parsed(parser(__doc__, questions=500, samples=64))
    sampled = pools(args, open_engine(args))
    result = report("self_consistency", args)
    for group in GROUPS:
        single, _ = curves(sampled, group, 1)
        for n in powers(args.samples if group == "all" else args.samples // 2):
            voted, covered = curves(sampled, group, n)
            if not voted:
                continue
            result.add(
                group=group,
                group_questions=len(voted),
                n=n,
                generated_tokens=tokens(sampled, n),
                maj_at_n=fmean(voted),
                pass_at_n=fmean(covered),
                oracle_gap=fmean(covered) - fmean(voted),
                **against(single, voted),
            )
    everything = [row for row in result.rows if row["group"] == "all"]
    law = coverage_law(everything)
    if law is not None:
        result.conditions |= {"coverage_a": law.a, "coverage_b": law.b, "r_squared": law.r_squared}

    def panel(axes: Axes) -> None:
        ns = [row["n"] for row in everything]
        axes.plot(ns, [row["pass_at_n"] for row in everything], "o-", label="pass@n")
        if law is not None:
            axes.plot(ns, [law.coverage(n) for n in ns], ":", color="grey", label="power law")
        axes.plot(ns, [row["maj_at_n"] for row in everything], "s-", label="maj@n")
        _finish(axes, "all questions")

    def split(axes: Axes) -> None:
        for group in GROUPS[1:]:
            rows = [row for row in result.rows if row["group"] == group]
            axes.plot(
                [row["n"] for row in rows], [row["maj_at_n"] for row in rows], "o-", label=group
            )
        _finish(axes, "maj@n by what most samples say")

    draw(args.figure, [panel, split])
    result.finish(args.json)


def _finish(axes: Axes, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set(xlabel="samples n", ylabel="accuracy", ylim=(0, 1), title=title)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
