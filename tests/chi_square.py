"""Counts that have to follow a law."""

import math
from collections.abc import Mapping
from typing import TypeVar

from benchmarks.chi_square import chi_square

Item = TypeVar("Item")


def assert_follows(counts: Mapping[Item, int], law: Mapping[Item, float]) -> None:
    """Fails a sound program once in 10,000 seeds.

    Args:
        counts: how often each item came.
        law: probability of each; the sum is 1.
    """
    assert math.isclose(math.fsum(law.values()), 1, abs_tol=1e-6)
    assert not set(counts) - set(law), "something came that has no probability"
    found = chi_square(counts, law)
    assert found.p_value >= 1e-4, f"{found.statistic:.1f} for {found.degrees} degrees of freedom"
