"""`Template`: a prompt as data, with named places for what is filled in."""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PROMPTS = Path(__file__).parents[1] / "assets" / "prompts"


@dataclass(frozen=True)
class Template:
    """A text with places such as `{question}`; `{{` and `}}` stand for braces.

    What is filled in stays as it is, braces and all.

    Args:
        text: of the template.

    Raises:
        ValueError: unbalanced braces, or a place that is not a plain name.
    """

    text: str

    def __post_init__(self) -> None:
        for name in self.places:
            if not name.isidentifier():
                raise ValueError(f"{{{name}}} is no place of a template: use a plain name")

    @classmethod
    def named(cls, name: str) -> Template:
        """One of the templates of this package: the files in `parallel_decode/assets/prompts`."""
        known = sorted(path.stem for path in PROMPTS.glob("*.txt"))
        if name not in known:
            raise ValueError(f"no template {name!r}: use one of {', '.join(known)}")
        return cls((PROMPTS / f"{name}.txt").read_text("utf-8"))

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The names that `fill` needs."""
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise ValueError(f"bad template {self.text!r:.80}: {error}") from error
        for _, name, form, conversion in parts:
            if name is not None and (form or conversion):
                raise ValueError(f"{{{name}}} is no place of a template: use a plain name")
        return tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))

    def require(self, *places: str) -> None:
        """ValueError unless the template has exactly these places."""
        if set(self.places) != set(places):
            raise ValueError(
                f"the template has places {sorted(self.places)}, it needs {sorted(places)}"
            )

    def fill(self, **values: str) -> str:
        self.require(*values)
        return self.text.format(**values)
