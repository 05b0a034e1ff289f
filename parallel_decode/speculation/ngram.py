"""Prompt lookup: the branch's last tokens, found earlier in the branch itself (Saxena 2023)."""

import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest


class NGramDrafter(Drafter):
    """Copies what came after the last earlier occurrence of the last n tokens, n <= max_n.

    The longest n that occurs decides. Of its occurrences the last with `num_tokens` tokens behind
    it is copied, or the first one where none has so many. Every probability is 1: nothing is
    counted.
    """

    nodes_are_free = True

    def __init__(self, max_n: int = 3, num_tokens: int = 10) -> None:
        if max_n < 1:
            raise ValueError(f"max_n must be at least 1, got {max_n}")
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        self.max_n = max_n
        self.num_tokens = num_tokens
        self._contexts: weakref.WeakKeyDictionary[Branch, _Context] = weakref.WeakKeyDictionary()

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """See `Drafter.propose`."""
        return [
            DraftTree.chain(
                self._copied(self._observed(request.branch), min(limit, self.num_tokens))
            )
            for request, limit in zip(requests, max_nodes, strict=True)
        ]

    def observe(self, branch: Branch) -> None:
        """See `Drafter.observe`."""
        self._observed(branch)

    def forget(self, branch: Branch) -> None:
        """See `Drafter.forget`."""
        self._contexts.pop(branch, None)

    def _observed(self, branch: Branch) -> NDArray[np.int64]:
        context = self._contexts.get(branch)
        if context is None:
            context = self._contexts[branch] = _Context()
        context.follow(branch)
        return context.tokens

    def _copied(self, tokens: NDArray[np.int64], limit: int) -> list[int]:
        if limit <= 0 or len(tokens) == 0:
            return []
        # Last tokens of the occurrences; the one at the end itself is none.
        found = np.flatnonzero(tokens[:-1] == tokens[-1])
        for n in range(2, min(self.max_n, len(tokens) - 1) + 1):
            longer = found[found >= n - 1]
            longer = longer[tokens[longer - (n - 1)] == tokens[-n]]
            if len(longer) == 0:
                break
            found = longer
        if len(found) == 0:
            return []
        whole = found[found + limit < len(tokens)]
        begin = int(whole[-1] if len(whole) else found[0]) + 1
        copied: list[int] = tokens[begin : begin + limit].tolist()
        return copied


class _Context:
    """The tokens of a branch in one array that has room to grow."""

    def __init__(self) -> None:
        self._room = np.zeros(256, np.int64)
        self._num_tokens = 0

    @property
    def tokens(self) -> NDArray[np.int64]:
        return self._room[: self._num_tokens]

    def follow(self, branch: Branch) -> None:
        num_new = branch.num_tokens - self._num_tokens
        if branch.num_tokens > len(self._room):
            room = np.zeros(2 * branch.num_tokens, np.int64)
            room[: self._num_tokens] = self.tokens
            self._room = room
        if num_new > 0:
            self._room[self._num_tokens : branch.num_tokens] = branch.recent(num_new)
        self._num_tokens = branch.num_tokens
