"""One object for every benchmark: what was measured, where, under which conditions, the rows."""

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, machine, versions

Value = str | int | float | bool | None


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes; a benchmark adds its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute on 2 cores")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the report there")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch and of _C"
    )
    return parser


def format_value(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def _check_flat(what: str, values: dict[str, Value]) -> None:
    for key, value in values.items():
        if not isinstance(value, Value):
            raise ValueError(f"{what}: {key} must be a number, a text or None, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{what}: {key} is {value}, which JSON cannot say")


@dataclass
class Report:
    """benchmark: its name, as in `python -m benchmarks.NAME`.

    conditions: what holds for all rows (model, dtype, threads, quick), flat.
    rows: flat; a key that holds a measurement carries its unit (`decode_tokens_per_s`, `kv_bytes`).
    peers: packages that the rows compare with; their versions are written down.
    """

    benchmark: str
    conditions: dict[str, Value]
    rows: list[dict[str, Value]] = field(default_factory=list)
    peers: tuple[str, ...] = ()

    def add(self, **row: Value) -> None:
        _check_flat(f"row {len(self.rows)} of {self.benchmark}", row)
        self.rows.append(row)

    def as_dict(self) -> dict[str, object]:
        _check_flat(f"conditions of {self.benchmark}", self.conditions)
        return {
            "benchmark": self.benchmark,
            "commit": commit(),
            "machine": machine(),
            "versions": versions(self.peers),
            "conditions": self.conditions,
            "rows": self.rows,
        }

    def table(self) -> Table:
        conditions = [f"{key}={format_value(value)}" for key, value in self.conditions.items()]
        table = Table(title=f"{self.benchmark}: {', '.join(conditions)}")
        # Rows need not have the same keys: a peer has no column for what only we can do.
        for key in dict.fromkeys(key for row in self.rows for key in row):
            texts = any(isinstance(row.get(key), str) for row in self.rows)
            table.add_column(key, justify="left" if texts else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(format_value(row.get(str(column.header))) for column in table.columns))
        return table

    def save(self, path: Path | None) -> None:
        """Writes the JSON if a path is given; a long run does so as its rows come."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n")

    def finish(self, path: Path | None = None, console: Console | None = None) -> None:
        """Print the table; write the JSON if a path is given."""
        (console or Console()).print(self.table())
        self.save(path)
