"""`StepTimes`: what the steps of an engine take now, with drafts and without."""

import numpy as np
from numpy.typing import NDArray

from parallel_decode.speculation.step_costs import MAX_ROWS, StepCosts

FOLLOW, FOLLOW_DOWN = 0.1, 0.5
"""Weight of the newest of what is averaged; of a step with drafts that was shorter than others."""
HELD_UP = 3.0
"""Times what is expected: a step that took longer was held up by others and says no more."""


class StepTimes:
    """Seconds of a step without drafts are those of the last ones with as many rows. Drafts add
    what so many rows more cost when the machine was measured, and their branches; the sum is
    corrected by how wrong it was lately.

    Args:
        costs: as measured.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._plain: dict[int, float] = {}  # by rows
        count = len(costs.rows)
        # Of what a step with drafts took to what was expected, around each of the rows measured.
        self._ratios, self._seen = np.ones(count), np.zeros(count)
        self._of_branch = costs.branch_seconds * np.arange(MAX_ROWS + 1)
        self._numbers, self._measured_at = np.arange(MAX_ROWS + 1), np.array(costs.rows)

    def plain(self, rows: int) -> float:
        """Of a step without drafts."""
        rows = min(rows, MAX_ROWS)
        known = self._plain.get(rows)
        if known is not None:
            return known
        measured = self._costs.seconds
        if not self._plain:
            return float(measured[rows])
        nearest = min(self._plain, key=lambda other: abs(other - rows))
        return float(self._plain[nearest] * measured[rows] / measured[nearest])

    def per_row(self, rows: int) -> float:
        """Seconds of a row more or less in a step of so many."""
        rows = min(rows, MAX_ROWS)
        measured, half = self._costs.seconds, rows // 2
        if half < 1:
            return 0.0
        slope = float(measured[rows] - measured[half]) / (rows - half)
        return slope * self.plain(rows) / float(measured[rows])

    def drafted(self, rows: int, branches: int, max_nodes: int) -> NDArray[np.float64]:
        """Of a step of `rows` rows with drafts of 1, 2, ... nodes, which are spread over so many
        branches; as many as `max_nodes` and MAX_ROWS rows allow, but at least one."""
        rows = min(rows, MAX_ROWS - 1)
        end = max(1, min(rows + max_nodes, MAX_ROWS))
        expected = self._expected(rows, branches, end - rows)
        known = self._seen > 0
        if not known.any():
            return expected
        numbers = self._numbers[rows + 1 : end + 1]
        return expected * np.interp(numbers, self._measured_at[known], self._ratios[known])

    def _expected(self, rows: int, branches: int, num_nodes: int) -> NDArray[np.float64]:
        measured = self._costs.seconds[rows : rows + num_nodes + 1]
        of_branches = self._of_branch[1 : num_nodes + 1]
        if num_nodes > branches:
            of_branches = np.minimum(of_branches, self._of_branch[branches])
        return measured[1:] + (self.plain(rows) - measured[0]) + of_branches

    def note_plain(self, rows: int, seconds: float) -> None:
        """A step without drafts has taken so long."""
        rows = min(rows, MAX_ROWS)
        known = self._plain.get(rows)
        if known is None:
            # Nothing says that this one was not held up, beside what others have taken.
            self._plain[rows] = min(seconds, HELD_UP * self.plain(rows)) if self._plain else seconds
        else:
            self._plain[rows] = known + FOLLOW * (min(seconds, HELD_UP * known) - known)

    def note_drafted(self, rows: int, branches: int, num_nodes: int, seconds: float) -> None:
        """A step of `rows` rows and so many nodes has taken so long, drafting left out."""
        rows = min(rows, MAX_ROWS - 1)
        total = min(rows + num_nodes, MAX_ROWS)
        expected = float(self._expected(rows, branches, total - rows)[-1])
        bin_ = self._costs.nearest(total)
        known = self._ratios[bin_]
        ratio = min(seconds / expected, HELD_UP * known)
        # The first ones of a row run code that the processor has not at hand: what they can take
        # says more than what they take.
        weight = FOLLOW_DOWN if ratio < known else FOLLOW
        self._ratios[bin_] = known + (weight if self._seen[bin_] else 1.0) * (ratio - known)
        self._seen[bin_] += 1
