"""`Speculation`: as many draft tokens a step as pay, down to none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.engine.row_observer import RowObserver
from parallel_decode.engine.verified import Verified
from parallel_decode.speculation.step_costs import StepCosts

NUM_BINS = 16
CENTRES = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
PRIOR = 8.0
"""Observations that a drafter's own estimate counts for in each bin."""
FORGET = 0.99
"""What is left of an old observation's weight after each step with drafts."""
FOLLOW = 0.1
"""Weight of the newest of what is averaged over steps."""
LEAST_GAIN = 1.02
"""Predicted, below which nothing is drafted."""
LOSS_SHARE = 0.01
"""Of the time of all steps that may be lost to drafts that do not pay."""
MOST_CREDIT = 8.0
"""Plain steps whose time may be lost again, of all that was saved before."""
MOST_TRUST, FIRST_CALLS = 4, 2
"""Calls in a row that may lose time beside that."""
HELD_UP = 3.0
"""Times what is expected: a step that took longer was held up by others and says no more."""
CHEAP_SHARE = 0.005
"""Of a step, for a node of each branch: a drafter that takes less is asked for all it has."""
FIRST_LIMIT = 4
"""Nodes of a branch, as long as it is not known what a drafter takes."""
EXPLORED = 32
"""Nodes that are tried before what was seen of a drafter is believed."""
LEFT_ALONE = 16
"""Of so many steps one is without drafts."""
LOOK_AHEAD = 8
"""Of so many calls one asks for more than seems to pay."""
UNKNOWN_FALL = 0.95
"""From one node's probability to the next one's, where a drafter was not asked for so many."""


@dataclass
class SpeculationStats:
    """Counts since the start.

    Attributes:
        steps: in which the drafter was asked.
        drafted_steps: of these, those with a draft.
        branch_steps: branches in them, summed up: the tokens that they would have had without.
        tokens: that they had.
        drafted, accepted: nodes that were computed, and those that were right.
        draft_seconds: for drafting and choosing.
        seconds: of all steps in which the drafter was asked.
        seconds_without: that the same tokens would have taken in steps of their own, as predicted.
    """

    steps: int = 0
    drafted_steps: int = 0
    branch_steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_seconds: float = 0.0
    seconds: float = 0.0
    seconds_without: float = 0.0

    @property
    def tokens_per_step(self) -> float:
        """Of a branch, in the steps with drafts."""
        return self.tokens / max(1, self.branch_steps)

    def predicted_speedup(self, seconds: float) -> float:
        """Of a run that took so long, the steps without any asking in it."""
        return (seconds - self.seconds + self.seconds_without) / seconds

    @property
    def acceptance(self) -> float:
        """Of a drafted node."""
        return self.accepted / max(1, self.drafted)


class Speculation:
    """Asks a drafter, and keeps of its trees what is expected to pay: the nodes with the most
    probable paths, so many of all branches together that

        (branches + sum of the nodes' probabilities) / seconds(rows + nodes)

    is greatest. For given probabilities that is the best tree of each size (Sequoia's dynamic
    programme comes to the same, as no path is more probable than its beginning), grown where the
    drafter is confident (EAGLE-2). Probabilities are the drafter's, corrected by how often such
    nodes were right; seconds are this machine's.

    A drafter that takes time is asked for as many nodes as maximise the same with that time in it.
    What drafting saves is its credit, and so is LOSS_SHARE of the time of every step: it is asked
    as long as it has any, so that it may lose that share, and no more.

    Args:
        drafter: whose trees are verified.
        costs: of a step on this machine; see `StepCosts.measure`.
        max_nodes: of one branch.

    Raises:
        ValueError: max_nodes is not from 1 to 63.
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
        self._said = np.zeros(NUM_BINS)  # sums of what the drafter said of them
        self._best = np.full(1, 0.5)  # mean probability of a branch's likeliest node, the next, ...
        self._drafting = _Line()  # seconds of the drafter by nodes
        self._num_asked = 0
        self._credit = 0.0  # seconds
        self._trust = MOST_TRUST
        self._asks = True
        self._num_steps = 0
        self._rows = 0  # of the last step, drafts left out
        self._plain: dict[int, float] = {}  # seconds of a step without drafts by its rows
        self._gain = 1.0  # that the current call promises
        self._step_seconds = 0.0  # of a step without drafts
        self._last_time = time.perf_counter()
        self._draft_seconds = 0.0  # of the current step

    # ---- a step ----

    @property
    def row_observer(self) -> RowObserver | None:
        """See `Speculator.row_observer`."""
        return self.drafter.row_observer

    def wants_to_draft(self) -> bool:
        """See `Speculator.wants_to_draft`."""
        now = time.perf_counter()
        past, self._last_time = now - self._last_time, now
        # Between two steps there may be more than a step.
        self._credit += LOSS_SHARE * min(past, self._step_seconds)
        if not self._asks:
            self._note_plain(past)
        # Now and then a step is left alone, to see what it takes.
        self._num_steps += 1
        self._asks = self._credit >= 0 and self._num_steps % LEFT_ALONE != 2
        return self._asks

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        """See `Speculator.draft`."""
        started = time.perf_counter()
        count = len(requests)
        rows = self._rows = min(num_rows, len(self.costs.seconds) - 2)
        limit, self._gain = self._plan(count, rows, max_nodes)
        trees: Sequence[DraftTree] = self.drafter.propose(requests, [limit] * count)
        asked = time.perf_counter() - started
        sizes = [len(tree) for tree in trees]
        self._num_asked += 1
        if any(sizes):
            self._drafting.note(sum(sizes), asked)
            trees = self._choose(trees, sizes, rows, max_nodes)
        self._draft_seconds = time.perf_counter() - started
        self.stats.draft_seconds += self._draft_seconds
        return trees

    def _choose(
        self, trees: Sequence[DraftTree], sizes: Sequence[int], rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        """What pays of these trees."""
        count = len(trees)
        right = self._corrected(np.concatenate([tree.path_probabilities for tree in trees]))
        _make_falling(trees, right)
        self._note_best(right, sizes)
        seconds = self.costs.seconds
        plain = self._plain_seconds(rows)
        order = np.argsort(-right, kind="stable")[: min(max_nodes, len(seconds) - 1 - rows)]
        tokens = np.cumsum(right[order])
        taken = seconds[rows + 1 : rows + 1 + len(order)]
        last = int(np.argmax((count + tokens) / taken))
        if (count + tokens[last]) / taken[last] < LEAST_GAIN * count / plain:
            if self._tried.sum() >= EXPLORED:
                # What was seen is out of date some day, and drafts are tried again.
                self._right *= FORGET
                self._tried *= FORGET
                self._said *= FORGET
                return [NO_DRAFT] * count
            # It is not known yet how often drafts are right.
            last = min(count, len(order)) - 1
        kept = np.zeros(len(right), bool)
        kept[order[: last + 1]] = True
        return _keep(trees, sizes, kept)

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        """See `Speculator.learn`."""
        started = time.perf_counter()
        self.drafter.learn(verified)
        learning = time.perf_counter() - started
        self._draft_seconds += learning
        self.stats.draft_seconds += learning
        seconds += learning
        table = self.costs.seconds
        seconds = min(
            seconds, HELD_UP * (table[min(num_rows, len(table) - 1)] + self._draft_seconds)
        )
        self.costs.observe(num_rows, seconds - self._draft_seconds)
        stats = self.stats
        stats.steps += 1
        stats.seconds += seconds
        nodes = sum(len(entry.draft) for entry in verified)
        tokens = len(verified) + sum(len(entry.path) for entry in verified)
        plain = self._plain_seconds(self._rows)
        # Each token stands for its branch's part of a plain step.
        without = plain * tokens / len(verified)
        stats.seconds_without += without
        self._step_seconds = plain
        self._credit = min(self._credit + without - seconds, MOST_CREDIT * plain)
        self._trust_it(without - seconds)
        drafted = [entry for entry in verified if len(entry.draft)]
        if not drafted:
            return
        stats.drafted_steps += 1
        stats.branch_steps += len(verified)
        stats.tokens += tokens
        stats.drafted += nodes
        stats.accepted += tokens - len(verified)
        said = np.concatenate([entry.draft.path_probabilities for entry in drafted])
        bins = _bins(said)
        right = np.concatenate([_indicator(entry) for entry in drafted])
        self._right = FORGET * self._right + np.bincount(bins, right, NUM_BINS)
        self._tried = FORGET * self._tried + np.bincount(bins, minlength=NUM_BINS)
        self._said = FORGET * self._said + np.bincount(bins, said, NUM_BINS)

    def _trust_it(self, saved: float) -> None:
        """A drafter that has saved nothing yet may go on for some calls without credit: the first
        ones, which pay for what the others find done, and those that promise something."""
        if saved > 0:
            self._trust = min(self._trust + 1, MOST_TRUST)
        elif self._trust > 0 and (self._num_asked <= FIRST_CALLS or self._gain > LEAST_GAIN):
            self._trust -= 1
            self._credit = max(self._credit, 0.0)

    def observe(self, branch: Branch) -> None:
        """See `Speculator.observe`."""
        self.drafter.observe(branch)

    def forget(self, branch: Branch) -> None:
        """See `Speculator.forget`."""
        self.drafter.forget(branch)

    # ---- what it knows ----

    def _plain_seconds(self, rows: int) -> float:
        known = self._plain.get(rows)
        return float(self.costs.seconds[rows]) if known is None else known

    def _note_plain(self, seconds: float) -> None:
        """A step of as many rows as the last one that was asked about has taken so long."""
        if self._rows:
            known = self._plain.get(self._rows)
            if known is None:  # another number of branches: what was known of it was a guess
                self._plain[self._rows] = min(seconds, float(self.costs.seconds[self._rows]))
            else:
                self._plain[self._rows] = known + FOLLOW * (min(seconds, HELD_UP * known) - known)

    def _corrected(self, paths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities of paths, as drafted -> as they turned out: in each bin the drafter's times
        how often it was right for how often it said so; between two bins what is between."""
        factors = (self._right + PRIOR * CENTRES) / (self._said + PRIOR * CENTRES)
        return np.clip(paths * np.interp(paths, CENTRES, factors), 0.0, 1.0)

    def _plan(self, count: int, rows: int, max_nodes: int) -> tuple[int, float]:
        """Nodes a branch worth asking for, all of a drafter that takes next to nothing, and how
        many times as fast a step then is."""
        most = min(self.max_nodes, max(1, max_nodes))
        seconds = self.costs.seconds
        if self._num_asked == 0:
            return min(most, FIRST_LIMIT), 1.0
        per_node, plain = self._drafting.slope, self._plain_seconds(rows)
        fall = UNKNOWN_FALL ** np.arange(1, most + 1)
        probabilities = np.concatenate([self._best, self._best[-1] * fall])[:most]
        sizes = 1 + np.arange(most)
        tokens = count * (1 + np.cumsum(probabilities))
        taken = seconds[np.minimum(rows + count * sizes, len(seconds) - 1)]
        call = self._drafting.at_zero + count * sizes * per_node
        rates = tokens / (taken + call)
        limit, gain = int(sizes[np.argmax(rates)]), float(rates.max() * plain / count)
        if per_node * count <= CHEAP_SHARE * plain:
            return most, gain
        # Now and then some more, to see how it goes on.
        return (min(most, 2 * limit) if self._num_asked % LOOK_AHEAD == 0 else limit), gain

    def _note_best(self, right: NDArray[np.float64], sizes: Sequence[int]) -> None:
        table = np.zeros((len(sizes), max(sizes)))
        first = 0
        for row, size in enumerate(sizes):
            table[row, :size] = right[first : first + size]
            first += size
        table.sort(1)
        means = table[:, ::-1].mean(0)
        shared = min(len(means), len(self._best))
        self._best[:shared] += FOLLOW * (means[:shared] - self._best[:shared])
        self._best = np.concatenate([self._best, means[shared:]])


class _Line:
    """y = at_zero + slope x through what was noted, the newest most of all."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, x, y, x^2, x y

    def note(self, x: float, y: float) -> None:
        weight, _, sum_y, _, _ = self._sums
        if weight > 2:  # one that was held up counts for little
            y = min(y, 3 * sum_y / weight)
        self._sums = (1 - FOLLOW) * self._sums + (1.0, x, y, x * x, x * y)

    @property
    def slope(self) -> float:
        weight, x, y, xx, xy = self._sums.tolist()
        if weight == 0:
            return 0.0
        spread = xx - x * x / weight
        through_zero = y / x
        if spread <= 1e-3 * xx:
            return through_zero
        return min(max((xy - x * y / weight) / spread, 0.05 * through_zero), through_zero)

    @property
    def at_zero(self) -> float:
        weight, x, y, _, _ = self._sums.tolist()
        return max(0.0, (y - self.slope * x) / weight) if weight else 0.0


def _keep(
    trees: Sequence[DraftTree], sizes: Sequence[int], kept: NDArray[np.bool_]
) -> list[DraftTree]:
    cut, first = [], 0
    for tree, size in zip(trees, sizes, strict=True):
        mine = kept[first : first + size]
        first += size
        cut.append(tree if mine.all() else tree.keep(mine))
    return cut


def _bins(paths: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((paths * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def _indicator(entry: Verified) -> NDArray[np.float64]:
    right = np.zeros(len(entry.draft))
    right[entry.path] = 1.0
    return right


def _make_falling(trees: Sequence[DraftTree], right: NDArray[np.float64]) -> None:
    """Corrected or not, no path is more probable than its beginning."""
    first = 0
    for tree in trees:
        mine = right[first : first + len(tree)].tolist()
        for node, parent in enumerate(tree.parents.tolist()):
            if parent >= 0 and mine[node] > mine[parent]:
                mine[node] = mine[parent]
        right[first : first + len(tree)] = mine
        first += len(tree)
