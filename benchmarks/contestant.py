"""What `benchmarks.decode` asks of whoever takes part, and the work that all of them get."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import numpy as np

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
# A run that is cut short has at least so many timed steps.
MIN_STEPS = 4


@dataclass(frozen=True)
class Workload:
    """A tree of prompts, and what its leaves decode.

    branches: leaves that decode together, the same number over each last node of the tree.
    prefix: tokens of the root.
    suffix: timed steps, one token a branch each; 0 times the prompt alone.
    levels: below the root, per level (children of each node, tokens of each child).
    in_table: whether README's table has it; the figure takes all.
    """

    branches: int
    prefix: int
    suffix: int
    levels: tuple[tuple[int, int], ...] = ()
    in_table: bool = True

    @property
    def nodes(self) -> int:
        return prod(children for children, _ in self.levels)

    @property
    def fan(self) -> int:
        """Branches over each last node."""
        return self.branches // self.nodes

    @property
    def context(self) -> int:
        """Tokens before a branch's first own token."""
        return self.prefix + sum(tokens for _, tokens in self.levels)

    @property
    def stored(self) -> int:
        """Tokens of the tree, each node once."""
        total, nodes = self.prefix, 1
        for children, tokens in self.levels:
            nodes *= children
            total += nodes * tokens
        return total

    @property
    def tree(self) -> str | None:
        """ "512, 4 x 64, 4 x 64": the levels in words, None where there is but a prefix."""
        parts = [str(self.prefix), *(f"{children} x {tokens}" for children, tokens in self.levels)]
        return ", ".join(parts) if self.levels else None

    def texts(self, ids: list[int]) -> list[list[list[int]]]:
        """Per level, each node's own tokens; node i of a level hangs below i // children."""
        levels, nodes = [[ids[: self.prefix]]], 1
        for children, tokens in self.levels:
            nodes *= children
            # Each starts elsewhere in the text, so no two nodes are alike.
            levels.append([ids[i + 1 : i + 1 + tokens] for i in range(nodes)])
        return levels

    def prompts(self, ids: list[int]) -> list[list[int]]:
        """The whole context of each last node."""
        whole, *levels = self.texts(ids)
        for (children, _), texts in zip(self.levels, levels):
            whole = [whole[i // children] + text for i, text in enumerate(texts)]
        return whole


@dataclass
class Run:
    """Seconds of the prompt, and of each step in which all branches got one token."""

    prefill_seconds: float
    step_seconds: list[float] = field(default_factory=list)
    kv_bytes: int = 0

    def decode_rate(self, branches: int) -> float | None:
        if not self.step_seconds:
            return None
        return branches * len(self.step_seconds) / sum(self.step_seconds)


def intervals(times: Iterable[float]) -> list[float]:
    return np.diff(list(times)).tolist()


class Contestant:
    """name, dtype, kv_dtype: of the rows; configuration: what else was chosen, for the last run."""

    name: str
    dtype: str
    kv_dtype: str
    configuration: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name} {self.dtype}:{self.kv_dtype}"

    def takes(self, work: Workload) -> bool:
        """Whether it takes part in a row."""
        return True

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        raise NotImplementedError

    def prepare(self, ids: list[int], work: Workload) -> None:
        """What is chosen for a row before its rounds, and not timed."""

    def run(self, ids: list[int], work: Workload, seconds: float) -> Run:
        """One turn. Decoding may stop after `seconds`, once there are MIN_STEPS."""
        raise NotImplementedError
