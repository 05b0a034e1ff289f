"""`Trial`: some calls of a drafter that does not pay, to see whether it would now."""

STEPS = 3
"""With drafts that are computed, before it is judged by what they have saved."""


class Trial:
    """Drafts that are expected to pay are computed, step after step. Others are watched: it goes on
    when the branches have said enough to judge them.

    Args:
        patience: steps that drafts are watched before the next call.

    Attributes:
        is_over, pays: whether it is, and whether drafts have turned out to pay.
        has_waited: whether drafts were watched.
    """

    def __init__(self, patience: int) -> None:
        self.is_over = self.pays = self.has_waited = False
        self._patience = patience
        self._rest = 0  # steps to wait
        self._num_computed = 0  # steps
        self._saved = 0.0  # seconds by these

    def asks(self) -> bool:
        """Whether the drafter is asked in the next step; to be called once a step."""
        self._rest = max(0, self._rest - 1)
        return self._rest == 0

    def drafted(self, is_computed: bool, has_proposed: bool, pays: bool) -> None:
        """A call is over; pays: as is expected now, the drafter's time included."""
        if is_computed:
            self._num_computed += 1
        elif has_proposed and not self.has_waited:
            self.has_waited, self._rest = True, self._patience + 1
            return
        # Where it saves time, whatever is expected, it is too early to judge.
        goes_on = is_computed and (self._num_computed < STEPS or self._saved > 0)
        self.pays = pays and self._num_computed >= STEPS
        self.is_over = self.pays or not goes_on

    def saved(self, seconds: float) -> None:
        """By a step with drafts."""
        self._saved += seconds
