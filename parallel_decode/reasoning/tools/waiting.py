"""What becomes of the keys of a branch that waits for a call (Abhyankar et al., 2024)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Literal, NamedTuple

from parallel_decode.engine import Branch, Engine, Release, Steps, Swap

Wait = Literal["keep", "swap", "drop"]
NUM_MEASURED = 5


class Waste(NamedTuple):
    """KV tokens held for nothing, times seconds, in each of three ways to wait (InferCept)."""

    keep: float
    drop: float
    swap: float

    @property
    def least(self) -> Wait:
        """The way that wastes the least; to keep, among equals."""
        ways: dict[Wait, float] = {"keep": self.keep, "drop": self.drop, "swap": self.swap}
        return min(ways, key=lambda way: ways[way])


def waste_of_waiting(
    num_tokens: int,
    other_tokens: int,
    seconds: float,
    seconds_per_token: float,
    swap_seconds_per_token: float = inf,
) -> Waste:
    """keep: t·C; drop: T(C)·(C + C_other), as everybody waits for its computation; swap:
    2·T_swap(C)·(C + C_other).

    Args:
        num_tokens: C, tokens of the branch that it shares with nobody.
        other_tokens: C_other, those of all others that run.
        seconds: t, how long the call will take, as far as is known.
        seconds_per_token: to compute a token again; infinite where text can't bring it back.
        swap_seconds_per_token: to move one out or in; infinite where there is nowhere to move it.
    """
    values = (num_tokens, other_tokens, seconds, seconds_per_token, swap_seconds_per_token)
    if any(not value >= 0 for value in values):
        raise ValueError(f"numbers of tokens and seconds must not be negative, got {values}")
    if not num_tokens:
        return Waste(0.0, 0.0, 0.0)
    held = num_tokens + other_tokens
    return Waste(
        keep=seconds * num_tokens,
        drop=seconds_per_token * num_tokens * held,
        swap=2 * swap_seconds_per_token * num_tokens * held,
    )


@dataclass(frozen=True)
class Waiting:
    """Keeps, swaps or drops the keys of a branch that is about to wait: what wastes least, as far
    as is known. The default keeps them.

    Args:
        seconds_per_token: to compute a token again; None never to drop keys.
        swap_seconds_per_token: to copy a token's keys to the host's memory, or back; None never to
            swap them.
    """

    seconds_per_token: float | None = None
    swap_seconds_per_token: float | None = None

    def __post_init__(self) -> None:
        waste_of_waiting(1, 0, 0.0, _known(self.seconds_per_token), self._swap_seconds)

    @classmethod
    def measured(cls, engine: Engine, num_tokens: int = 256) -> Waiting:
        """With the costs of an engine, where nothing else runs on it."""
        tokens = [token % engine.config.vocab_size for token in range(num_tokens)]
        root = engine.prefill(tokens[:1])
        costs: list[tuple[float, float]] = []
        for _ in range(NUM_MEASURED):
            [branch] = engine.fork(root)
            began = time.perf_counter()
            engine.extend(branch, tokens=tokens)
            computed = time.perf_counter()
            engine.run(Swap([branch]))
            engine.broadcast(branch, ())  # any operation brings its keys back
            costs.append((computed - began, (time.perf_counter() - computed) / 2))
            engine.prune(branch)
        engine.prune(root)
        return cls(*(median(column) / num_tokens for column in zip(*costs, strict=True)))

    @property
    def _swap_seconds(self) -> float:
        return _known(self.swap_seconds_per_token)

    def begin(self, branch: Branch, others: Sequence[Branch], seconds: float) -> Steps:
        """Before a wait of about so many seconds; `others` are the branches that may run
        meanwhile."""
        own = _own(branch)
        running = sum(_own(other) for other in others if other.status == "live") - own
        again = _known(self.seconds_per_token) if branch.recomputable else inf
        swap = inf if branch.is_seen else self._swap_seconds
        way = waste_of_waiting(own, max(0, running), seconds, again, swap).least
        if branch.status in ("live", "finished") and way != "keep":
            yield Swap([branch]) if way == "swap" else Release([branch])


def _known(seconds: float | None) -> float:
    return inf if seconds is None else seconds


def _own(branch: Branch) -> int:
    return branch.num_tokens - branch.fork_length
