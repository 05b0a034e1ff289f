"""Answers with weights to one answer."""

import math
from collections.abc import Sequence


def tally(answers: Sequence[str | None], weights: Sequence[float]) -> list[tuple[str, float]]:
    """(answer, sum of its weights), the heaviest first; None does not vote.

    Equal sums stay in the order in which the answers first appear, so that a result repeats.
    """
    if len(answers) != len(weights):
        raise ValueError(f"{len(answers)} answers, {len(weights)} weights")
    sums: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"a vote's weight must be finite and not negative, got {weight}")
        if answer is not None:
            sums[answer] = sums.get(answer, 0.0) + weight
    return sorted(sums.items(), key=lambda item: -item[1])
