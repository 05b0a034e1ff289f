"""Resampling of weighted particles. Pure functions."""

import math
from collections.abc import Sequence


def effective_sample_size(weights: Sequence[float]) -> float:
    """(Σw)² / Σw²: how many equal particles the weights are worth."""
    squares = math.fsum(w * w for w in weights)
    return math.fsum(weights) ** 2 / squares if squares else 0.0


def systematic(weights: Sequence[float], n: int, uniform: float) -> list[int]:
    """Copies of each particle, n in all: how many of the points (uniform + i) / n its share of the
    weights holds. The expected number is n · w / Σw; equal weights of n particles give 1 each.

    Args:
        weights: finite, not negative, not all 0.
        uniform: in [0, 1).

    Raises:
        ValueError: the weights are not usable.
    """
    total = math.fsum(weights)
    if not 0 < total < math.inf or min(weights) < 0:
        raise ValueError(f"weights must be finite, not negative and not all 0: {list(weights)}")
    counts, below, end = [], 0, 0.0
    for weight in weights:
        end += weight / total * n
        # Points below the end. As many lie below a whole one, which rounding must not miss.
        whole = round(end)
        upto = whole if abs(end - whole) < 1e-9 else math.ceil(end - uniform)
        upto = min(n, max(below, upto))
        counts.append(upto - below)
        below = upto
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    counts[last] += n - below
    return counts
