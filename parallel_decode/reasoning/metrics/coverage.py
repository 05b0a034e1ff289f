"""The power law of coverage: how pass@k grows with k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class CoverageLaw(NamedTuple):
    """log c = a k^b, with a < 0, and b < 0 where more samples help (Brown et al., 2024).

    Attributes:
        r_squared: share of the variance of log(-log c) that the law explains.
    """

    a: float
    b: float
    r_squared: float

    def coverage(self, k: float) -> float:
        """c = exp(a k^b)."""
        return math.exp(self.a * k**self.b)

    @classmethod
    def fit(cls, ks: Sequence[int], coverage: Sequence[float]) -> CoverageLaw:
        """A straight line through (log k, log(-log c)) by least squares.

        Args:
            ks: numbers of samples.
            coverage: pass@k for each; where it is 0 or 1, its logarithm says nothing, and the point
                is left out.

        Raises:
            ValueError: there are less than two points at different k.
        """
        if len(ks) != len(coverage):
            raise ValueError(f"{len(ks)} numbers of samples, {len(coverage)} values")
        points = [(k, c) for k, c in zip(ks, coverage, strict=True) if k >= 1 and 0 < c < 1]
        if len({k for k, _ in points}) < 2:
            raise ValueError(
                f"a power law needs coverage in (0, 1) at 2 numbers of samples, got {points}"
            )
        x = np.log([k for k, _ in points])
        y = np.log([-math.log(c) for _, c in points])
        b, intercept = np.polyfit(x, y, 1)
        residual, spread = y - (b * x + intercept), y - y.mean()
        explained = 1 - (residual @ residual) / (spread @ spread) if spread.any() else 1.0
        return cls(-math.exp(intercept), float(b), float(explained))
