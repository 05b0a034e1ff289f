"""`Speculation`: as many draft tokens a step as pay, down to none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import Drafter
from parallel_decode.engine.speculator import Verified
from parallel_decode.speculation.step_costs import StepCosts

NUM_BINS = 16
PRIOR = 8.0
"""Observations that a drafter's own estimate counts for in each bin."""
FORGET = 0.995
"""What is left of an old observation's weight after each new step of its kind."""
LEAST_GAIN = 1.02
"""Predicted, below which nothing is drafted."""
PROBE_SHARE = 0.01
"""Of the time, for drafts that are made only to see whether they would pay by now."""

CHEAP_SHARE = 0.005
"""Of a step, for a node of each branch: a drafter that takes less is asked for all it has."""


@dataclass
class SpeculationStats:
    """Counts since the start.

    Attributes:
        steps: in which branches drew that could have had a draft.
        drafted_steps: of these, those with a draft.
        tokens: that branches got in all of these steps.
        branch_steps: branches, summed up over the steps: tokens without any draft.
        drafted, accepted: nodes that were computed, and those that were right.
        draft_seconds: in the drafter.
    """

    steps: int = 0
    drafted_steps: int = 0
    tokens: int = 0
    branch_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_seconds: float = 0.0

    @property
    def tokens_per_step(self) -> float:
        """Of a branch."""
        return self.tokens / max(1, self.branch_steps)

    @property
    def acceptance(self) -> float:
        """Of a drafted node."""
        return self.accepted / max(1, self.drafted)


class Speculation:
    """Asks a drafter, and keeps of its trees what is expected to pay: the nodes with the most
    probable paths, so many of all branches together that

        (branches + sum of the nodes' probabilities) / seconds(rows + nodes)

    is greatest (Sequoia's optimum for given probabilities, where a greedy choice finds it: no path
    is more probable than its beginning). Probabilities are the drafter's, corrected by how often
    such nodes were right; seconds are the machine's.

    Where drafts do not pay, the drafter is asked so seldom that this takes PROBE_SHARE of the time.

    Args:
        drafter: whose trees are verified.
        costs: of a step on this machine; see `StepCosts.measure`.
        max_nodes: of one branch.
    """

    def __init__(self, drafter: Drafter, costs: StepCosts, max_nodes: int = MAX_NODES) -> None:
        if not 1 <= max_nodes <= MAX_NODES:
            raise ValueError(f"max_nodes must be from 1 to {MAX_NODES}, got {max_nodes}")
        self.drafter = drafter
        self.costs = costs
        self.max_nodes = max_nodes
        self.stats = SpeculationStats()
        self._right = np.zeros(NUM_BINS)
        self._tried = np.zeros(NUM_BINS)
        self._best = np.zeros(0)  # mean probability of a branch's likeliest node, the next, ...
        self._seconds_per_node = 0.0  # of the drafter, for a branch
        self._asleep_until = 0.0
        self._draft_seconds = 0.0  # of the current step

    # ---- a step ----

    def wants_to_draft(self) -> bool:
        """See `Speculator.wants_to_draft`."""
        return time.perf_counter() >= self._asleep_until

    def draft(
        self, branches: Sequence[Branch], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        """See `Speculator.draft`."""
        started = time.perf_counter()
        limit = self._limit(len(branches), num_rows, max_nodes)
        trees = self.drafter.propose(branches, [limit] * len(branches))
        drafted = time.perf_counter()
        self._note_draft(limit, (drafted - started) / len(branches))
        kept = self._choose(trees, len(branches), num_rows, max_nodes, drafted - started)
        self._draft_seconds = time.perf_counter() - started
        self.stats.draft_seconds += self._draft_seconds
        if kept is None:
            self._sleep(self._draft_seconds)
            return [NO_DRAFT] * len(branches)
        return kept

    def _choose(
        self,
        trees: Sequence[DraftTree],
        num_branches: int,
        num_rows: int,
        max_nodes: int,
        draft_seconds: float,
    ) -> list[DraftTree] | None:
        """What pays of these trees; None where nothing does."""
        sizes = [len(tree) for tree in trees]
        if not any(sizes):
            return None
        right = self._corrected(np.concatenate([tree.path_probabilities for tree in trees]))
        if self._is_dear(num_branches, num_rows):
            self._note_best(right, sizes)
        seconds = self.costs.seconds
        rows = min(num_rows, len(seconds) - 2)
        order = np.argsort(-right, kind="stable")[: min(max_nodes, len(seconds) - 1 - rows)]
        rates = (num_branches + np.cumsum(right[order])) / seconds[rows + 1 : rows + 1 + len(order)]
        best = int(np.argmax(rates))
        plain_rate = num_branches / float(seconds[rows])
        if rates[best] < LEAST_GAIN * plain_rate:
            return None
        tokens, taken = num_branches + right[order[: best + 1]].sum(), seconds[rows + 1 + best]
        if tokens / (taken + draft_seconds) < LEAST_GAIN * plain_rate:
            # Worth computing now that it is there, and not worth asking for again.
            self._sleep(draft_seconds)
        kept = np.zeros(len(right), bool)
        kept[order[: best + 1]] = True
        return _keep(trees, sizes, kept)

    def _sleep(self, draft_seconds: float) -> None:
        self._asleep_until = time.perf_counter() + draft_seconds / PROBE_SHARE

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        """See `Speculator.learn`."""
        self.costs.observe(num_rows, seconds - self._draft_seconds)
        stats = self.stats
        stats.steps += 1
        stats.branch_steps += len(verified)
        stats.tokens += len(verified) + sum(len(entry.path) for entry in verified)
        drafted = [entry for entry in verified if len(entry.draft)]
        if not drafted:
            return
        stats.drafted_steps += 1
        stats.drafted += sum(len(entry.draft) for entry in drafted)
        stats.accepted += sum(len(entry.path) for entry in drafted)
        bins = _bins(np.concatenate([entry.draft.path_probabilities for entry in drafted]))
        right = np.concatenate([_indicator(entry) for entry in drafted])
        self._right = FORGET * self._right + np.bincount(bins, right, NUM_BINS)
        self._tried = FORGET * self._tried + np.bincount(bins, minlength=NUM_BINS)

    def observe(self, branch: Branch) -> None:
        """See `Speculator.observe`."""
        self.drafter.observe(branch)

    def forget(self, branch: Branch) -> None:
        """See `Speculator.forget`."""
        self.drafter.forget(branch)

    # ---- what it knows ----

    def _corrected(self, paths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities of paths, as drafted -> as they turned out. They stay in their order where
        they are of one bin."""
        bins = _bins(paths)
        tried = self._tried[bins]
        rate = (self._right[bins] + PRIOR * paths) / (tried + PRIOR)
        centre = (bins + 0.5) / NUM_BINS
        # Within a bin it rises as the drafter says.
        return np.clip(rate * (0.75 + 0.25 * paths / centre), 0.0, 1.0)

    def _limit(self, num_branches: int, num_rows: int, max_nodes: int) -> int:
        """Nodes a branch that are worth asking for."""
        most = min(self.max_nodes, max(1, max_nodes))
        if not self._is_dear(num_branches, num_rows) or len(self._best) == 0:
            return most
        # Nodes that were never asked for are taken to follow the last ones' fall.
        known = self._best
        fall = 0.9 ** np.arange(1, most + 1)
        probabilities = np.concatenate([known, known[-1] * fall])[:most]
        sizes = 1 + np.arange(most)
        tokens = num_branches * (1 + np.cumsum(probabilities))
        rows = np.minimum(num_rows + num_branches * sizes, len(self.costs.seconds) - 1)
        taken = self.costs.seconds[rows]
        taken = taken + num_branches * sizes * self._seconds_per_node
        return int(sizes[np.argmax(tokens / taken)])

    def _is_dear(self, num_branches: int, num_rows: int) -> bool:
        """Whether what one node takes to draft is worth a thought."""
        seconds = float(self.costs.seconds[min(num_rows, len(self.costs.seconds) - 1)])
        return self._seconds_per_node * num_branches > CHEAP_SHARE * seconds

    def _note_draft(self, limit: int, seconds: float) -> None:
        per_node = seconds / limit
        known = self._seconds_per_node
        self._seconds_per_node = per_node if known == 0 else 0.9 * known + 0.1 * per_node

    def _note_best(self, right: NDArray[np.float64], sizes: Sequence[int]) -> None:
        table = np.zeros((len(sizes), max(sizes)))
        first = 0
        for row, size in enumerate(sizes):
            table[row, :size] = right[first : first + size]
            first += size
        table.sort(1)
        means = table[:, ::-1].mean(0)
        both = max(len(means), len(self._best))
        old = np.pad(self._best, (0, both - len(self._best)))
        new = np.pad(means, (0, both - len(means)))
        self._best = np.where(old == 0, new, 0.9 * old + 0.1 * new)


def _keep(
    trees: Sequence[DraftTree], sizes: Sequence[int], kept: NDArray[np.bool_]
) -> list[DraftTree]:
    cut, first = [], 0
    for tree, size in zip(trees, sizes, strict=True):
        mine = kept[first : first + size]
        first += size
        cut.append(tree if mine.all() else tree.keep(_closed(tree, mine)))
    return cut


def _bins(paths: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((paths * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def _indicator(entry: Verified) -> NDArray[np.float64]:
    right = np.zeros(len(entry.draft))
    right[entry.path] = 1.0
    return right


def _closed(tree: DraftTree, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without nodes whose parent is not kept: corrected probabilities may rise along a path."""
    closed = kept.copy()
    for node, parent in enumerate(tree.parents.tolist()):
        if parent >= 0 and not closed[parent]:
            closed[node] = False
    return closed
