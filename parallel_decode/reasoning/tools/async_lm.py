"""AsyncLM: calls that do not block, whose results interrupt the text at safe points."""

from collections.abc import Sequence
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
from parallel_decode.reasoning.tools.call_reader import CallReader, Event
from parallel_decode.reasoning.tools.dispatcher import Dispatcher
from parallel_decode.reasoning.tools.piece import conclude, piece
from parallel_decode.reasoning.tools.plan import Task
from parallel_decode.reasoning.tools.toolbox import Toolbox
from parallel_decode.reasoning.tools.waiting import Waiting

NUM_SHOWN = 80
"""Characters of what is malformed."""


@dataclass(frozen=True)
class AsyncLM(Method):
    """D copies the question; P samples each copy, which goes on while the calls that it writes run:
    a result is put into its text at the next safe point after it has come, that is behind a line,
    a call or a trap, never within one or within a critical section; the answers vote.

    `<call>name {"argument": value}</call>` starts a call. They are numbered from 1; an argument $k
    is the result of call k, which must come before, and what names it waits for it.
    `<trap>k</trap>` waits for call k, `<trap></trap>` for all. A copy that ends while calls run
    waits for them, is told their results, and goes on. Where it runs out of tokens its calls are
    given up. Results that come between the same two safe points are told in the order of their
    numbers. Under a simulated clock a run repeats exactly. What is malformed is told as an error.
    It asks for a model that was trained for it, or that follows the prompt.

    Args:
        toolbox: what may be called.
        n: samples.
        max_running: calls of a copy at a time, the longest first; None for no limit.
        prompt: what a copy is told first, with {tools}; None for nothing.
        result: how one is put into the text, with {number} and {text}.
        sections: (begin, end) of critical sections.
        waiting: what becomes of a copy's keys while it waits in a trap.
        params: how copies are drawn; max_tokens is that of a copy as a whole.
        extract: text of a branch to its answer.
    """

    card: ClassVar = Card(
        "async-lm",
        "tools",
        "Gim et al., 2024",
        ("prefill", "fork", "extend", "broadcast", "call", "release", "swap"),
    )

    toolbox: Toolbox
    n: int = 1
    max_running: int | None = None
    prompt: Template | None = field(default_factory=partial(Template.named, "async_tools"))
    result: Template = field(default_factory=partial(Template.named, "async_result"))
    sections: Sequence[tuple[str, str]] = (("```", "```"),)
    waiting: Waiting = field(default_factory=Waiting)
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=512))
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if self.prompt is not None:
            self.prompt.require("tools")
        self.result.require("number", "text")
        CallReader(self.sections)
        Dispatcher(self.toolbox, self.max_running)
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._process, Select(self.extract))

    def _process(self, branches: Sequence[Branch]) -> Steps:
        yield from gather([self._write(branch, branches) for branch in branches])
        return branches

    def _write(self, branch: Branch, branches: Sequence[Branch]) -> Steps:
        talk = _Talk(self, Dispatcher(self.toolbox, self.max_running, branch))
        reader = CallReader(self.sections)
        told = "" if self.prompt is None else self.prompt.fill(tools=self.toolbox.described())
        start = branch.num_sampled
        while True:
            left = self.params.max_tokens - (branch.num_sampled - start)
            said = yield from piece(branch, self._params(left, reader), told, talk.calls)
            if said is None:
                break
            told, ended = "", branch.finish_reason == "eos"
            own_stop = branch.finish_reason == "stop" and branch.stop_string not in reader.stops
            awaited = talk.take(reader.read(said))
            if branch.finish_reason not in ("stop", "eos") or own_stop:
                break
            if ended:
                awaited = talk.calls.unfinished
            if awaited:
                seconds = talk.calls.seconds(awaited)
                yield from self.waiting.begin(branch, branches, seconds)
                yield from talk.calls.finish(awaited)
            if talk.calls.interrupted:
                yield from conclude(branch)
                break
            if ended or not reader.inside:
                told = talk.news()
            if (ended and not told) or branch.num_sampled - start >= self.params.max_tokens:
                break
        yield from talk.calls.cancel()

    def _params(self, left: int, reader: CallReader) -> SamplingParams:
        stop = tuple(dict.fromkeys((*self.params.stop, *reader.stops)))
        least = max(0, self.params.min_tokens - (self.params.max_tokens - left))
        return replace(self.params, stop=stop, max_tokens=left, min_tokens=min(left, least))


class _Talk:
    """The calls of a copy, and what it has not been told yet."""

    def __init__(self, method: AsyncLM, calls: Dispatcher) -> None:
        self.calls = calls
        self._result = method.result
        self._num_calls = 0
        self._told: set[int] = set()
        self._problems: list[str] = []

    def take(self, events: Sequence[Event]) -> list[int]:
        """Starts calls -> numbers of those that are to be waited for."""
        awaited: list[int] = []
        for kind, body in events:
            if kind == "call":
                self._call(body)
            elif kind == "trap":
                awaited += self._trap(body)
            else:
                self._problems.append(f"not closed on its line: {body:.{NUM_SHOWN}}")
        return [number for number in awaited if number in self.calls.unfinished]

    def _call(self, body: str) -> None:
        self._num_calls += 1
        task = Task.of(self._num_calls, body)
        later = [number for number in sorted(task.after) if not 0 < number < task.number]
        if later:
            why = f"it needs ${later[0]}, which has not been called"
            task = Task(task.number, task.request._replace(problem=why))
        self.calls.add(task)

    def _trap(self, body: str) -> list[int]:
        """Numbers that a trap names, all for none; what is no number of a call is a problem."""
        numbers: list[int] = []
        for word in body.replace(",", " ").split():
            if word.isdecimal() and 0 < int(word) <= self._num_calls:
                numbers.append(int(word))
            else:
                self._problems.append(f"there is no call {word:.{NUM_SHOWN}} to wait for")
        return numbers if body.strip() else list(range(1, self._num_calls + 1))

    def news(self) -> str:
        """Results and problems that it has not been told yet."""
        new = sorted(self.calls.results.keys() - self._told)
        self._told.update(new)
        shown = [(str(number), self.calls.results[number].text) for number in new]
        shown += [("?", f"error: {why}") for why in self._problems]
        self._problems = []
        return "".join(self._result.fill(number=number, text=text) for number, text in shown)
