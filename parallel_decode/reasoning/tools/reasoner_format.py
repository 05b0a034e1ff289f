"""The formats of tool use that `examples/train_formats.py` teaches the reasoner."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from parallel_decode.engine import SamplingParams
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.template import Template
from parallel_decode.reasoning.tools.async_lm import AsyncLM
from parallel_decode.reasoning.tools.llm_compiler import LLMCompiler
from parallel_decode.reasoning.tools.tool_use import ToolUse
from parallel_decode.reasoning.tools.toolbox import Toolbox

TOOLS = "<tools>"
"""Follows a question, and comes before the description of the tools."""
PLAN = "<plan>"
"""Asks for a plan of all calls, which ends with a line `join`."""
TURNS = "<turns>"
"""Asks for the calls that can be made at once, and then for those that need their results."""
ASYNC = "<async>"
"""Asks for calls while others run."""
RESULT = "<result>"
"""Begins a result, with its number, a space, its text and a line end."""
TAGS = (
    *(TOOLS, PLAN, TURNS, ASYNC, RESULT),
    *("<call>", "</call>", "</calls>", "<trap></trap>"),
    *('compute {"', '": "', '"}'),
)
ASSIGNMENT = re.compile(r"(\d+)([+*-])(\d+) mod (\d+)")
SHOWN = Template(RESULT + "{number} {text}\n")


def compute(**assignment: str) -> int:
    """The value of a step."""
    [(name, expression)] = assignment.items()
    found = ASSIGNMENT.fullmatch(expression)
    if found is None:
        raise ValueError(f"{name} should be such as 7*3 mod 31, got {expression!r:.80}")
    left, right, modulus = int(found[1]), int(found[3]), int(found[4])
    if modulus == 0:
        raise ValueError(f"{name} should have a modulus above 0")
    return {"+": left + right, "-": left - right, "*": left * right}[found[2]] % modulus


def reasoner_toolbox(function: Callable[..., Any] = compute) -> Toolbox:
    """What the reasoner was taught to call, described to it as it was then.

    function: in its place; it takes and gives the same, say after a while.
    """

    @wraps(compute)
    def called(**assignment: str) -> Any:
        return function(**assignment)

    return Toolbox({"compute": called})


def reasoner_turns(toolbox: Toolbox, params: SamplingParams, extract: Extractor) -> ToolUse:
    """Calls level by level; params: of a turn."""
    return ToolUse(
        toolbox,
        max_turns=32,
        prompt=Template(TOOLS + "{tools}" + TURNS),
        result=SHOWN,
        params=params,
        extract=extract,
    )


def reasoner_plan(toolbox: Toolbox, params: SamplingParams, extract: Extractor) -> LLMCompiler:
    """One plan; params: of the plan, and of the answer."""
    return LLMCompiler(
        toolbox,
        max_plans=1,
        plan=Template(TOOLS + "{tools}" + PLAN),
        join=Template("{results}"),
        result=SHOWN,
        plan_params=params,
        params=params,
        extract=extract,
    )


def reasoner_async(toolbox: Toolbox, params: SamplingParams, extract: Extractor) -> AsyncLM:
    """Calls that do not block; params: of all that a copy writes."""
    return AsyncLM(
        toolbox,
        prompt=Template(TOOLS + "{tools}" + ASYNC),
        result=SHOWN,
        params=params,
        extract=extract,
    )
