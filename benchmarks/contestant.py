"""What `benchmarks.decode` asks of whoever takes part."""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Workload:
    branches: int
    prefix: int
    suffix: int


@dataclass
class Run:
    """Seconds of the prompt, and the times at which each step's tokens were there."""

    prefill_seconds: float
    token_times: list[float] = field(default_factory=list)
    kv_bytes: int = 0

    def decode_rate(self, branches: int) -> float:
        steps = len(self.token_times) - 1
        return branches * steps / (self.token_times[-1] - self.token_times[0])


class Contestant(Protocol):
    name: str
    dtype: str

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]: ...
    def run(self, prompt: list[int], work: Workload) -> Run: ...
