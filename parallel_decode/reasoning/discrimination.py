"""How well scores tell right from wrong candidates.

Pure functions of stored samples. What matters for a choice among candidates is discrimination
within a question: a score that only tells easy questions from hard ones chooses nothing.
"""

import math
from collections.abc import Sequence
from itertools import groupby


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """The chance that a right candidate scores higher than a wrong one, ties counted half; None
    where there are not both."""
    if len(scores) != len(right):
        raise ValueError(f"{len(scores)} scores, {len(right)} verdicts")
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN")
    num_right = sum(map(bool, right))
    num_wrong = len(right) - num_right
    if not num_right or not num_wrong:
        return None
    pairs, wrong_below = 0.0, 0
    ordered = sorted(zip(scores, map(bool, right), strict=True))
    for _, group in groupby(ordered, key=lambda item: item[0]):
        verdicts = [verdict for _, verdict in group]
        good = sum(verdicts)
        bad = len(verdicts) - good
        pairs += good * (wrong_below + bad / 2)
        wrong_below += bad
    return pairs / (num_right * num_wrong)


def within_question_auroc(
    scores: Sequence[Sequence[float]], right: Sequence[Sequence[bool]]
) -> float | None:
    """Mean `auroc` over the questions that have right and wrong candidates; None without one.

    Args:
        scores, right: of each question's candidates.
    """
    if len(scores) != len(right):
        raise ValueError(f"scores of {len(scores)} questions, verdicts of {len(right)}")
    found = [auroc(*question) for question in zip(scores, right, strict=True)]
    values = [value for value in found if value is not None]
    return math.fsum(values) / len(values) if values else None
