"""Path collapse: samples that are too alike to be worth their number."""

from collections.abc import Sequence
from typing import NamedTuple

from parallel_decode.reasoning.metrics.diversity import (
    distinct_answers,
    mean_edit_distance,
    prefix_overlap,
)

SMALLEST_EDIT_DISTANCE = 0.05
LARGEST_OVERLAP_AT_HALF = 0.9


class Collapse(NamedTuple):
    """How alike the samples of one question are.

    Attributes:
        answers: distinct ones.
        edit_distance: mean over pairs, by the longer length.
        overlap_at_half: share of pairs that are the same up to half of the mean length.
    """

    answers: int
    edit_distance: float
    overlap_at_half: float

    @property
    def warning(self) -> str | None:
        """What is wrong and what helps. One answer alone is no collapse: ways to it may differ."""
        if self.edit_distance == 0:
            return "all branches are the same text: raise the temperature"
        if self.edit_distance < SMALLEST_EDIT_DISTANCE:
            return (
                f"the branches are nearly the same text (mean edit distance"
                f" {self.edit_distance:.3f}): raise the temperature or vary the prompts"
            )
        if self.overlap_at_half > LARGEST_OVERLAP_AT_HALF:
            return (
                f"{self.overlap_at_half:.0%} of the pairs of branches are the same up to half of"
                " their length: raise the temperature or vary the prompts"
            )
        return None


def path_collapse(sequences: Sequence[Sequence[int]], answers: Sequence[str | None]) -> Collapse:
    """Of the tokens of at least two samples of one question, and their answers."""
    half = round(sum(map(len, sequences)) / len(sequences) / 2) if sequences else 0
    overlap = prefix_overlap(sequences)
    return Collapse(
        distinct_answers(answers),
        mean_edit_distance(sequences),
        overlap[half - 1] if half else 1.0,
    )
