"""A plan of calls: lines such as `2. add {"a": "$1", "b": 3}`, each after those that it names."""

import graphlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallel_decode.reasoning.tools.toolbox import Request

LINE = re.compile(r"^\s*(\d+)[.:]\s*(\S.*)$")
PLACE = re.compile(r"\$(\d+)")


@dataclass(frozen=True)
class Task:
    """One line of a plan.

    Attributes:
        after: numbers of the tasks whose results it names as $1, $2, ...
    """

    number: int
    request: Request
    after: frozenset[int]


def read_task(line: str) -> Task | None:
    """The task of a line, None where it holds none."""
    found = LINE.match(line)
    if found is None:
        return None
    request = Request.of(found[2])
    after = PLACE.findall(json.dumps(request.arguments))
    return Task(int(found[1]), request, frozenset(map(int, after)))


def filled(request: Request, results: Mapping[int, str]) -> Request:
    """The request with results in place of $1, $2, ..."""

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return PLACE.sub(lambda found: results[int(found[1])], value)
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        return value

    return request._replace(arguments={k: fill(v) for k, v in request.arguments.items()})


def check_plan(tasks: Sequence[Task]) -> None:
    """ValueError where a number stands twice, a task names one that is not there, or some wait for
    each other; the message names them."""
    numbers = [task.number for task in tasks]
    if len(set(numbers)) != len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise ValueError(f"the plan has two tasks {twice}")
    for task in tasks:
        missing = sorted(task.after.difference(numbers))
        if missing:
            raise ValueError(f"task {task.number} needs ${missing[0]}, which is not in the plan")
    try:
        graphlib.TopologicalSorter({task.number: sorted(task.after) for task in tasks}).prepare()
    except graphlib.CycleError as error:
        chain = " -> ".join(map(str, reversed(error.args[1])))
        raise ValueError(f"tasks of the plan wait for each other: {chain}") from None
