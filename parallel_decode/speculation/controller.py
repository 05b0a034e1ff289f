"""`Speculation`: as many draft tokens a step as pay, down to none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_decode import _C
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.engine.row_observer import RowObserver
from parallel_decode.engine.verified import Verified
from parallel_decode.speculation.calibration import Calibration
from parallel_decode.speculation.draft_time import DraftTime
from parallel_decode.speculation.step_costs import StepCosts
from parallel_decode.speculation.step_times import HELD_UP, StepTimes
from parallel_decode.speculation.watched_drafts import Judged, WatchedDrafts

FOLLOW, FOLLOW_WATCHED = 0.1, 0.5
"""Weight of the newest of what is averaged over steps; of those that come now and then."""
LEAST_GAIN = 1.02
"""Predicted, below which nothing is drafted."""
STRONG_GAIN = 1.15
"""The same before anything was saved, when a wrong prediction has nothing to be paid from."""
MOST_DEBT = 3.0
"""Plain steps whose time may be lost to drafters that promise so much, their own time left out."""
LOSS_SHARE = 0.01
"""Of the time of all steps that may be lost to drafts that do not pay."""
FIRST_CREDIT = 1.0
"""Plain steps whose time may be lost to the first drafts."""
MOST_CREDIT = 8.0
"""Plain steps whose time may be lost again, of all that was saved before."""
CHEAP_SHARE = 0.005
"""Of a step, for a node of each branch: a drafter that takes less is asked for all it has."""
FIRST_LIMIT = 4
"""Nodes of a branch, as long as it is not known what a drafter takes."""
EXPLORED = 32
"""Nodes that are judged before what was seen of a drafter is believed."""
SPARED = 2.0
"""Calls' time that is spared for when branches begin."""
OBSERVED = 4
"""Of so many branches that end one is observed to its end, as long as drafts do not pay."""
LEFT_ALONE = 64
"""Of so many steps one is without drafts, to see what it takes."""
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

    def count(self, verified: Sequence[Verified], seconds: float) -> None:
        """A step in which the drafter was asked took so long."""
        self.steps += 1
        self.seconds += seconds
        nodes = sum(len(entry.draft) for entry in verified)
        if nodes:
            right = sum(len(entry.path) for entry in verified)
            self.drafted_steps += 1
            self.branch_steps += len(verified)
            self.tokens += len(verified) + right
            self.drafted += nodes
            self.accepted += right

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
    nodes were right; seconds are this machine's. A drafter that takes time is asked for as many
    nodes as maximise the same with that time in it.

    As long as that promises nothing, a drafter is asked now and then, and drafts that do not pay
    are not computed but watched: what the branches say anyway tells how often they were right. The
    time of these calls comes out of the credit: LOSS_SHARE of the time of every step, and what
    drafts have saved. Steps with drafts that turn out longer than they promised are paid from it
    as well, so that no more than that share is lost.

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
        self.max_nodes = max_nodes
        self.stats = SpeculationStats()
        self.calibration = Calibration()
        self.times = StepTimes(costs)
        self._watched = WatchedDrafts()
        self._best = np.full(1, 0.5)  # mean probability of a branch's likeliest node, the next, ...
        self._drafting = DraftTime()
        self._limit = FIRST_LIMIT  # nodes of a branch
        self._num_ended = 0  # branches
        self._watch_seconds = 0.0  # lost to a call as long as drafts don't pay; 0 before the first
        self._num_asked = 0
        self._num_steps = 0
        self._credit: float | None = None  # seconds; None before the first step
        # Predicted for the steps in which the drafter was asked lately, and that without its time.
        self._gain, self._promise = 1.0, 1.0
        self._num_gains = 0
        self._rows = 0  # of the current step, drafts left out
        self._is_alone = False  # whether the current step is one without asking
        self._is_watching = False  # whether its drafts are watched
        self._last_time = time.perf_counter()
        self._draft_seconds = 0.0  # of the current step

    # ---- a step ----

    @property
    def row_observer(self) -> RowObserver | None:
        """See `Speculator.row_observer`."""
        return self.drafter.row_observer

    @property
    def pays(self) -> bool:
        """Whether drafts are expected to."""
        return self._gain > self._least_gain

    @property
    def _least_gain(self) -> float:
        has_saved = self._credit is not None and self._credit > self.times.plain(self._rows)
        return LEAST_GAIN if has_saved and self.calibration.num_tried >= EXPLORED else STRONG_GAIN

    def wants_to_draft(self, num_rows: int) -> bool:
        """See `Speculator.wants_to_draft`."""
        now = time.perf_counter()
        past, self._last_time = now - self._last_time, now
        if self._is_alone:
            self.times.note_plain(self._rows, past)
        has_more, self._rows = num_rows > self._rows, num_rows
        plain = self.times.plain(num_rows)
        if self._credit is None:
            self._credit = FIRST_CREDIT * plain
        # Between two steps there may be more than a step.
        self._credit += LOSS_SHARE * min(past, plain)
        self._num_steps += 1
        if self.pays or self._promise > STRONG_GAIN:
            debt = MOST_DEBT * plain if self._promise > STRONG_GAIN else 0.0
            asks = self._credit >= -debt and self._num_steps % LEFT_ALONE != 0
        else:
            # Mostly when branches have begun: they may be of another kind, or have siblings now
            # that have said what they are going to say.
            asks = self._credit > (0.0 if has_more else SPARED * self._watch_seconds)
        self._is_alone = not asks
        return asks

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        """See `Speculator.draft`."""
        started = time.perf_counter()
        self._note(self._watched.judge(request.branch for request in requests))
        self._is_watching = not self.pays
        if self._num_asked % LOOK_AHEAD == 1 or not self._is_watching:
            self._limit = self._best_limit(len(requests), num_rows)
        limit = min(self._limit, max(1, max_nodes))
        before = time.perf_counter()
        whole: Sequence[DraftTree] = self.drafter.propose(requests, [limit] * len(requests))
        proposing = time.perf_counter() - before
        self._num_asked += 1
        trees = whole
        if any(map(len, whole)):
            self._drafting.note(sum(map(len, whole)), proposing)
            trees = self._choose(whole, num_rows, max_nodes, proposing)
            if not self.drafter.learns_when_computed:
                for request, kept, tree in zip(requests, trees, whole, strict=True):
                    if not len(kept):
                        self._watched.watch(request.branch, tree)
        elif not self._is_watching:
            self._note_gain(1.0, 1.0)
        self._draft_seconds = time.perf_counter() - started
        self.stats.draft_seconds += self._draft_seconds
        return trees

    def _choose(
        self, trees: Sequence[DraftTree], rows: int, max_nodes: int, proposing: float
    ) -> Sequence[DraftTree]:
        """What pays of these trees, which it took `proposing` seconds to draft."""
        count, sizes = len(trees), [len(tree) for tree in trees]
        learns = self._is_watching and self.drafter.learns_when_computed
        kept, promise, gain, best = _C.choose_nodes(
            np.concatenate([tree.parents for tree in trees]),
            np.concatenate([tree.probabilities for tree in trees]),
            sizes,
            self.calibration.factors,
            self.times.drafted(rows, count, min(sum(sizes), max_nodes)),
            self.times.plain(rows),
            proposing,
            self._least_gain,
            count if learns else 0,
        )
        self._note_best(best)
        self._note_gain(gain, promise)
        return _keep(trees, sizes, kept)

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        """See `Speculator.learn`."""
        started = time.perf_counter()
        self.drafter.learn(verified)
        drafted = [entry for entry in verified if len(entry.draft)]
        if drafted:
            said = np.concatenate([entry.draft.path_probabilities for entry in drafted])
            self.calibration.note(said, np.concatenate([_indicator(entry) for entry in drafted]))
        learning = time.perf_counter() - started
        self._draft_seconds += learning
        self.stats.draft_seconds += learning
        seconds += learning
        nodes = sum(len(entry.draft) for entry in drafted)
        tokens = len(verified) + sum(len(entry.path) for entry in drafted)
        plain = self.times.plain(self._rows)
        expected = self.times.drafted(self._rows, len(verified), nodes)[-1] if nodes else plain
        seconds = min(seconds, HELD_UP * (float(expected) + self._draft_seconds))
        # Each token stands for its branch's part of a plain step.
        saved = plain * tokens / len(verified) - seconds
        if drafted:
            self.times.note_drafted(self._rows, len(verified), nodes, seconds - self._draft_seconds)
        else:
            self.times.note_plain(self._rows, seconds - self._draft_seconds)
            saved = -self._draft_seconds  # the rest is a step as it would have been
        if self._is_watching:
            known, lost = self._watch_seconds, max(self._draft_seconds, -saved)
            if known > 0:
                lost = known + FOLLOW * (min(lost, HELD_UP * known) - known)
            self._watch_seconds = lost
        self._pay(-saved)
        self.stats.count(verified, seconds)
        self.stats.seconds_without += seconds + saved

    def observe(self, branch: Branch) -> None:
        """See `Speculator.observe`."""
        self._watched.drop(branch)
        self.drafter.observe(branch)

    def forget(self, branch: Branch) -> None:
        """See `Speculator.forget`."""
        judged = self._watched.end(branch)
        self._note([] if judged is None else [judged])
        # Others may go on like it. Of those that were not asked about some are enough to tell.
        self._num_ended += 1
        if self.pays or self._num_ended % OBSERVED == 0:
            started = time.perf_counter()
            self.drafter.observe(branch)
            self.stats.draft_seconds += time.perf_counter() - started
        self.drafter.forget(branch)

    # ---- what it knows ----

    def _pay(self, seconds: float) -> None:
        if self._credit is not None:
            most = MOST_CREDIT * self.times.plain(self._rows)
            self._credit = min(self._credit - seconds, most)

    def _note(self, judged: Sequence[Judged]) -> None:
        if judged:
            said, right = map(np.concatenate, zip(*judged, strict=True))
            self.calibration.note(said, right)

    def _note_gain(self, gain: float, promise: float) -> None:
        """A step is predicted to be so many times as fast as without asking."""
        self._num_gains += 1
        follow = FOLLOW_WATCHED if self._is_watching else FOLLOW
        weight = max(1 / self._num_gains, follow)
        self._gain += weight * (gain - self._gain)
        self._promise += weight * (max(1.0, promise) - self._promise)

    def _best_limit(self, count: int, rows: int) -> int:
        """Nodes a branch worth asking for; all of a drafter that takes next to nothing."""
        most = self.max_nodes
        if self._num_asked == 0:
            return min(most, FIRST_LIMIT)
        per_node, plain = self._drafting.slope, self.times.plain(rows)
        if per_node * count <= CHEAP_SHARE * plain:
            return most
        fall = UNKNOWN_FALL ** np.arange(1, most + 1)
        probabilities = np.concatenate([self._best, self._best[-1] * fall])[:most]
        sizes = 1 + np.arange(most)
        tokens = count * (1 + np.cumsum(probabilities))
        curve = self.times.drafted(rows, count, count * most)
        taken = curve[np.minimum(count * sizes, len(curve)) - 1]
        call = self._drafting.at_zero + count * sizes * per_node
        limit = int(sizes[np.argmax(tokens / (taken + call))])
        # Now and then some more, to see how it goes on.
        return min(most, 2 * limit) if self._num_asked % LOOK_AHEAD == 0 else limit

    def _note_best(self, means: NDArray[np.float64]) -> None:
        shared = min(len(means), len(self._best))
        self._best[:shared] += FOLLOW * (means[:shared] - self._best[:shared])
        self._best = np.concatenate([self._best, means[shared:]])


def _keep(
    trees: Sequence[DraftTree], sizes: Sequence[int], kept: NDArray[np.bool_]
) -> list[DraftTree]:
    if not kept.any():
        return [NO_DRAFT] * len(trees)
    cut, first = [], 0
    for tree, size in zip(trees, sizes, strict=True):
        mine = kept[first : first + size]
        first += size
        cut.append(tree if mine.all() else tree.keep(mine))
    return cut


def _indicator(entry: Verified) -> NDArray[np.float64]:
    right = np.zeros(len(entry.draft))
    right[entry.path] = 1.0
    return right
