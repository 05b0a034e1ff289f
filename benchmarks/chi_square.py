"""Pearson's test of counts against probabilities."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch

Item = TypeVar("Item")

RARE = 5
"""Items that are expected less often than this are one cell."""


class ChiSquare(NamedTuple):
    """p_value: how probable so large a statistic is for a sound program."""

    statistic: float
    degrees: int
    p_value: float


def chi_square(counts: Mapping[Item, int], law: Mapping[Item, float]) -> ChiSquare:
    """counts: how often each item came. law: probability of each, of sum 1; what came and is not
    there belongs to the rare ones."""
    total = sum(counts.values())
    common = {item: total * p for item, p in law.items() if total * p >= RARE}
    cells = [(counts.get(item, 0), expected) for item, expected in common.items()]
    rest = total - sum(common.values())
    if rest >= 1:
        cells.append((total - sum(seen for seen, _ in cells), rest))
    if len(cells) < 3:
        raise ValueError(f"too few items to say anything: {len(cells)} cells of {total} counts")
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    degrees = len(cells) - 1
    halves = (torch.tensor(x / 2, dtype=torch.float64) for x in (degrees, statistic))
    return ChiSquare(statistic, degrees, float(torch.special.gammaincc(*halves)))
