"""`CallGraph`: calls of tools that need each other's results, and how long each takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

SHAPES = ("independent", "chain", "diamond", "layers", "random")
NUM_CALLS = 6


@dataclass(frozen=True)
class CallGraph:
    """Calls in an order in which they could be written.

    Args:
        seconds: of each call.
        needs: numbers, from 0, of the earlier calls whose results each needs.
    """

    seconds: Sequence[float]
    needs: Sequence[Sequence[int]]

    @classmethod
    def drawn(cls, shape: str, seed: int, shortest: float, longest: float) -> CallGraph:
        """Six calls: all at once, one after the other, one before and one behind four, three layers
        of two, or each after any earlier one with probability 0.3."""
        rng = random.Random(f"{shape} {seed}")
        last = NUM_CALLS - 1
        needs: list[list[int]] = {
            "independent": [[] for _ in range(NUM_CALLS)],
            "chain": [[n - 1] if n else [] for n in range(NUM_CALLS)],
            "diamond": [[], *[[0]] * (NUM_CALLS - 2), list(range(1, last))],
            "layers": [[n - n % 2 - 2, n - n % 2 - 1] if n > 1 else [] for n in range(NUM_CALLS)],
            "random": [[k for k in range(n) if rng.random() < 0.3] for n in range(NUM_CALLS)],
        }[shape]
        seconds = [round(rng.uniform(shortest, longest), 2) for _ in range(NUM_CALLS)]
        return cls(seconds, needs)

    @cached_property
    def ends(self) -> list[float]:
        """When each call ends, where each starts as soon as it can."""
        ends: list[float] = []
        for seconds, needs in zip(self.seconds, self.needs, strict=True):
            ends.append(max((ends[k] for k in needs), default=0.0) + seconds)
        return ends

    @property
    def critical_path(self) -> float:
        """Seconds that the calls take at the least."""
        return max(self.ends)

    @cached_property
    def levels(self) -> list[list[int]]:
        """Each call in the first level behind all that it needs."""
        depth: list[int] = []
        for needs in self.needs:
            depth.append(max((depth[k] + 1 for k in needs), default=0))
        return [[n for n, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]
