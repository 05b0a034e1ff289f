"""`DraftTime`: what a drafter takes by the number of nodes that it is asked for."""

FOLLOW = 0.1
"""Weight of the newest call."""
HELD_UP = 3.0
"""Times the mean: a call that took longer counts as so long."""


class DraftTime:
    """seconds = at_zero + slope * nodes through what was noted, the newest most of all."""

    def __init__(self) -> None:
        self._sums = (0.0,) * 5  # of 1, x, y, x^2, x y
        self._is_cold = False  # whether all that was noted was a first call after a pause

    def note(self, num_nodes: int, seconds: float, is_cold: bool) -> None:
        """A call was asked for so many nodes, at least one, and took so long; is_cold: it came
        after a pause, which makes it longer than those that follow it."""
        if is_cold and self._sums[0]:
            return
        if self._is_cold:
            self._sums = (0.0,) * 5
        self._is_cold = is_cold
        x, y = float(num_nodes), seconds
        weight, sum_x, sum_y, sum_xx, sum_xy = self._sums
        if weight > 2:
            y = min(y, HELD_UP * sum_y / weight)
        rest = 1 - FOLLOW
        self._sums = (
            rest * weight + 1.0,
            rest * sum_x + x,
            rest * sum_y + y,
            rest * sum_xx + x * x,
            rest * sum_xy + x * y,
        )

    def predicted(self, num_nodes: int) -> float:
        """Seconds of a call that is asked for so many; 0 before the first."""
        return self.at_zero + num_nodes * self.slope

    @property
    def slope(self) -> float:
        """Seconds of one node more."""
        weight, x, y, xx, xy = self._sums
        if weight == 0:
            return 0.0
        spread = xx - x * x / weight
        through_zero = y / x
        if spread <= 1e-3 * xx:
            return through_zero
        return min(max((xy - x * y / weight) / spread, 0.05 * through_zero), through_zero)

    @property
    def at_zero(self) -> float:
        """Seconds of a call beside those of its nodes."""
        weight, x, y, _, _ = self._sums
        return max(0.0, (y - self.slope * x) / weight) if weight else 0.0
