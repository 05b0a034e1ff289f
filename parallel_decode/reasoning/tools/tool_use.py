"""Tool use: branches ask for calls, wait for the results, and go on with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.template import Template
from parallel_decode.reasoning.tools.dispatcher import Dispatcher
from parallel_decode.reasoning.tools.piece import conclude, piece
from parallel_decode.reasoning.tools.plan import Task
from parallel_decode.reasoning.tools.toolbox import Request, Toolbox, requests_in
from parallel_decode.reasoning.tools.waiting import Waiting

Read = Callable[[str], Sequence[Request]]
"""The text of a turn to the calls that it asks for."""


@dataclass(frozen=True)
class ToolUse(Method):
    """D copies the question; P samples turns: one that ends with `end_of_calls` has its calls made,
    all at a time, and goes on with their results; the answers vote. Other branches go on meanwhile.

    What goes wrong in a call is told to the model as its result. A branch without room for its
    results ends there. It asks for a model that was trained to write calls, or that follows the
    prompt.

    Args:
        toolbox: what may be asked for.
        n: samples.
        max_turns: turns with calls of a branch at the most; after that it goes no further.
        max_running: calls of a branch at a time; None for no limit.
        prompt: what a copy is told first, with {tools}; None for nothing.
        end_of_calls: string that ends a turn with calls.
        result: how one is shown, with {number} from 1 and {text}.
        read: finds the calls.
        waiting: what becomes of the keys of who waits.
        params: how turns are drawn; max_tokens is that of a turn.
        extract: text of a branch to its answer.
    """

    card: ClassVar = Card(
        "tool-use",
        "tools",
        "Yao et al., 2023; Abhyankar et al., 2024",
        ("prefill", "fork", "extend", "broadcast", "call", "release", "swap"),
    )

    toolbox: Toolbox
    n: int = 1
    max_turns: int = 8
    max_running: int | None = None
    prompt: Template | None = field(default_factory=partial(Template.named, "tool_use"))
    end_of_calls: str = "</calls>"
    result: Template = field(default_factory=partial(Template.named, "tool_result"))
    read: Read = requests_in
    waiting: Waiting = field(default_factory=Waiting)
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if self.max_turns < 0:
            raise ValueError(f"max_turns must not be negative, got {self.max_turns}")
        if not self.end_of_calls:
            raise ValueError("end_of_calls must not be empty")
        if self.prompt is not None:
            self.prompt.require("tools")
        self.result.require("number", "text")
        Dispatcher(self.toolbox, self.max_running)
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._converse, Select(self.extract))

    def _converse(self, branches: Sequence[Branch]) -> Steps:
        yield from gather([self._turns(branch, branches) for branch in branches])
        return branches

    def _turns(self, branch: Branch, branches: Sequence[Branch]) -> Steps:
        params = replace(self.params, stop=(*self.params.stop, self.end_of_calls))
        calls = Dispatcher(self.toolbox)
        told = "" if self.prompt is None else self.prompt.fill(tools=self.toolbox.described())
        for turn in range(self.max_turns + 1):
            said = yield from piece(branch, params, told, calls)
            asks = branch.finish_reason == "stop" and branch.stop_string == self.end_of_calls
            if said is None or not asks or turn == self.max_turns:
                return
            calls = Dispatcher(self.toolbox, self.max_running, branch)
            for number, request in enumerate(self.read(said), 1):
                calls.add(Task(number, request, literal=True))
            yield from self.waiting.begin(branch, branches, calls.seconds(calls.unfinished))
            yield from calls.finish()
            if calls.interrupted:
                yield from conclude(branch)
                return
            texts = [result.text for _, result in sorted(calls.results.items())]
            told = "".join(
                self.result.fill(number=str(number), text=text)
                for number, text in enumerate(texts or ["error: no call was found"], 1)
            )
