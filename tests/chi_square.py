"""Pearson's test of counts against probabilities, with a bound that needs no table."""

import math
from collections.abc import Mapping
from typing import TypeVar

Item = TypeVar("Item")


def bound(degrees: int, level: float = 1e-4) -> float:
    """What a chi-square variable exceeds with probability `level` at the most (Laurent and Massart,
    2000)."""
    x = -math.log(level)
    return degrees + 2 * math.sqrt(degrees * x) + 2 * x


def assert_follows(counts: Mapping[Item, int], law: Mapping[Item, float]) -> None:
    """Fails a sound program once in 10,000 seeds. Items that are rarely expected are put together.

    Args:
        counts: how often each item came.
        law: probability of each; the sum is 1.
    """
    assert math.isclose(math.fsum(law.values()), 1, abs_tol=1e-6)
    assert not set(counts) - set(law), "something came that has no probability"
    total = sum(counts.values())
    rare_expected, rare_seen, statistic, cells = 0.0, 0, 0.0, 0
    for item, probability in law.items():
        expected, seen = total * probability, counts.get(item, 0)
        if expected < 5:
            rare_expected, rare_seen = rare_expected + expected, rare_seen + seen
            continue
        statistic += (seen - expected) ** 2 / expected
        cells += 1
    if rare_expected >= 1:
        statistic += (rare_seen - rare_expected) ** 2 / rare_expected
        cells += 1
    assert cells >= 3, "too few items to say anything"
    assert statistic < bound(cells - 1), f"{statistic:.1f} for {cells - 1} degrees of freedom"
