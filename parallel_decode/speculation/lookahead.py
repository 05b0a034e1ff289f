"""Drafts of the model's own guesses at a window of tokens to come."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np

from parallel_decode import _C
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.engine.verified import Verified

FORGET = 0.99
"""What is left of an old outcome's weight after each step."""
PRIOR = 2.0
"""Outcomes, half of them right, that a place of a draft begins with."""

NGram = tuple[int, ...]


class LookaheadDrafter(Drafter):
    """Lookahead decoding (Fu et al. 2024): no model but the target, and no text but its own.

    A draft is a tree of two parts, which are verified in one pass:

    - the window. Column j of it is what the model said of n - 1 tokens in a row, token j from here
      on being the first, each in a step of its own, the newest last. The first of all columns are a
      chain, and the rest of a column hangs on its first token, so that it sees the columns before
      as the paper's mask has it. What the model draws behind a column is the column's next token:
      the oldest one leaves, and all n of them are an n-gram for the pool;
    - n-grams of the pool that begin with the branch's last token.

    The model draws with the branch's own random numbers everywhere, by the place of a token. So the
    window settles to what the branch is going to say at any temperature, as Jacobi iteration does
    for greedy decoding: `LookaheadDrafter(n=2, max_guesses=0)` is that, a chain of the window.

    The pool is the drafter's, so that siblings draft for each other. How probable nodes are is
    counted by their part of the tree and their depth; columns that don't pay are cut off by who
    asks, and then learn nothing.

    Args:
        window: columns, W in the paper.
        n: tokens of an n-gram, N in the paper.
        max_guesses: n-grams of a draft, G in the paper, and as many are remembered of each token.
        max_ngrams: of the pool; those of the token that was looked at least recently go first.

    Raises:
        ValueError: a number is out of range, or a window has more than the 63 nodes of a draft.
    """

    learns_when_computed = True
    nodes_are_free = True

    def __init__(
        self, window: int = 7, n: int = 5, max_guesses: int = 7, max_ngrams: int = 1 << 15
    ) -> None:
        if window < 1 or n < 2 or max_guesses < 0 or max_ngrams < 1:
            raise ValueError(
                "window and max_ngrams must be at least 1, n at least 2 and max_guesses at least"
                f" 0, got {window}, {max_ngrams}, {n} and {max_guesses}"
            )
        if window * (n - 1) > MAX_NODES:
            raise ValueError(
                f"a window has {window} x {n - 1} nodes, a draft has at most {MAX_NODES}"
            )
        self.window = window
        self.n = n
        self._max_guesses = max_guesses
        self._max_ngrams = max_ngrams
        self._num_ngrams = 0
        # By their first token the others; of dictionaries the keys alone, for their order.
        self._pool: dict[int, dict[NGram, None]] = {}
        self._windows: weakref.WeakKeyDictionary[Branch, _Window] = weakref.WeakKeyDictionary()
        # [part, depth]: of a guess from the pool, and of the window.
        self._right = np.full((2, window + n), PRIOR / 2)
        self._tried = np.full((2, window + n), PRIOR)

    @property
    def num_ngrams(self) -> int:
        """In the pool."""
        return self._num_ngrams

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """See `Drafter.propose`."""
        rates = (self._right / self._tried).tolist()
        trees = []
        for (branch, *_), limit in zip(requests, max_nodes, strict=True):
            window = self._windows.get(branch)
            if window is None:
                window = self._windows[branch] = _Window(self.window, self.n)
            window.follow(branch, self._guesses(branch))
            trees.append(window.tree(rates).cut(limit))
        return trees

    def learn(self, verified: Sequence[Verified]) -> None:
        """See `Drafter.learn`."""
        self._right = PRIOR / 2 + FORGET * (self._right - PRIOR / 2)
        self._tried = PRIOR + FORGET * (self._tried - PRIOR)
        for entry in verified:
            window = self._windows.get(entry.branch)
            if window is None or len(entry.draft) == 0:
                continue
            self._count(window, entry)
            for ngram in window.learn(entry):
                self._remember(ngram)

    def observe(self, branch: Branch) -> None:
        """Nothing: guesses have the numbers of their tokens, and are taken up from where the branch
        then is."""

    def forget(self, branch: Branch) -> None:
        """See `Drafter.forget`."""
        self._windows.pop(branch, None)

    def _guesses(self, branch: Branch) -> list[NGram]:
        last = branch.recent(1)
        known = self._pool.pop(last[0], None) if last else None
        if known is None:
            return []
        self._pool[last[0]] = known  # looked at
        return list(known)[::-1]

    def _remember(self, ngram: NGram) -> None:
        first, others = ngram[0], ngram[1:]
        if self._max_guesses == 0:
            return
        known = self._pool.setdefault(first, {})
        self._num_ngrams += others not in known
        known.pop(others, None)
        known[others] = None
        if len(known) > self._max_guesses:
            del known[next(iter(known))]
            self._num_ngrams -= 1
        while self._num_ngrams > self._max_ngrams:
            oldest = next(iter(self._pool))
            del self._pool[oldest][next(iter(self._pool[oldest]))]
            self._num_ngrams -= 1
            if not self._pool[oldest]:
                del self._pool[oldest]

    def _count(self, window: _Window, entry: Verified) -> None:
        """A node was tried where its parent was right."""
        right = {-1, *entry.path}
        parts = window.parts(entry.draft)
        for node, parent in enumerate(entry.draft.parents.tolist()):
            if parent in right:
                place = parts[node], int(entry.draft.depths[node]) - 1
                self._tried[place] += 1
                self._right[place] += node in right


class _Window:
    """Of one branch: rows[r] has the guesses of one step, by the number of their tokens, the oldest
    step first."""

    def __init__(self, width: int, n: int) -> None:
        self._width = width
        self._rows: list[dict[int, int]] = [{} for _ in range(n - 1)]
        self._next = 0  # number of the token that the branch draws next
        self._guesses: list[NGram] = []

    def follow(self, branch: Branch, guesses: list[NGram]) -> None:
        """Begins behind the branch's last token. What isn't guessed yet stands somewhere before."""
        self._next, self._guesses = branch.num_tokens, guesses
        recent = branch.recent(min(branch.num_tokens, 4 * self._width)) or [0]
        for r, row in enumerate(self._rows):
            numbers = range(self._next + r, self._next + r + self._width)
            self._rows[r] = {
                number: row.get(number, recent[number % len(recent)]) for number in numbers
            }

    def _paths(self) -> Iterator[list[int]]:
        """Of the window, one a column."""
        chain: list[int] = []
        for number in range(self._next, self._next + self._width):
            chain.append(self._rows[0][number])
            yield [*chain, *(row[number + 1 + r] for r, row in enumerate(self._rows[1:]))]

    def tree(self, rates: list[list[float]]) -> DraftTree:
        """rates: [part][depth], how often a node is right where its parent is."""
        nodes: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        probabilities: list[float] = []
        for part, paths in enumerate((self._guesses, self._paths())):
            for path in paths:
                node = -1
                for depth, token in enumerate(path):
                    child = nodes.get((node, token))
                    if child is None:
                        child = nodes[node, token] = len(tokens)
                        tokens.append(token)
                        parents.append(node)
                        probabilities.append(rates[part][depth])
                    node = child
        # There may be more of them than a draft has, before it is cut.
        return DraftTree(_C.DraftColumns(tokens, parents, probabilities))

    def parts(self, draft: DraftTree) -> list[int]:
        """Of each node whether it is of the window only."""
        children = _children(draft)
        parts = [1] * len(draft)
        for guess in self._guesses:
            node: int | None = -1
            for token in guess:
                node = None if node is None else children.get((node, token))
                if node is not None:
                    parts[node] = 0
        return parts

    def learn(self, entry: Verified) -> list[NGram]:
        """Goes one step on where columns were verified to their end -> their n-grams."""
        children = _children(entry.draft)
        newest: dict[int, int] = {}
        ngrams: list[NGram] = []
        length = len(self._rows)
        for column, path in enumerate(self._paths()):
            node: int | None = -1
            for token in path:
                node = None if node is None else children.get((node, token))
            if node is None or entry.drawn[1 + node] < 0:
                continue
            token = int(entry.drawn[1 + node])
            newest[self._next + column + length] = token
            ngrams.append((*path[column:], token))
        if newest:
            self._rows = [*self._rows[1:], newest]
        return ngrams


def _children(draft: DraftTree) -> dict[tuple[int, int], int]:
    """The node of (its parent, its token)."""
    pairs = zip(draft.parents.tolist(), draft.tokens.tolist(), strict=True)
    return {pair: node for node, pair in enumerate(pairs)}
