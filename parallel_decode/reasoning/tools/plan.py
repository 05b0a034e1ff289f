"""A plan of calls: lines such as `2. add {"a": "$1", "b": 3}`, each after those that it names."""

import graphlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from parallel_decode.reasoning.tools.toolbox import Request, Result

LINE = re.compile(r"^\s*(\d+)[.:]\s*(\S.*)$")
PLACE = re.compile(r"\$(\$|\d+)")


@dataclass(frozen=True)
class Task:
    """One call of a plan.

    Attributes:
        after: numbers of the tasks whose results it names as $1, $2, ...
        literal: whether a $ in its arguments is nothing but that.
    """

    number: int
    request: Request
    after: frozenset[int] = frozenset()
    literal: bool = False

    @classmethod
    def of(cls, number: int, text: str) -> "Task":
        """From a call as it is written. `$$` stands for a dollar sign."""
        request = Request.of(text)
        places = PLACE.findall(json.dumps(request.arguments))
        return cls(number, request, frozenset(int(place) for place in places if place != "$"))


def read_task(line: str) -> Task | None:
    """The task of a line, None where it holds none."""
    found = LINE.match(line)
    return None if found is None else Task.of(int(found[1]), found[2])


def filled(request: Request, results: Mapping[int, Result]) -> Request:
    """The request with results in place of $1, $2, ...: an argument that is nothing else becomes
    the value itself, whole; within a text it is the value's text, whole as well."""

    def text_of(found: re.Match[str]) -> str:
        return "$" if found[1] == "$" else str(results[int(found[1])].value)

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            whole = PLACE.fullmatch(value)
            if whole is not None and whole[1] != "$":
                return results[int(whole[1])].value
            return PLACE.sub(text_of, value)
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        return value

    return request._replace(arguments={k: fill(v) for k, v in request.arguments.items()})


def stuck(needs: Mapping[int, Collection[int]]) -> dict[int, str]:
    """The tasks of a whole plan that could never start, and why: they need one that is not in it,
    or wait for each other. Who needs one of these is not among them.

    needs: number of a task -> those of the tasks that come before it.
    """
    why = {}
    graph = {number: sorted(before) for number, before in needs.items()}
    for number, before in graph.items():
        missing = [other for other in before if other not in needs]
        if missing:
            why[number] = f"it needs ${missing[0]}, which is not in the plan"
    while True:
        try:
            graphlib.TopologicalSorter(
                {n: () if n in why else b for n, b in graph.items()}
            ).prepare()
            return why
        except graphlib.CycleError as error:
            circle = list(reversed(error.args[1]))
            chain = " -> ".join(map(str, circle))
            why |= dict.fromkeys(circle, f"tasks of the plan wait for each other: {chain}")
