"""Whether a confidence tells right samples from wrong ones of the same question."""

from collections.abc import Sequence

import numpy as np


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """The chance that a right candidate scores higher than a wrong one, equal ones counted half;
    None where there are not both.

    Raises:
        ValueError: lengths differ, or a score is NaN.
    """
    won, pairs = _ordered_pairs(scores, right)
    return won / pairs if pairs else None


def within_question_discrimination(
    confidences: Sequence[Sequence[float]], correct: Sequence[Sequence[bool]]
) -> float:
    """The chance that a right sample has more confidence than a wrong one of the same question,
    equal ones counted half: an AUROC over the pairs of all questions (Taubenfeld et al., 2025).

    1/2 is what a confidence that knows nothing has. Calibration is another matter, and does not
    help a vote.

    Args:
        confidences: of each sample of each question.
        correct: whether the sample is right.

    Raises:
        ValueError: lengths differ, a confidence is NaN, or no question has both kinds.
    """
    if len(confidences) != len(correct):
        raise ValueError(f"{len(confidences)} questions with confidences, {len(correct)} in all")
    won = pairs = 0.0
    for scores, verdicts in zip(confidences, correct, strict=True):
        more = _ordered_pairs(scores, verdicts)
        won, pairs = won + more[0], pairs + more[1]
    if not pairs:
        raise ValueError("no question has both right and wrong samples")
    return won / pairs


def _ordered_pairs(scores: Sequence[float], right: Sequence[bool]) -> tuple[float, int]:
    """Pairs of a right and a wrong candidate that stand in order, and all such pairs."""
    if len(scores) != len(right):
        raise ValueError(f"{len(scores)} scores for {len(right)} verdicts")
    values, is_right = np.asarray(scores, np.float64), np.asarray(right, bool)
    if np.isnan(values).any():
        raise ValueError("a score is NaN")
    # Wrong ones below each right one, and up to it: equal ones count half.
    wrong = np.sort(values[~is_right])
    below = np.searchsorted(wrong, values[is_right], "left")
    up_to = np.searchsorted(wrong, values[is_right], "right")
    return float((below + up_to).sum() / 2), len(wrong) * int(is_right.sum())
