"""Reductions: from the scores of a solution's steps to one score.

Pure functions of a list of scores, so that they can be compared on stored samples. `minimum` and
`product` are meant for probabilities.
"""

import math
from collections.abc import Callable, Sequence

Reduction = Callable[[Sequence[float]], float]
"""Scores of the steps, the first step first and at least one, to the score of the whole."""


def minimum(scores: Sequence[float]) -> float:
    """The weakest step (Wang et al., Math-Shepherd, 2024)."""
    return min(scores)


def product(scores: Sequence[float]) -> float:
    """All steps right, as if independent (Lightman et al., 2023); long solutions score lower."""
    return math.prod(scores)


def last(scores: Sequence[float]) -> float:
    """The last step, which stands for all that came before (Snell et al., 2024)."""
    return scores[-1]


def mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


REDUCTIONS: dict[str, Reduction] = {
    "min": minimum,
    "prod": product,
    "last": last,
    "mean": mean,
}
