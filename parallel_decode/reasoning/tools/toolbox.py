"""`Toolbox`: callables that a model may ask for, and their results as text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parallel_decode.engine import Call, Interrupted, Steps

REQUEST = re.compile(r"<call>(.*?)</call>", re.DOTALL)


class Request(NamedTuple):
    """A call as a model wrote it: `<call>name {"argument": value}</call>`.

    Attributes:
        arguments: by name.
        problem: None where it can be made.
    """

    name: str
    arguments: Mapping[str, Any]
    problem: str | None = None

    @classmethod
    def of(cls, text: str) -> Request:
        """From what stands between the tags."""
        name, _, rest = text.strip().partition(" ")
        try:
            arguments = json.loads(rest) if rest.strip() else {}
        except (ValueError, RecursionError) as error:
            return cls(name, {}, f"the arguments are no JSON: {error}")
        if not isinstance(arguments, dict):
            return cls(name, {}, "the arguments must be a JSON object")
        return cls(name, arguments)


def requests_in(text: str) -> list[Request]:
    """All complete calls of a text, in their order."""
    return [Request.of(found) for found in REQUEST.findall(text)]


@dataclass(frozen=True)
class Tool:
    """A callable, an `async def` too.

    Args:
        function: called with the arguments by name; its result is shown as text.
        timeout: seconds; None for no limit.
        ordered: it has effects: it runs after all ordered calls before it in the plan, whether they
            name each other or not.
    """

    function: Callable[..., Any]
    timeout: float | None = 30.0
    ordered: bool = False


@dataclass(frozen=True)
class Toolbox:
    """Tools by name.

    Args:
        tools: name -> tool, or a plain callable.
        max_characters: of a result that are shown; what is more is cut, and a notice says so.

    Raises:
        ValueError: there is no tool, or max_characters is not positive.
    """

    tools: Mapping[str, Tool | Callable[..., Any]]
    max_characters: int = 2000

    def __post_init__(self) -> None:
        if not self.tools:
            raise ValueError("there must be at least one tool")
        if self.max_characters < 1:
            raise ValueError(f"max_characters must be at least 1, got {self.max_characters}")

    def tool(self, name: str) -> Tool | None:
        found = self.tools.get(name)
        return found if found is None or isinstance(found, Tool) else Tool(found)

    def run(self, request: Request) -> Steps:
        """Makes the call -> its result as text. What goes wrong is text as well: "error: ..."."""
        tool = self.tool(request.name)
        if tool is None:
            known = ", ".join(self.tools)
            return f"error: no tool {request.name!r}: use one of {known}"
        if request.problem is not None:
            return f"error: {request.problem}"
        try:
            value = yield Call(_Named(tool.function, request.arguments), timeout=tool.timeout)
            return self.shown(value)
        except Interrupted:
            raise
        except Exception as error:
            return self.shown(f"error: {type(error).__name__}: {error}")

    def shown(self, value: object) -> str:
        """A result as text, cut where it is too long."""
        text = value if isinstance(value, str) else str(value)
        if len(text) <= self.max_characters:
            return text
        left_out = len(text) - self.max_characters
        return f"{text[: self.max_characters]}... [{left_out} characters more were cut]"


@dataclass(frozen=True)
class _Named:
    """A callable and its arguments by name."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __call__(self) -> Any:
        return self.function(**self.arguments)
