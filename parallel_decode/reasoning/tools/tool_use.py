"""Tool use: branches ask for calls, wait for the results, and go on with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from parallel_decode.engine import Branch, Extend, Release, SamplingParams, Steps
from parallel_decode.reasoning.extract import last_number
from parallel_decode.reasoning.extraction import Extractor
from parallel_decode.reasoning.gather import gather
from parallel_decode.reasoning.method import Card, Method
from parallel_decode.reasoning.pipeline import Pipeline
from parallel_decode.reasoning.select import Select
from parallel_decode.reasoning.stages import Copies
from parallel_decode.reasoning.tools.toolbox import Request, Toolbox, requests_in
from parallel_decode.reasoning.tools.waiting import waste_of_waiting

Read = Callable[[str], Sequence[Request]]
"""The text of a turn to the calls that it asks for."""


@dataclass(frozen=True)
class ToolUse(Method):
    """D copies the question; P samples turns: one that ends with `end_of_calls` has its calls made,
    all at a time, and goes on with their results; the answers vote. Other branches go on meanwhile.

    What goes wrong in a call is told to the model as its result. It asks for a model that was
    trained to write calls.

    Args:
        toolbox: what may be asked for.
        n: samples.
        max_turns: turns with calls of a branch at the most; after that it goes no further.
        end_of_calls: string that ends a turn with calls.
        result: how one is shown, with {number} from 1 and {text}.
        read: finds the calls.
        seconds: how long a turn's calls are expected to take.
        seconds_per_token: to compute a token again; None to keep the keys of who waits.
        params: how turns are drawn; max_tokens is that of a turn.
        extract: text of a branch to its answer.
    """

    card: ClassVar = Card(
        "tool-use",
        "tools",
        "Yao et al., 2023; Abhyankar et al., 2024",
        ("prefill", "fork", "extend", "call", "release"),
    )

    toolbox: Toolbox
    n: int = 1
    max_turns: int = 8
    end_of_calls: str = "</calls>"
    result: str = "\n[{number}] {text}"
    read: Read = requests_in
    seconds: float = 1.0
    seconds_per_token: float | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number

    def __post_init__(self) -> None:
        if self.max_turns < 0:
            raise ValueError(f"max_turns must not be negative, got {self.max_turns}")
        if not self.end_of_calls:
            raise ValueError("end_of_calls must not be empty")
        if "{text}" not in self.result:
            raise ValueError(f"result must hold {{text}}, got {self.result!r}")
        waste_of_waiting(1, 0, self.seconds, self.seconds_per_token or 0.0)
        super().__post_init__()

    def pipeline(self) -> Pipeline:
        return Pipeline(Copies(self.n), self._converse, Select(self.extract))

    def _converse(self, branches: Sequence[Branch]) -> Steps:
        yield from gather([self._turns(branch, branches) for branch in branches])
        return branches

    def _turns(self, branch: Branch, branches: Sequence[Branch]) -> Steps:
        params = replace(self.params, stop=(*self.params.stop, self.end_of_calls))
        tokens = ""
        for turn in range(self.max_turns + 1):
            begin = len(branch.own_text)
            yield Extend([branch], params, tokens=tokens)
            asks = branch.finish_reason == "stop" and branch.stop_string == self.end_of_calls
            if not asks or turn == self.max_turns:
                return
            requests = self.read(branch.own_text[begin + len(tokens) :])
            if self._should_release(branch, branches):
                yield Release([branch])
            results = yield from gather([self.toolbox.run(request) for request in requests])
            shown = results or ["error: no call was found"]
            tokens = "".join(
                self.result.replace("{number}", str(number)).replace("{text}", text)
                for number, text in enumerate(shown, 1)
            )

    def _should_release(self, branch: Branch, branches: Sequence[Branch]) -> bool:
        if self.seconds_per_token is None or not branch.recomputable:
            return False
        own = branch.num_tokens - branch.fork_length
        others = sum(b.num_tokens - b.fork_length for b in branches if b.status == "live") - own
        waste = waste_of_waiting(own, max(0, others), self.seconds, self.seconds_per_token)
        return waste.least == "drop"
