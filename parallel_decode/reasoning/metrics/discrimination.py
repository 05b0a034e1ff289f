"""Whether a confidence tells right samples from wrong ones of the same question."""

from collections.abc import Sequence

import numpy as np


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
        if len(scores) != len(verdicts):
            raise ValueError(f"{len(scores)} confidences for {len(verdicts)} samples")
        values, right = np.asarray(scores, np.float64), np.asarray(verdicts, bool)
        if np.isnan(values).any():
            raise ValueError("a confidence is NaN")
        ahead = values[right][:, None], values[~right][None, :]
        won += float((ahead[0] > ahead[1]).sum() + (ahead[0] == ahead[1]).sum() / 2)
        pairs += int(right.sum()) * int((~right).sum())
    if not pairs:
        raise ValueError("no question has both right and wrong samples")
    return won / pairs
