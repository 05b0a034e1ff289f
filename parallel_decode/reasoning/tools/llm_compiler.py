"""LLMCompiler: a plan whose calls start while it is still written, and a joiner that may replan."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

from parallel_decode.engine import Branch, SamplingParams, Steps
from parallel_decode.reasoning.at_least import at_least
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
from parallel_decode.reasoning.tools.plan import read_task
from parallel_decode.reasoning.tools.toolbox import Toolbox
from parallel_decode.reasoning.tools.waiting import Waiting

JOIN = re.compile(r"^\s*(\d+[.:]\s*)?join\b")
NUM_SHOWN = 80
"""Characters of a line that is no task."""


@dataclass(frozen=True)
class LLMCompiler(Method):
    """D copies the question; P lets each copy write a plan, in which $k stands for the result of
    task k, and starts a task as soon as its line is complete and what it names is there, while the
    plan goes on; then the copy reads all results, and answers or asks for another plan; the answers
    vote.

    A plan ends with the line `join`, an empty line behind a task, or the end of sequence. What can
    not be made of it - no such tool, a malformed line, a number twice, $k of a task that never
    comes, tasks that wait for each other - is a result "error: ..." for the copy to read; the other
    tasks run. A line may name one that comes later: it waits for it. It asks for a model that
    follows instructions.

    Args:
        toolbox: what may be called.
        n: samples.
        max_plans: of a copy; the numbers of tasks go on, and so do their results. One that asks for
            more has no answer but what `extract` finds.
        max_running: calls of a copy at a time, the longest first; None for no limit.
        plan: what a copy is told first, with {tools}.
        join: what it is told after a plan, with {results}.
        again: what it is told before the next plan; a template without places.
        replan: string in what it says to the results that asks for another plan.
        result: how one is shown, with {number} and {text}.
        waiting: what becomes of a copy's keys between its plan and the results.
        plan_params: how plans are drawn; max_tokens is that of a plan.
        params: how answers to the results are drawn.
        extract: text of a branch to its answer.
    """

    card: ClassVar = Card(
        "llm-compiler",
        "tools",
        "Kim et al., 2024",
        ("prefill", "fork", "extend", "broadcast", "call", "release", "swap"),
    )

    toolbox: Toolbox
    n: int = 1
    max_plans: int = 2
    max_running: int | None = None
    plan: Template = field(default_factory=partial(Template.named, "tool_plan"))
    join: Template = field(default_factory=partial(Template.named, "tool_join"))
    again: Template = field(default_factory=partial(Template.named, "tool_replan"))
    replan: str = "Replan"
    result: Template = field(default_factory=partial(Template.named, "tool_result"))
    waiting: Waiting = field(default_factory=Waiting)
    plan_params: SamplingParams = field(default_factory=SamplingParams)
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        at_least(1, max_plans=self.max_plans)
        if not self.replan:
            raise ValueError("replan must not be empty")
        for template, places in (
            (self.plan, ["tools"]),
            (self.join, ["results"]),
            (self.again, []),
            (self.result, ["number", "text"]),
        ):
            template.require(*places)
        Dispatcher(self.toolbox, self.max_running)
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._process, Select(self.extract))

    def _process(self, branches: Sequence[Branch]) -> Steps:
        yield from gather([self._solve(branch, branches) for branch in branches])
        return branches

    def _solve(self, branch: Branch, branches: Sequence[Branch]) -> Steps:
        calls = Dispatcher(self.toolbox, self.max_running, branch)
        told = self.plan.fill(tools=self.toolbox.described())
        for _ in range(self.max_plans):
            known = set(calls.results)
            problems = yield from self._write_plan(branch, told, calls)
            if problems is None:
                yield from calls.cancel()
                return
            yield from self.waiting.begin(branch, branches, calls.seconds(calls.unfinished))
            yield from calls.finish()
            if calls.interrupted:
                yield from conclude(branch)
                return
            new = {n: result.text for n, result in calls.results.items() if n not in known}
            shown = [self.result.fill(number=str(n), text=new[n]) for n in sorted(new)]
            shown += [self.result.fill(number="?", text=f"error: {why}") for why in problems]
            told = self.join.fill(results="".join(shown))
            said = yield from piece(branch, self.params, told, calls)
            if said is None or self.replan not in said:
                return
            told = self.again.fill()

    def _write_plan(self, branch: Branch, told: str, calls: Dispatcher) -> Steps:
        """Line by line -> what is wrong with lines; None where the branch was cut off."""
        left, unread = self.plan_params.max_tokens, ""
        problems: list[str] = []
        has_tasks = False
        while True:
            stops = (*self.plan_params.stop, "\n")
            params = replace(self.plan_params, stop=stops, max_tokens=left, min_tokens=0)
            before = branch.num_sampled
            said = yield from piece(branch, params, told, calls)
            if said is None or branch.finish_reason in ("budget", "aborted", "error"):
                return None
            told, left = "", left - (branch.num_sampled - before)
            *lines, unread = (unread + said).split("\n")
            goes_on = branch.finish_reason == "stop" and branch.stop_string == "\n"
            if branch.finish_reason == "length" or (goes_on and left <= 0):
                problems.append(f"the plan was cut off after {self.plan_params.max_tokens} tokens")
                goes_on = False
            elif not goes_on:
                lines.append(unread)
            for line in lines:
                if JOIN.match(line) or (has_tasks and not line.strip()):
                    return problems
                problem = _add(calls, line) if line.strip() else None
                problems += [problem] if problem else []
                has_tasks = has_tasks or (problem is None and bool(line.strip()))
            if not goes_on:
                return problems


def _add(calls: Dispatcher, line: str) -> str | None:
    """Adds the task of a line -> why it is none."""
    task = read_task(line)
    if task is None:
        return f'no task in {line.strip():.{NUM_SHOWN}}: write 1. name {{"argument": value}}'
    try:
        calls.add(task)
    except ValueError as error:
        return str(error)
    return None
