"""Calls of tools: while a branch waits, and by plans whose tasks run side by side."""

from parallel_decode.reasoning.tools.dispatcher import Dispatcher
from parallel_decode.reasoning.tools.plan import Task, check_plan, read_task
from parallel_decode.reasoning.tools.tool_use import ToolUse
from parallel_decode.reasoning.tools.toolbox import Request, Tool, Toolbox, requests_in
from parallel_decode.reasoning.tools.waiting import Waste, waste_of_waiting

__all__ = [
    "Dispatcher",
    "Request",
    "Task",
    "Tool",
    "ToolUse",
    "Toolbox",
    "Waste",
    "check_plan",
    "read_task",
    "requests_in",
    "waste_of_waiting",
]
