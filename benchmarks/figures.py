"""Draws docs/decode.svg, the figure of README.md, from benchmarks/results/decode.json.

`python -m benchmarks.figures [--results PATH] [--out PATH]`

Left: tokens per second of all branches together, right: bytes of their keys and values. One line
an engine and dtype, over the number of branches; the prefix is the one with the most points.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "decode.json"
FIGURE = ROOT / "docs" / "decode.svg"

# Readable on white and on black: contrast of at least 3 to both.
INK = "#7a7a7a"
OURS = "#2f81f7"
OTHERS = ("#d2691e", "#3a9d5d", "#b565c9", "#b8860b")
MARKERS = "osD^v"

Row = Mapping[str, Any]


def lines_of(rows: Sequence[Row]) -> tuple[dict[str, list[Row]], int | None]:
    """(label -> rows by number of branches, the prefix that they share)."""
    counts = Counter(row.get("prefix") for row in rows)
    prefix = max(counts, key=lambda p: counts[p]) if counts else None
    lines: dict[str, list[Row]] = {}
    several = len({row.get("dtype") for row in rows}) > 1
    for row in rows:
        if row.get("prefix") == prefix and row.get("decode_tokens_per_s") is not None:
            label = f"{row['engine']} {row.get('dtype')}" if several else str(row["engine"])
            lines.setdefault(label, []).append(row)
    for line in lines.values():
        line.sort(key=lambda row: row["branches"])
    return lines, prefix


def caption(report: Row, prefix: int | None) -> list[str]:
    """What was run, and on what."""
    rows, conditions = report["rows"], report.get("conditions", {})
    dtypes = dict.fromkeys(str(row["dtype"]) for row in rows if row.get("dtype"))
    suffixes = dict.fromkeys(str(r["suffix"]) for r in rows if r.get("prefix") == prefix)
    what = [
        str(conditions.get("model", "")),
        ", ".join(dtypes),
        f"{prefix} shared prompt tokens",
        f"{', '.join(suffixes)} new tokens a branch",
    ]
    machine = report.get("machine", {})
    threads = conditions.get("threads")
    commit = str(report.get("commit") or "unknown")[:12]
    where = [str(machine.get("cpu", "")), f"{threads} threads" if threads else "", commit]
    return ["; ".join(filter(None, what)), "; ".join(filter(None, where))]


def draw(report: Row, path: Path) -> None:
    lines, prefix = lines_of(report.get("rows", []))
    if not lines:
        raise ValueError("the report has no rows with decode_tokens_per_s")
    settings = {
        "svg.fonttype": "path",
        "svg.hashsalt": "parallel_decode",  # equal reports give equal files
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
    }
    with rc_context(settings):
        figure = Figure(figsize=(8.6, 3.7), layout="constrained")
        speed, memory = figure.subplots(1, 2)
        others = iter(range(len(lines)))
        for label, rows in lines.items():
            ours = rows[0]["engine"] == "parallel_decode"
            number = 0 if ours else next(others) + 1
            style = {
                "color": OURS if ours else OTHERS[(number - 1) % len(OTHERS)],
                "marker": MARKERS[number % len(MARKERS)],
                "linewidth": 2.2 if ours else 1.6,
                "markersize": 5,
                "label": label,
            }
            plot(speed, rows, "decode_tokens_per_s", 1, style)
            plot(memory, rows, "kv_bytes", 2**20, style)
        finish(speed, "Tokens per second, all branches together")
        finish(memory, "Keys and values in memory, MiB")
        speed.set_ylim(bottom=0)
        memory.set_yscale("log", base=2)
        memory.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        handles, labels = speed.get_legend_handles_labels()
        columns = max(2, len(lines))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
        figure.supxlabel("\n".join(caption(report, prefix)), fontsize=7.5, color=INK)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def plot(axes: Axes, rows: Sequence[Row], key: str, unit: float, style: dict[str, Any]) -> None:
    points = [(row["branches"], row[key] / unit) for row in rows if row.get(key)]
    if points:
        axes.plot(*zip(*points), **style)


def finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("branches")
    axes.set_xscale("log", base=2)
    ticks = sorted({float(x) for line in axes.get_lines() for x in line.get_xdata()})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=FIGURE)
    args = parser.parse_args()
    if not args.results.is_file():
        parser.error(
            f"{args.results} is not there: python -m benchmarks.decode --peers transformers"
            f" --json {args.results}"
        )
    draw(json.loads(args.results.read_text("utf-8")), args.out)


if __name__ == "__main__":
    main()
