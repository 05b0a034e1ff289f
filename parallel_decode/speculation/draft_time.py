"""`DraftTime`: what a drafter takes by the number of nodes that it drafts."""

import numpy as np

FOLLOW = 0.1
"""Weight of the newest call."""


class DraftTime:
    """seconds = at_zero + slope * nodes through what was noted, the newest most of all."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, x, y, x^2, x y

    def note(self, num_nodes: int, seconds: float) -> None:
        """A call has drafted so many nodes, at least one, in so many seconds."""
        x, y = float(num_nodes), seconds
        weight, _, sum_y, _, _ = self._sums
        if weight > 2:  # one that was held up counts for little
            y = min(y, 3 * sum_y / weight)
        self._sums = (1 - FOLLOW) * self._sums + (1.0, x, y, x * x, x * y)

    @property
    def slope(self) -> float:
        """Seconds of one node more."""
        weight, x, y, xx, xy = self._sums.tolist()
        if weight == 0:
            return 0.0
        spread = xx - x * x / weight
        through_zero = float(y / x)
        if spread <= 1e-3 * xx:
            return through_zero
        return min(max((xy - x * y / weight) / spread, 0.05 * through_zero), through_zero)

    @property
    def at_zero(self) -> float:
        """Seconds of a call beside those of its nodes."""
        weight, x, y, _, _ = self._sums.tolist()
        return max(0.0, (y - self.slope * x) / weight) if weight else 0.0
