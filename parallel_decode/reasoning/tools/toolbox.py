"""`Toolbox`: callables that a model may ask for, and their results as text."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parallel_decode.engine import Branch, Call, Interrupted, Shorten, Steps
from parallel_decode.reasoning.at_least import at_least

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


class Result(NamedTuple):
    """What came of a call.

    Attributes:
        text: what the model is shown: the value, or "error: ...".
        value: what the callable gave, whole.
        failed: whether there is no value.
        interrupted: whether that is because the run was stopped, or the branch.
    """

    text: str
    value: Any = None
    failed: bool = False
    interrupted: bool = False

    @classmethod
    def error(cls, why: str) -> Result:
        return cls(f"error: {why}", failed=True)


@dataclass(frozen=True)
class Tool:
    """A callable, an `async def` too.

    Args:
        function: called with the arguments by name; its result is shown as text.
        timeout: seconds; None for no limit.
        ordered: it has effects: it runs after all ordered calls before it in the plan, whether they
            name each other or not.
        seconds: how long a call is expected to take, for what starts first and for what becomes of
            the keys of who waits.
    """

    function: Callable[..., Any]
    timeout: float | None = 30.0
    ordered: bool = False
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds must not be negative, got {self.seconds}")


@dataclass(frozen=True)
class Toolbox:
    """Tools by name.

    Args:
        tools: name -> tool, or a plain callable.
        max_tokens: of a result that the model is shown, however long it is; what is more is cut,
            and a notice, which comes on top, says so.

    Raises:
        ValueError: there is no tool, or max_tokens is not positive.
    """

    tools: Mapping[str, Tool | Callable[..., Any]]
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.tools:
            raise ValueError("there must be at least one tool")
        at_least(1, max_tokens=self.max_tokens)

    def tool(self, name: str) -> Tool | None:
        found = self.tools.get(name)
        return found if found is None or isinstance(found, Tool) else Tool(found)

    def described(self) -> str:
        """One line a tool: its name, its arguments, and the first line of its docstring."""
        return "\n".join(f"{name} {_described(self.tool(name))}" for name in self.tools)

    def seconds(self, request: Request) -> float:
        """How long a call is expected to take; 0 for one that can't be made."""
        tool = self.tool(request.name)
        return 0.0 if tool is None or request.problem is not None else tool.seconds

    def run(self, request: Request, branch: Branch | None = None) -> Steps:
        """Makes the call -> Result. What goes wrong is one, too.

        Args:
            branch: that it is for; with it the call ends.
        """
        tool = self.tool(request.name)
        if tool is None:
            known = ", ".join(self.tools)
            return Result.error(f"no tool {request.name!r:.80}: use one of {known}")
        if request.problem is not None:
            return Result.error(request.problem)
        try:
            function = _Named(tool.function, request.arguments)
            value = yield Call(function, timeout=tool.timeout, branch=branch)
            result = Result(value if isinstance(value, str) else str(value), value)
        except Interrupted as stop:
            return Result(f"error: {stop}", failed=True, interrupted=True)
        except Exception as error:
            result = Result.error(f"{type(error).__name__}: {error}")
        return result._replace(text=(yield from self._cut(result.text)))

    def _cut(self, text: str) -> Steps:
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no character
        short = yield Shorten(text, self.max_tokens)
        left_out = len(text) - len(short)
        return text if left_out <= 0 else f"{short}... [{left_out} characters more were cut]"


def _described(tool: Tool | None) -> str:
    assert tool is not None
    doc = (inspect.getdoc(tool.function) or "").split("\n")[0]
    try:
        names = list(inspect.signature(tool.function).parameters)
    except (TypeError, ValueError):
        names = []
    arguments = ", ".join(f'"{name}": ...' for name in names)
    return f"{{{arguments}}}{': ' if doc else ''}{doc}"


@dataclass(frozen=True)
class _Named:
    """A callable and its arguments by name."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    def __call__(self) -> Any:
        return self.function(**self.arguments)
