"""Difficulty of a question, estimated from a few samples.

Pure functions, so that estimates can be compared on stored samples.
"""

from collections import Counter
from collections.abc import Callable, Sequence

Difficulty = Callable[[Sequence[str | None], Sequence[float]], float]
"""Answers and scores of the samples to a difficulty from 0 (easy) to 1 (hard)."""


def disagreement(answers: Sequence[str | None], scores: Sequence[float]) -> float:
    """1 - the share of the most frequent answer; a sample without one agrees with nobody."""
    counts = Counter(answer for answer in answers if answer is not None)
    return 1 - max(counts.values(), default=0) / max(1, len(answers))


def low_scores(answers: Sequence[str | None], scores: Sequence[float]) -> float:
    """1 - the mean score, of scores that are probabilities of being right (Snell et al., 2024)."""
    return 1 - min(1.0, max(0.0, sum(scores) / max(1, len(scores))))


def bin_of(difficulty: float, bounds: Sequence[float]) -> int:
    """The number of the bin: how many of the ascending `bounds` the difficulty reaches."""
    return sum(difficulty >= bound for bound in bounds)
