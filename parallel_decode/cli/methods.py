"""`parallel-decode methods`: every method by family."""

import dataclasses
from typing import Any

from rich.table import Table

from parallel_decode.cli import options
from parallel_decode.cli.session import Session, errors_on_stderr
from parallel_decode.reasoning import METHODS, Method


def described(method: type[Method]) -> dict[str, Any]:
    """What `--json` prints of one: its card, and the defaults of its fields."""
    defaults = {}
    for item in dataclasses.fields(method):
        if item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        else:
            value = item.default
        defaults[item.name] = "(required)" if value is dataclasses.MISSING else _plain(value)
    card = dataclasses.asdict(method.card)
    return {**card, "class": method.__name__, "defaults": defaults}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return getattr(value, "__name__", type(value).__name__)


def methods(json: options.AsJson = False) -> None:
    """List the methods: family, paper, the primitives that each uses, its defaults."""
    with errors_on_stderr():
        session = Session(json)
        rows = [described(method) for method in METHODS]
        if not json:
            table = Table()
            for name in ("family", "method", "class", "paper", "primitives"):
                table.add_column(name)
            for row in sorted(rows, key=lambda row: row["family"]):
                table.add_row(
                    row["family"],
                    row["name"],
                    row["class"],
                    row["paper"],
                    ", ".join(row["primitives"]),
                )
            session.out.print(table)
        session.finish({"methods": rows})
