"""What becomes of the keys of a branch that waits for a call (Abhyankar et al., 2024)."""

from typing import Literal, NamedTuple

Wait = Literal["keep", "swap", "drop"]


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
    swap_seconds_per_token: float = float("inf"),
) -> Waste:
    """keep: t·C; drop: T(C)·(C + C_other), as everybody waits for its computation; swap:
    2·T_swap(C)·(C + C_other).

    Args:
        num_tokens: C, tokens of the branch that it shares with nobody.
        other_tokens: C_other, those of all others that run.
        seconds: t, how long the call will take, as far as is known.
        seconds_per_token: to compute a token again.
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
