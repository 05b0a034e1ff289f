"""Draws docs/decode.svg, the figure of README.md, from benchmarks/results/decode.json.

`python -m benchmarks.figures [--results PATH] [--out PATH]`

Tokens per second of all branches together, left over their number, right over the tokens of their
prefix. One line an engine and precision: the colour is the engine's, the dashes are the weights'
width. Each panel takes the prefix, or the number of branches, that has the most points.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "decode.json"
FIGURE = ROOT / "docs" / "decode.svg"

# Readable on white and on black: contrast of at least 3 to both.
INK = "#7a7a7a"
OURS = "#2f81f7"
OTHERS = ("#d2691e", "#3a9d5d", "#b565c9", "#b8860b")
MARKERS = "osD^v"
DASHES = {"float32": "-", "bfloat16": "--", "float16": "--", "int8": "-.", "int4": ":"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """Lines over the numbers of `axis`, of the rows whose `fixed` is `at`."""

    axis: str
    fixed: str
    at: int | None
    lines: dict[str, list[Row]]

    @property
    def points(self) -> set[int]:
        return {row[self.axis] for rows in self.lines.values() for row in rows}


def label_of(row: Row) -> str:
    """ "llama.cpp int8"; of ours with the type of keys and values, where not the weights'.

    What a peer's configuration says is chosen anew for each row: it makes no line of its own.
    """
    dtype = row.get("dtype")
    kv_dtype = None if row.get("configuration") else row.get("kv_dtype")
    parts = [dtype, *([kv_dtype] if kv_dtype not in (None, dtype) else [])]
    return f"{row['engine']} {':'.join(map(str, parts))}"


def panel_of(rows: Sequence[Row], axis: str, fixed: str) -> Panel:
    """The rows at the number of `fixed` that has the most points."""
    rows = [
        row for row in rows if row.get("decode_tokens_per_s") is not None and not row.get("tree")
    ]
    seen: dict[int, set[int]] = {}
    for row in rows:
        seen.setdefault(row[fixed], set()).add(row[axis])
    at = max(seen, key=lambda number: len(seen[number]), default=None)
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[axis]):
        if row[fixed] == at:
            lines.setdefault(label_of(row), []).append(row)
    return Panel(axis, fixed, at, lines)


def caption(report: Row, panels: Sequence[Panel]) -> list[str]:
    """What was run, and on what."""
    conditions = report.get("conditions", {})
    drawn = [row for panel in panels for rows in panel.lines.values() for row in rows]
    suffixes = dict.fromkeys(str(row["suffix"]) for row in drawn)
    what = [
        str(conditions.get("model", "")),
        f"{', '.join(suffixes)} new tokens a branch",
        "weights:keys and values" if any(":" in label_of(row) for row in drawn) else "",
    ]
    machine = report.get("machine", {})
    threads = conditions.get("threads")
    commit = str(report.get("commit") or "unknown")[:12]
    where = [str(machine.get("cpu", "")), f"{threads} threads" if threads else "", commit]
    return ["; ".join(filter(None, what)), "; ".join(filter(None, where))]


def draw(report: Row, path: Path) -> None:
    rows = report.get("rows", [])
    both = [panel_of(rows, "branches", "prefix"), panel_of(rows, "prefix", "branches")]
    if not both[0].lines:
        raise ValueError("the report has no rows with decode_tokens_per_s")
    # A report of one prefix has nothing to say about prefixes.
    panels = [panel for panel in both if len(panel.points) > 1] or both[:1]
    settings = {
        "svg.fonttype": "path",
        "svg.hashsalt": "parallel_decode",  # equal reports give equal files
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color", "axes.titlecolor"), INK),
    }
    with rc_context(settings):
        figure = Figure(figsize=(8.6, 4.1), layout="constrained")
        legend: dict[str, Any] = {}
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            styles = styles_of([lines[0] for lines in panel.lines.values()])
            for label, style in styles.items():
                points = [(r[panel.axis], r["decode_tokens_per_s"]) for r in panel.lines[label]]
                [legend[label]] = axes.plot(*zip(*points), label=label, **style)
            finish(axes, panel)
        columns = min(3, len(legend))
        figure.legend(
            legend.values(),
            legend.keys(),
            loc="outside upper center",
            ncols=columns,
            frameon=False,
            handlelength=3,
        )
        figure.supxlabel("\n".join(caption(report, panels)), fontsize=7.5, color=INK)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def styles_of(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Label -> colour and marker of the engine, dashes of the width."""
    peers = list(dict.fromkeys(row["engine"] for row in rows if row["engine"] != "parallel_decode"))
    styles = {}
    for row in rows:
        ours = row["engine"] not in peers
        number = 0 if ours else peers.index(row["engine"]) + 1
        styles[label_of(row)] = {
            "color": OURS if ours else OTHERS[(number - 1) % len(OTHERS)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": DASHES.get(str(row.get("dtype")), "-"),
            "linewidth": 2.0 if ours else 1.4,
            "markersize": 4,
        }
    return styles


def finish(axes: Axes, panel: Panel) -> None:
    names = {"branches": "branches", "prefix": "prompt tokens"}
    axes.set_title(f"Tokens per second, {panel.at} {names[panel.fixed]}", fontsize=9)
    axes.set_xlabel(names[panel.axis])
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(panel.points), [str(point) for point in sorted(panel.points)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
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
            f"{args.results} is not there: python -m benchmarks.decode"
            f" --peers llama.cpp,openvino,transformers --json {args.results}"
        )
    draw(json.loads(args.results.read_text("utf-8")), args.out)


if __name__ == "__main__":
    main()
