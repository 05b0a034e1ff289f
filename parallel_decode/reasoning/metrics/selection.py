"""A selection against the majority and against its own candidates, question by question."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Selection(NamedTuple):
    """Shares of questions; NaN where there is no such question.

    Attributes:
        harm: wrong where the majority is right.
        rescue: right where the majority is wrong.
        super_oracle: right where no candidate is, which takes more than a choice.
    """

    harm: float
    rescue: float
    super_oracle: float


def selection(
    right: Sequence[bool], majority_right: Sequence[bool], any_right: Sequence[bool]
) -> Selection:
    """How a method differs from the majority of the same samples.

    Args:
        right: whether the method's answer is right, for each question.
        majority_right: whether that of the majority is.
        any_right: whether any candidate is.
    """
    if not len(right) == len(majority_right) == len(any_right):
        raise ValueError(f"{len(right)}, {len(majority_right)} and {len(any_right)} verdicts")
    return Selection(
        harm=_share([not r for r, m in zip(right, majority_right, strict=True) if m]),
        rescue=_share([r for r, m in zip(right, majority_right, strict=True) if not m]),
        super_oracle=_share([r for r, a in zip(right, any_right, strict=True) if not a]),
    )


def _share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts) if verdicts else math.nan
