"""Speculators for tests of the engine: they know what plain decoding says, or nothing at all."""

from __future__ import annotations

import random
from collections.abc import Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import DraftRequest
from parallel_decode.engine.verified import Verified
from tests.tiny_model import TEXT

Said = dict[tuple[int, tuple[int, ...]], int]
"""(key of a branch's path, its tokens) -> the token that came next."""


class Listener:
    """Drafts nothing, and writes down what branches say: `said` is for a `Guesser`."""

    row_observer = None

    def __init__(self) -> None:
        self.said: Said = {}
        self.verified: list[Verified] = []
        self.num_tokens = 0

    def wants_to_draft(self, num_rows) -> bool:
        return True

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> list[DraftTree]:
        for branch, *_ in requests:
            self._listen(branch)
        return [NO_DRAFT] * len(requests)

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        assert seconds >= 0
        self.verified += verified

    def observe(self, branch: Branch) -> None:
        self._listen(branch)

    def forget(self, branch: Branch) -> None:
        self._listen(branch)

    def _listen(self, branch: Branch) -> None:
        tokens = branch.tokens
        for end in range(len(tokens) - 1, 0, -1):
            before = branch.path_key, tuple(tokens[:end])
            if before in self.said:
                break
            self.said[before] = tokens[end]

    @property
    def num_drafted(self) -> int:
        return sum(len(entry.draft) for entry in self.verified)

    @property
    def num_accepted(self) -> int:
        return sum(len(entry.path) for entry in self.verified)


class Guesser(Listener):
    """Draws trees around what was said, or around nothing.

    Args:
        said: what plain decoding says; without it guesses are random.
        num_nodes: of a tree, as far as the step has room.
        wrong: how probably a node of the main path is wrong, and all behind it.
        decoys: how probably a node is a random child of a random node instead.
        idle: how probably a branch gets no draft at all.
    """

    def __init__(
        self,
        said: Said | None = None,
        num_nodes: int = 8,
        wrong: float = 0.0,
        decoys: float = 0.0,
        idle: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._known = said or {}
        self._num_nodes, self._wrong, self._decoys, self._idle = num_nodes, wrong, decoys, idle
        self._rng = random.Random(seed)

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> list[DraftTree]:
        trees = []
        for request in requests:
            size = 0 if self._rng.random() < self._idle else min(self._num_nodes, max_nodes)
            trees.append(self._tree(request.branch, size))
            max_nodes -= size
        return trees

    def _tree(self, branch: Branch, size: int) -> DraftTree:
        rng, said = self._rng, tuple(branch.tokens)
        tokens: list[int] = []
        parents: list[int] = []
        tip, lost = -1, False
        for node in range(size):
            if rng.random() < self._decoys:
                parents.append(rng.randint(-1, node - 1))
                tokens.append(rng.randrange(len(TEXT)))
                continue
            right = None if lost else self._known.get((branch.path_key, said))
            lost = right is None or rng.random() < self._wrong
            if right is None:
                guess = rng.randrange(len(TEXT))
            else:
                guess = (right + rng.randint(1, len(TEXT) - 1)) % len(TEXT) if lost else right
            parents.append(tip)
            tokens.append(guess)
            said = (*said, guess)
            tip = node
        return DraftTree.of(tokens, parents, [rng.random() for _ in tokens])


def guessers(said: Said) -> dict[str, Listener]:
    """One of each kind."""
    return {
        "right": Guesser(said),
        "right, one node": Guesser(said, num_nodes=1),
        "right, as long as can be": Guesser(said, num_nodes=MAX_NODES),
        "right, among decoys": Guesser(said, num_nodes=30, decoys=0.6),
        "partly wrong": Guesser(said, wrong=0.3, idle=0.1),
        "partly wrong, among decoys": Guesser(said, num_nodes=40, wrong=0.1, decoys=0.5, idle=0.1),
        "random": Guesser(num_nodes=12, decoys=0.5),
        "always wrong": Guesser(said, num_nodes=MAX_NODES, wrong=1.0),
        "nothing": Guesser(said, idle=1.0),
    }


GUESSERS = list(guessers({}))
