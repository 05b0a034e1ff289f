"""Writes docs/experiments.md from the reports of the experiments: what won, what lost, by how much.

`python -m benchmarks.experiments.page` rewrites it, `--check` exits with 1 where it is not up to
date. Only reports that are there are told of; without any there is no page. "Won" and "lost" mean
that the 95 % interval of the paired difference does not hold zero.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.readme import markdown_table, provenance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
FIGURES = ROOT / "docs" / "experiments"
PAGE = ROOT / "docs" / "experiments.md"

Row = Mapping[str, Any]
Section = Callable[[Sequence[Row]], Iterator[str]]

HEAD = """# Experiments

Made from `benchmarks/results/experiments` by `python -m benchmarks.experiments.page`; do not edit.
`make experiments` runs them all, `make experiments-quick` a small version of each.

All ways to choose an answer get the same samples of a question. Gains are paired by question, with
the 95 % interval of a bootstrap over questions in brackets; "won" and "lost" mean that it does not
hold zero. The exact checker scores answers, and is asked by no method but those named `oracle`."""


def signed(row: Row) -> str:
    """ "+0.046 (+0.020 to +0.074)"."""
    return f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"


def standings(rows: Sequence[Row], name: Callable[[Row], str]) -> Iterator[str]:
    """One sentence for those that won, one for those that lost, one for the rest."""
    won = sorted((r for r in rows if r["gain_low"] > 0), key=lambda r: -r["gain"])
    lost = sorted((r for r in rows if r["gain_high"] < 0), key=lambda r: r["gain"])
    rest = [r for r in rows if r not in won and r not in lost]
    for verdict, group in (("Won", won), ("Lost", lost)):
        if group:
            yield f"- {verdict}: " + "; ".join(f"{name(r)} {signed(r)}" for r in group) + "."
    if rest:
        yield "- Not told apart: " + "; ".join(f"{name(r)} {signed(r)}" for r in rest) + "."


def table(rows: Sequence[Row], *columns: str) -> Iterator[str]:
    """Of these columns, in the form of README's tables."""
    yield ""
    yield from markdown_table([{key: row.get(key) for key in columns} for row in rows])


def common_n(rows: Sequence[Row]) -> int:
    """The samples that methods are told of: 16, or the most there are."""
    return max((row["n"] for row in rows if row["n"] <= 16), default=0)


def self_consistency(rows: Sequence[Row]) -> Iterator[str]:
    for group in dict.fromkeys(row["group"] for row in rows):
        of = [row for row in rows if row["group"] == group]
        first, last = of[0], of[-1]
        name = "all questions" if group == "all" else f"questions where the {group}"
        yield (
            f"- Of {name} ({first['group_questions']}), one sample is right in"
            f" {first['maj_at_n']:.3f}, the majority of {last['n']} in {last['maj_at_n']:.3f}"
            f" ({signed(last)}), any of {last['n']} in {last['pass_at_n']:.3f}."
        )
    keys = ("group", "n", "generated_tokens", "maj_at_n", "pass_at_n")
    yield from table(rows, *keys, "gain", "gain_low", "gain_high")


def aggregation(rows: Sequence[Row]) -> Iterator[str]:
    n = common_n(rows)
    at = [row for row in rows if row["n"] == n and row["method"] not in ("majority", "oracle")]
    yield f"Against the majority of the same {n} samples:"
    yield ""
    yield from standings(at, lambda row: row["method"])
    shown = [row for row in rows if row["n"] == n]
    keys = ("method", "samples", "generated_tokens", "accuracy", "gain", "gain_low", "gain_high")
    yield from table(shown, *keys, "harm", "rescue", "auroc")


def verifiers(rows: Sequence[Row]) -> Iterator[str]:
    for n in sorted({10, common_n(rows), max(row["n"] for row in rows)}):
        at = [
            row
            for row in rows
            if row["n"] == n and row["scores"] != "none" and not row["scores"].startswith("oracle")
        ]
        if at:
            yield f"Against the majority of the same {n} samples:"
            yield ""
            yield from standings(at, lambda row: f"{row['scores']}, {row['used']}")
            yield ""
    noisy = [
        row for row in rows if row["n"] == common_n(rows) and row["scores"].startswith("oracle, ")
    ]
    for how in dict.fromkeys(row["used"] for row in noisy):
        paying = [row for row in noisy if row["used"] == how and row["gain_low"] > 0]
        if paying:
            worst = min(paying, key=lambda row: row["auroc"])
            yield (
                f"- A checker whose verdicts are flipped at random ({how}) still beats the majority"
                f" at an AUROC of {worst['auroc']:.3f}: {signed(worst)}."
            )
    shown = [row for row in rows if row["n"] == common_n(rows)]
    yield from table(shown, "scores", "used", "accuracy", "gain", "gain_low", "gain_high", "auroc")


def diminishing_returns(rows: Sequence[Row]) -> Iterator[str]:
    for method in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        flat, last = of[0]["flat_from"], of[-1]
        when = (
            f"still gains at n = {last['n']}"
            if flat is None
            else f"gains nothing that can be told from zero beyond n = {flat}"
        )
        yield (
            f"- {method}: {when}; {last['accuracy']:.3f} for {last['generated_tokens']:,.0f} tokens"
            f" at n = {last['n']}."
        )
    keys = ("method", "n", "generated_tokens", "accuracy", "gain", "gain_low", "gain_high")
    yield from table([row for row in rows if row["n"] >= 4], *keys)


def search(rows: Sequence[Row]) -> Iterator[str]:
    searched = [row for row in rows if "gain" in row]
    values = list(dict.fromkeys(row["value"] for row in searched if row["value"] != "none"))
    against = {"constant": "the majority", "oracle": "the exact choice among samples"}
    for value in values:
        group = [row for row in searched if row["value"] == value]
        if value not in against:
            group += [row for row in searched if row["value"] == "none"]
        base = against.get(value, "weighted best of n")
        control = " (control)" if value in against else ""
        yield f"With the value `{value}`{control}, against {base} at equal tokens:"
        yield ""
        yield from standings(group, lambda row: row["method"])
        yield ""
    keys = ("method", "value", "generated_tokens", "accuracy", "samples_accuracy")
    more = ("gain_low", "gain_high", "unique_answers", "peak_kv_blocks", "forward_steps")
    yield from table(rows, *keys, "gain", *more)


def prefix_trap(rows: Sequence[Row]) -> Iterator[str]:
    chosen = [row for row in rows if "choice" in row]
    branches = [row for row in rows if "choice" not in row]
    wide = max(row["first_steps"] for row in chosen)
    for arm in dict.fromkeys(row["poisoned"] for row in chosen):
        yield f"Breadth first against depth first where the poisoned first steps are: {arm}."
        yield ""
        at = [r for r in chosen if r["poisoned"] == arm and r["first_steps"] == wide]
        yield from standings(at, lambda row: row["choice"])
        yield ""
    for row in branches:
        if row["poisoned"] == "all":
            yield (
                f"- Of poisoned branches over {row['first_steps']} first steps, {row['freed']:.3f}"
                " end right."
            )
    keys = ("order", "first_steps", "poisoned", "choice", "accuracy", "recovery")
    yield from table(chosen, *keys, "gain", "gain_low", "gain_high")
    yield from table(branches, *dict.fromkeys(key for row in branches for key in row))


def synthesis(rows: Sequence[Row]) -> Iterator[str]:
    n = max(row["n"] for row in rows)
    at = [row for row in rows if row["n"] == n]
    read = [row for row in at if "planted" not in row["method"] and row["method"] != "majority"]
    yield f"Against the majority of the same {n} samples:"
    yield ""
    chosen = [row for row in read if not row["method"].startswith("majority")]
    yield from standings(chosen, lambda row: row["method"])
    yield ""
    yield "Against the majority of as many samples as cost the same tokens:"
    yield ""
    equal = [
        {**row, **{key: row[f"equal_{key}"] for key in ("gain", "gain_low", "gain_high")}}
        for row in read
    ]
    yield from standings(equal, lambda row: row["method"])
    keys = ("method", "n", "generated_tokens", "cost", "accuracy", "gain", "gain_low", "gain_high")
    more = ("lost_right", "harm", "rescue", "super_oracle")
    yield from table(rows, *keys, *more)
    collapse = ("length_ratio", "copies", "first_copied", "majority_share", "new_answers", "flips")
    yield from table([row for row in rows if "copies" in row], "method", "n", *collapse)


def debate(rows: Sequence[Row]) -> Iterator[str]:
    talked = [row for row in rows if "gain" in row]
    yield "Against the majority of as many samples as generate the same tokens:"
    yield ""
    yield from standings(talked, lambda row: row["method"])
    for row in talked:
        yield (
            f"- {row['method']}: further rounds turn {row['right_to_wrong']:.3f} of the questions"
            f" from right to wrong, {row['wrong_to_right']:.3f} from wrong to right."
        )
    keys = ("method", "generated_tokens", "computed_tokens", "accuracy", "before")
    more = ("samples_accuracy", "gain", "gain_low", "gain_high")
    agents = ("agent_right_to_wrong", "agent_wrong_to_right")
    yield from table(rows, *keys, *more, *agents)


def fork_join(rows: Sequence[Row]) -> Iterator[str]:
    for shape in dict.fromkeys(row["shape"] for row in rows):
        chain, *others = (row for row in rows if row["shape"] == shape)
        yield (
            f"- {shape}: the chain is right in {chain['accuracy']:.3f}, in"
            f" {chain['forward_steps']:.0f} steps. "
            + "; ".join(
                f"{row['format']} {signed(row)}"
                + (
                    f", {row['steps_fewer']:.2f} times fewer steps (optimum"
                    f" {row['steps_optimum']:.2f}), {row['wall_faster']:.2f} times as fast"
                    if "steps_fewer" in row
                    else f", right in {row['accuracy']:.3f}"
                )
                for row in others
            )
            + "."
        )
        if chain["accuracy"] < 0.5:
            yield (
                "  The model has not learned to write this shape as a chain: its gains here say"
                " nothing for forking, the steps and times do."
            )
    yield from table(rows, *rows[0])


def tools(rows: Sequence[Row]) -> Iterator[str]:
    scripted = [row for row in rows if "accuracy" not in row]
    taught = [row for row in rows if "accuracy" in row]
    yield (
        "The first plans are scripted: a grammar leaves the model one text,"
        " which it decodes token by token, in real time. All methods make the same calls and write"
        " the same paragraph, which needs no result. Seconds saved are against one call after the"
        " other; on chains nothing can be saved but by overlap."
    )
    yield ""
    for clock in dict.fromkeys(row["clock"] for row in scripted):
        for shape in dict.fromkeys(row["shape"] for row in scripted if row["clock"] == clock):
            first, *others = (r for r in scripted if (r["clock"], r["shape"]) == (clock, shape))
            yield (
                f"- {clock}, {shape}: {first['makespan_s']:.2f} s one after the other, the calls'"
                f" critical path is {first['critical_path_s']:.2f} s. "
                + "; ".join(
                    f"{row['method']} {signed(row)}, {row['times_faster']:.2f} times as fast"
                    for row in others
                )
                + "."
            )
    if taught:
        yield ""
        yield (
            "A model that was taught to call tools writes its own calls; seconds saved are against"
            " calls level by level, and a tool that answers 0 is the control."
        )
        yield ""
    for shape in dict.fromkeys(row["shape"] for row in taught):
        of = [row for row in taught if row["shape"] == shape]
        yield (
            f"- {shape}, the calls' critical path is {of[0]['critical_path_s']:.2f} s: "
            + "; ".join(
                f"{row['method']} right in {row['accuracy']:.3f}, {row['makespan_s']:.2f} s"
                for row in of
            )
            + "."
        )
    keys = ("clock", "shape", "method", "makespan_s", "critical_path_s", "over_critical_path")
    more = ("decode_s", "tools_s", "overlap_s", "overlap_share", "forward_steps", "accuracy")
    yield from table(rows, *keys, *more, "times_faster", "gain", "gain_low", "gain_high")


def interaction(rows: Sequence[Row]) -> Iterator[str]:
    talked = [row for row in rows if not row["puzzle"].startswith("trap")]
    for puzzle in dict.fromkeys(row["puzzle"] for row in talked):
        of = [row for row in talked if row["puzzle"] == puzzle]
        base = next(row for row in of if row["method"].startswith("isolated"))
        yield (
            f"{puzzle}: {base['method']} are right in {base['accuracy']:.3f}, for"
            f" {base['generated_tokens']:.0f} tokens in {base['forward_steps']:.0f} steps; chance"
            f" is {base['chance']:.3f}. Against them:"
        )
        yield ""
        yield from standings([row for row in of if row is not base], lambda row: row["method"])
        yield ""
        if base["accuracy"] < 0.5 and puzzle.startswith("dag"):
            yield (
                "The model has not learned to write this shape as a chain: what is gained over it"
                " says little for talking; what is lost where nobody is seen does."
            )
            yield ""
    trapped = [row for row in rows if row["puzzle"].startswith("trap")]
    for row in trapped:
        if row["poisoned"] == "half":
            yield (
                f"- With half of the paths poisoned, told {row['method']}: {row['freed']:.3f} of"
                f" these end right; of the paths that were right in isolation {row['infected']:.3f}"
                f" end wrong, of the others {row['rescued']:.3f} end right."
            )
    keys = ("puzzle", "method", "branches", "accuracy", "path_accuracy")
    keys = (*keys, "gain", "gain_low", "gain_high")
    costs = ("forward_steps", "generated_tokens", "computed_tokens", "extra_tokens", "exchanges")
    yield from table(talked, *keys, *costs)
    traps = ("poisoned", "accuracy", "gain", "gain_low", "gain_high", "freed", "clean_right")
    yield from table(trapped, "method", *traps, "infected", "rescued", "recovery", "extra_tokens")


SECTIONS: dict[str, tuple[str, Section]] = {
    "self_consistency": ("More samples, and a vote", self_consistency),
    "aggregation": ("Ways to choose from the same samples", aggregation),
    "verifiers": ("Verifiers", verifiers),
    "search": ("Search at equal tokens", search),
    "prefix_trap": ("The prefix trap", prefix_trap),
    "synthesis": ("Synthesis of candidates", synthesis),
    "debate": ("Debate and mixture of agents", debate),
    "fork_join": ("Fork and join", fork_join),
    "tools": ("Calls of tools", tools),
    "interaction": ("Branches that talk", interaction),
    "diminishing_returns": ("Where more samples stop to pay", diminishing_returns),
}


def page(results: Path = RESULTS, figures: Path = FIGURES, at: Path = PAGE) -> str:
    """The whole page; `at` is where it will be, for the links to the figures."""
    parts = [HEAD]
    for name, (title, section) in SECTIONS.items():
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        report = json.loads(path.read_text("utf-8"))
        command = f"python -m benchmarks.experiments.{name}"
        quick = " --quick" if report["conditions"].get("quick") else ""
        figure = figures / f"{name}.svg"
        parts += [f"## {title}", "\n".join(section(report["rows"]))]
        if figure.is_file():
            parts.append(f"![{title}]({os.path.relpath(figure, at.parent)})")
        lines = provenance(report, report["conditions"])
        parts.append("\n".join([*lines, f"Command: `{command}{quick}`"]))
    return "\n\n".join(parts) + "\n" if len(parts) > 1 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the reports")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the figures")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    new = page(args.results, args.figures, args.page)
    old = args.page.read_text("utf-8") if args.page.is_file() else ""
    if args.check and new != old:
        sys.exit(f"{args.page} is not up to date: run python -m benchmarks.experiments.page")
    if new != old:
        args.page.parent.mkdir(parents=True, exist_ok=True)
        args.page.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
