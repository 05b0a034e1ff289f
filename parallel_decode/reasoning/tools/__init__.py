"""Calls of tools: by turns, by plans whose tasks run side by side, and without waiting."""

from parallel_decode.reasoning.tools.async_lm import AsyncLM
from parallel_decode.reasoning.tools.call_reader import CallReader, Event
from parallel_decode.reasoning.tools.dispatcher import Dispatcher
from parallel_decode.reasoning.tools.llm_compiler import LLMCompiler
from parallel_decode.reasoning.tools.plan import Task, read_task, stuck
from parallel_decode.reasoning.tools.reasoner_format import (
    reasoner_async,
    reasoner_plan,
    reasoner_toolbox,
    reasoner_turns,
)
from parallel_decode.reasoning.tools.tool_use import ToolUse
from parallel_decode.reasoning.tools.toolbox import Request, Result, Tool, Toolbox, requests_in
from parallel_decode.reasoning.tools.waiting import Waiting, Waste, waste_of_waiting

__all__ = [
    "AsyncLM",
    "CallReader",
    "Dispatcher",
    "Event",
    "LLMCompiler",
    "Request",
    "Result",
    "Task",
    "Tool",
    "ToolUse",
    "Toolbox",
    "Waiting",
    "Waste",
    "read_task",
    "reasoner_async",
    "reasoner_plan",
    "reasoner_toolbox",
    "reasoner_turns",
    "requests_in",
    "stuck",
    "waste_of_waiting",
]
