"""`Progress`: how evenly branches get ahead."""

from collections.abc import Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.verified import Verified

FOLLOW = 0.1
"""Weight of the newest step."""
FEW = 0.2
"""Tokens beyond one a step: where branches have fewer, chance tells them apart."""
LEAST = 0.3
"""Evenness, however far the slowest is behind: who that is changes."""


class Progress:
    """Branches that are decoded side by side end with the slowest of them. What a step costs
    whatever it computes is saved only as far as that one gets ahead.

    Attributes:
        evenness: of the last branches, tokens beyond one a step of the slowest to the mean of all,
            from LEAST to 1.
    """

    def __init__(self) -> None:
        self.evenness = 1.0
        self._ahead: dict[Branch, float] = {}  # tokens beyond one a step

    def note(self, verified: Sequence[Verified]) -> None:
        """A step with drafts has brought so many tokens."""
        gained = [len(entry.path) for entry in verified]
        mean = sum(gained) / len(gained)
        ahead = self._ahead
        for entry, tokens in zip(verified, gained, strict=True):
            known = ahead.get(entry.branch)
            # Of a branch that is new nothing is known but what holds for all.
            known = self._usual(mean) if known is None else known
            ahead[entry.branch] = known + FOLLOW * (tokens - known)
        now = [ahead[entry.branch] for entry in verified]
        usual = sum(now) / len(now)
        if usual > FEW:
            self.evenness = min(1.0, max(LEAST, min(now) / usual))

    def forget(self, branch: Branch) -> None:
        """The branch says nothing more."""
        self._ahead.pop(branch, None)

    def _usual(self, now: float) -> float:
        return sum(self._ahead.values()) / len(self._ahead) if self._ahead else now
