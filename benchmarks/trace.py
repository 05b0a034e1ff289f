"""What branches saw and said: the bits of the logits at every step, and the tokens."""

import hashlib
from collections import defaultdict

from torch import Tensor

from parallel_decode.engine import Branch, Engine
from parallel_decode.engine.branch import Row
from parallel_decode.engine.runner import StepStats


def digest(logits: Tensor) -> bytes:
    """Of the bits: 0.0 and -0.0 differ, and a NaN equals itself."""
    return hashlib.blake2b(logits.numpy().tobytes(), digest_size=16).digest()


class Trace:
    """Follows branches of one engine while it runs.

    Attributes:
        logits: (path, number of tokens before) -> digests, more than one where they ever changed.
        steps: what the engine's forward steps did.
        taken_away: paths of branches that lost their keys after they had begun to sample.
    """

    def __init__(self, engine: Engine) -> None:
        self.logits: dict[tuple[tuple[int, ...], int], set[bytes]] = defaultdict(set)
        self.steps: list[StepStats] = []
        self.taken_away: set[tuple[int, ...]] = set()
        self._branches: dict[tuple[int, ...], Branch] = {}
        self._last_rows: dict[tuple[int, ...], Row] = {}
        self.stop = engine.observe(self._on_step)

    def follow(self, *branches: Branch) -> None:
        """Begins with the logits that the branches have already."""
        for branch in branches:
            self._branches[branch.path] = branch
            self._look(branch)

    def tokens(self) -> dict[tuple[int, ...], list[int]]:
        return {path: branch.tokens for path, branch in self._branches.items()}

    def equals(self, other: "Trace") -> bool:
        """Whether all logits have the same bits and all tokens are the same."""
        return self.logits == other.logits and self.tokens() == other.tokens()

    def _on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)
        for branch in self._branches.values():
            if branch.num_tokens > branch.fork_length and not branch.num_stored:
                self.taken_away.add(branch.path)
            self._look(branch)

    def _look(self, branch: Branch) -> None:
        row = branch.logits_row
        if row is None or row is self._last_rows.get(branch.path):
            return
        self._last_rows[branch.path] = row
        self.logits[branch.path, branch.num_tokens].add(digest(row.value))
