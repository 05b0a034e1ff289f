"""Aggregation collapse: a synthesiser that does not reason over its candidates."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from parallel_decode.reasoning.metrics.edit_distance import normalised_edit_distances

SHORTEST = 0.2
"""Of the candidates' median length: less is no reasoning over them."""
COPY = 0.9
"""Overlap, 1 - normalised edit distance, above which a text is a copy."""
ALWAYS = 0.95
ENOUGH = 20
"""Syntheses from which on a share that is nearly one is no accident."""


class Synthesis(NamedTuple):
    """One text over some candidates.

    Attributes:
        text: of the synthesiser.
        answer: of the text; None where it has none.
        candidates: texts in the order in which they were shown.
        answers: of the candidates.
    """

    text: str
    answer: str | None
    candidates: Sequence[str]
    answers: Sequence[str | None]

    @property
    def overlaps(self) -> list[float]:
        """With each candidate, in [0, 1]."""
        distances = normalised_edit_distances([self.text, *self.candidates])
        return [1.0 - float(distance) for distance in distances[0][1:]]

    @property
    def majority(self) -> str | None:
        """The one answer that most candidates give, where not all give it; None on a tie."""
        counts = Counter(answer for answer in self.answers if answer is not None).most_common(2)
        if len(counts) < 2 or counts[0][1] == counts[1][1]:
            return None
        return counts[0][0]


class AggregationCollapse(NamedTuple):
    """Shares over syntheses; NaN where none can tell.

    Attributes:
        num_syntheses: that were looked at.
        num_contested: of these, with a majority that not all candidates belong to.
        length_ratio: of a text to the median of its candidates, the median.
        copies: that overlap with a candidate by more than 0.9.
        first_copied: of these, that copy the candidate shown first.
        majority_share: of the contested ones, with the majority's answer; 1 is a vote.
        new_answers: whose answer no candidate gave.
        flips: of pairs over the same candidates in different orders, with different answers.
    """

    num_syntheses: int
    num_contested: int
    length_ratio: float
    copies: float
    first_copied: float
    majority_share: float
    new_answers: float
    flips: float

    @property
    def warnings(self) -> list[str]:
        """What the reader of a result should know."""
        found = []
        if self.length_ratio < SHORTEST:
            found.append(
                f"the synthesis is {self.length_ratio:.2f} of a candidate's length: it does not"
                " reason over them"
            )
        if self.copies > 0.5:
            where = ", the one shown first" if self.first_copied > ALWAYS else ""
            found.append(f"{self.copies:.0%} of the syntheses copy a candidate{where}")
        if self.num_contested >= ENOUGH and self.majority_share > ALWAYS:
            found.append(
                f"{self.majority_share:.0%} of the syntheses give the majority's answer: a vote"
                " costs less"
            )
        if self.new_answers > 0.5:
            found.append(
                f"{self.new_answers:.0%} of the syntheses give an answer that no candidate gave"
            )
        if self.flips > 0:
            found.append(f"{self.flips:.0%} of pairs of orders of the candidates change the answer")
        return found


def aggregation_collapse(syntheses: Sequence[Synthesis]) -> AggregationCollapse:
    """Of syntheses of one or many questions.

    Raises:
        ValueError: there is none, or one has no candidates.
    """
    if not syntheses or not all(s.candidates for s in syntheses):
        raise ValueError("aggregation collapse needs syntheses with at least one candidate each")
    ratios = [len(s.text) / max(1, median(map(len, s.candidates))) for s in syntheses]
    overlaps = [s.overlaps for s in syntheses]
    # Which one is copied can't be told where two are the same text.
    copied = [row.index(max(row)) for row in overlaps if max(row) > COPY]
    contested = [s for s in syntheses if s.majority is not None]
    answered = [s for s in syntheses if s.answer is not None]
    return AggregationCollapse(
        num_syntheses=len(syntheses),
        num_contested=len(contested),
        length_ratio=median(ratios),
        copies=len(copied) / len(syntheses),
        first_copied=_share([place == 0 for place in copied]),
        majority_share=_share([s.answer == s.majority for s in contested]),
        new_answers=_share([s.answer not in s.answers for s in answered]),
        flips=_share(_flips(syntheses)),
    )


def _flips(syntheses: Sequence[Synthesis]) -> list[bool]:
    """Of each pair over the same candidates, shown in another order."""
    groups: dict[tuple[str, ...], list[Synthesis]] = {}
    for synthesis in syntheses:
        groups.setdefault(tuple(sorted(synthesis.candidates)), []).append(synthesis)
    return [
        one.answer != other.answer
        for group in groups.values()
        for one, other in itertools.combinations(group, 2)
        if list(one.candidates) != list(other.candidates)
    ]


def _share(verdicts: Sequence[bool]) -> float:
    return fmean(verdicts) if verdicts else math.nan
