"""`Speculation`: as many draft tokens a step as pay, down to none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_decode import _C
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import MAX_NODES, DraftTree, columns_of
from parallel_decode.engine.drafter import Drafter, DraftRequest
from parallel_decode.engine.row_observer import RowObserver
from parallel_decode.engine.verified import Verified
from parallel_decode.speculation.calibration import Calibration, Judged
from parallel_decode.speculation.draft_time import DraftTime
from parallel_decode.speculation.progress import Progress
from parallel_decode.speculation.step_costs import StepCosts
from parallel_decode.speculation.step_times import HELD_UP, StepTimes
from parallel_decode.speculation.trial import STEPS, Trial
from parallel_decode.speculation.watched_drafts import WATCHED, WatchedDrafts

FOLLOW, FOLLOW_BEST = 0.25, 0.1
"""Weight of the newest of what is averaged over steps: of what is gained; of what is drafted."""
LEAST_GAIN = 1.02
"""Predicted of a step whose drafts are there, below which none of them is computed."""
STRONG_GAIN = 1.15
"""The same as long as nobody knows how often the drafter is right."""
EXPLORED = 32
"""Nodes that are judged before what was seen of a drafter is believed."""
BEGIN_GAIN, END_GAIN = 1.05, 1.0
"""Predicted with the drafter's time in it, from which on every step is drafted for, and no more."""
LEAST_LOSS = 0.05
"""Of the time of a step in a trial, whatever is predicted."""
SPARED, MOST_SPARED = 2.0, 16.0
"""Times the price of a trial that there has to be for the second one since branches have begun;
the same after many: it doubles with each."""
LOSS_SHARE = 0.01
"""Of the time of all steps that may be lost to drafts that do not pay."""
FIRST_CREDIT, MOST_CREDIT = 1.0, 32.0
"""Plain steps whose time may be lost to the first drafts; and of all that was saved before."""
UNUSUAL = 1.5
"""Times what is expected, up to which a step is paid for as it was."""
MOST_DEBT = 2.0
"""Plain steps whose time may be lost beyond, before it is given up."""
STALE = 0.2
"""What evidence still weighs when other branches have begun."""
FIRST_LIMIT = 4
"""Nodes of a branch, as long as it is not known what a drafter takes."""
FREE_LIMIT = 8
"""The same of a drafter whose nodes take next to nothing, as long as it does not pay."""
PAUSE = 4
"""Steps without asking after which a call is longer than those that follow it."""
MOST_ASLEEP = 16
"""Steps without even asking whether to ask, which takes time as well."""
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

        (plain + per_token * sum of the nodes' probabilities) / seconds(rows + nodes)

    is greatest. `plain` is what the step takes without drafts, and `per_token` what a token more
    saves of the steps to come: its row, and its part of all else, as far as branches get ahead
    evenly (`Progress`). For given probabilities that is the best tree of each size (Sequoia's
    dynamic programme comes to the same, as no path is more probable than its beginning), grown
    where the drafter is confident (EAGLE-2). Probabilities are the drafter's, corrected by how
    often such nodes were right; seconds are this machine's. A drafter that takes time is asked for
    as many nodes as maximise the same with that time in it.

    As long as that promises nothing, a drafter is asked now and then for some steps in a row, and
    drafts that do not pay are not computed but watched: what the branches say anyway tells how
    often they were right. The time of these calls comes out of the credit: LOSS_SHARE of the time
    of every step, and what drafts have saved. Steps with drafts that turn out longer than they
    promised are paid from it as well, so that no more than that share is lost.

    Args:
        drafter: whose trees are verified.
        costs: of a step on this machine; see `StepCosts.measure`.
        max_nodes: of one branch.
        clock: seconds since any moment.

    Attributes:
        pays: whether drafts are expected to, so that every step is drafted for.

    Raises:
        ValueError: max_nodes is not from 1 to 63.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: StepCosts,
        max_nodes: int = MAX_NODES,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not 1 <= max_nodes <= MAX_NODES:
            raise ValueError(f"max_nodes must be from 1 to {MAX_NODES}, got {max_nodes}")
        self.drafter = drafter
        self.max_nodes = max_nodes
        self._clock = clock
        self.stats = SpeculationStats()
        self.calibration = Calibration()
        self.times = StepTimes(costs)
        self.pays = False
        self._watched = WatchedDrafts()
        self._progress = Progress()
        self._best = np.full(1, 0.5)  # mean probability of a branch's likeliest node, the next, ...
        self._drafting = DraftTime()
        self._limit = FIRST_LIMIT  # nodes of a branch
        self._num_ended = 0  # branches
        self._num_asked = 0
        self._num_steps = 0
        self._num_idle = PAUSE  # steps since it was asked
        self._is_cold = True  # whether it was a pause before this step
        self._credit: float | None = None  # seconds; None before the first step
        self._gain = 1.0  # predicted of the steps in which the drafter was asked lately
        self._trial: Trial | None = None  # that is under way
        self._spared = 1.0  # times the price of a trial
        self._rows = 0  # of the current step, drafts left out
        self._is_alone = False  # whether the current step is one without asking
        self._staying = 0  # of its rows, those of branches that have not ended since
        # Whether branches have begun that no trial has looked at, and a look takes next to nothing:
        # one is worth it even on credit.
        self._may_look = False
        self._asleep = 0  # steps without a look at the time, this one included
        self._slept = 0  # as many as there were to be
        self._last_time = clock()
        self._draft_seconds = 0.0  # of the current step

    # ---- a step ----

    @property
    def row_observer(self) -> RowObserver | None:
        """See `Speculator.row_observer`."""
        return self.drafter.row_observer

    def wants_to_draft(self, num_rows: int) -> bool:
        """See `Speculator.wants_to_draft`."""
        if self._asleep and num_rows <= self._staying:
            self._rows = self._staying = num_rows
            self._asleep -= 1
            if not self._asleep:
                self._last_time = self._clock()
            return False
        now = self._clock()
        past, self._last_time = now - self._last_time, now
        if self._is_alone and not self._asleep:
            self.times.note_plain(self._rows, past)
        # New ones may be of another kind, or have siblings now that have said what they will say.
        if num_rows > self._staying:
            self._spared = 1.0
            self._may_look = self.drafter.nodes_are_free
            self.calibration.age(STALE)
        self._rows = self._staying = num_rows
        plain = self.times.plain(num_rows)
        if self._credit is None:
            self._credit = FIRST_CREDIT * plain
        # Between two steps there may be more than a step.
        num_past = 1 + self._slept - self._asleep
        self._credit += LOSS_SHARE * (min(past, plain) + (num_past - 1) * plain)
        self._num_steps += num_past
        self._num_idle += num_past - 1
        asks = self._wants(plain, self._credit)
        self._is_alone = not asks
        self._is_cold = self._num_idle >= PAUSE
        self._num_idle = 0 if asks else self._num_idle + 1
        self._slept = self._asleep = 0 if asks else self._sleep(plain, self._credit)
        return asks

    def _sleep(self, plain: float, credit: float) -> int:
        """Steps in which nothing can change but the credit, which is not enough for a trial. The
        last one's time is taken."""
        if self.pays or self._trial is not None or self._may_look:
            return 0
        steps = (self._trial_price(plain) - credit) / (LOSS_SHARE * plain)
        return min(MOST_ASLEEP, int(steps) - 1) if steps > 2 else 0

    def _wants(self, plain: float, credit: float) -> bool:
        is_broke = credit < -MOST_DEBT * plain
        if self.pays:
            self.pays = not is_broke
            return self.pays and self._num_steps % LEFT_ALONE != 0
        if self._trial is not None and is_broke:
            self._trial = None
        least = -MOST_DEBT * plain if self._may_look else self._trial_price(plain)
        if self._trial is None and credit > least:
            self._may_look = False
            self._trial = Trial(WATCHED)
            self._spared = min(SPARED * self._spared, MOST_SPARED)
        return self._trial is not None and self._trial.asks()

    def _trial_price(self, plain: float) -> float:
        """Seconds that there have to be for one."""
        limit = FREE_LIMIT if self.drafter.nodes_are_free else self._limit
        step = plain + self._drafting.predicted(limit * self._rows)
        return self._spared * STEPS * step * max(LEAST_LOSS, 1 - self._gain)

    def draft(
        self, requests: Sequence[DraftRequest], num_rows: int, max_nodes: int
    ) -> Sequence[DraftTree]:
        """See `Speculator.draft`."""
        started = self._clock()
        self._note(self._watched.judge(request.branch for request in requests))
        count = len(requests)
        limit = min(self._wanted(count, num_rows), max(1, max_nodes))
        before = self._clock()
        whole: Sequence[DraftTree] = self.drafter.propose(requests, [limit] * count)
        taken = self._clock() - before
        self._num_asked += 1
        self._drafting.note(limit * count, taken, self._is_cold)
        proposing = self._drafting.predicted(limit * count)
        plain = self.times.plain(num_rows)
        gain, trees = plain / (plain + proposing), whole
        num_proposed = num_kept = sum(map(len, whole))
        if num_proposed:
            gain, trees = self._choose(whole, num_rows, min(num_proposed, max_nodes), proposing)
            sizes = [*map(len, trees)]
            num_kept = sum(sizes)
            if not self.drafter.learns_when_computed:
                for request, size, tree in zip(requests, sizes, whole, strict=True):
                    if not size:
                        self._watched.watch(request.branch, tree)
        self._note_gain(gain, num_proposed > 0, num_kept > 0)
        self._draft_seconds = self._clock() - started
        self.stats.draft_seconds += self._draft_seconds
        return trees

    def _choose(
        self, trees: Sequence[DraftTree], rows: int, max_nodes: int, proposing: float
    ) -> tuple[float, Sequence[DraftTree]]:
        """How many times as fast a step is with what pays of these trees, at most max_nodes, and
        that; `proposing`: seconds that it takes to draft them."""
        count = len(trees)
        learns = not self.pays and self.drafter.learns_when_computed
        is_known = self.calibration.num_tried >= EXPLORED
        plain = self.times.plain(rows)
        curve = self.times.drafted(rows, count, max_nodes)
        if self._trial is not None and not self._trial.has_waited:
            # No more is risked than the call has taken anyway.
            curve = curve[: np.searchsorted(curve, plain + proposing)]
        kept, _, gain, best = _C.choose_drafts(
            columns_of(trees),
            self.calibration.factors,
            curve,
            plain,
            self._per_token(rows, count),
            proposing,
            LEAST_GAIN if is_known else STRONG_GAIN,
            count if learns else 0,
        )
        self._note_best(best)
        return gain, [*map(DraftTree, kept)]

    def learn(self, verified: Sequence[Verified], num_rows: int, seconds: float) -> None:
        """See `Speculator.learn`."""
        started = self._clock()
        self.drafter.learn(verified)
        drafted = [entry for entry in verified if len(entry.draft)]
        if drafted:
            self._progress.note(verified)
            self.calibration.note([Judged(entry.draft, entry.path) for entry in drafted])
        learning = self._clock() - started
        self._draft_seconds += learning
        self.stats.draft_seconds += learning
        seconds += learning
        count, plain = len(verified), self.times.plain(self._rows)
        nodes = sum(len(entry.draft) for entry in drafted)
        expected = self.times.drafted(self._rows, count, nodes)[-1] if nodes else plain
        # What others on the machine do is no fault of drafts, nor a merit.
        usual = float(expected) + self._draft_seconds
        seconds = min(seconds, HELD_UP * usual)
        paid = min(max(seconds, usual / UNUSUAL), UNUSUAL * usual)
        saved = -self._draft_seconds  # the rest is a step as it would have been
        if drafted:
            right = sum(len(entry.path) for entry in drafted)
            saved = plain + right * self._per_token(self._rows, count) - paid
            self.times.note_drafted(self._rows, count, nodes, seconds - self._draft_seconds)
        else:
            self.times.note_plain(self._rows, seconds - self._draft_seconds)
        if self._trial is not None and not self._is_cold:
            self._trial.saved(saved)
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
        self._progress.forget(branch)
        # A step of a search ends otherwise, and its branch goes on.
        self._staying -= branch.finish_reason == "eos"
        # Others may go on like it. Of those that were not asked about some are enough to tell.
        self._num_ended += 1
        if self.pays or self._num_ended % OBSERVED == 0:
            started = self._clock()
            self.drafter.observe(branch)
            taken = self._clock() - started
            self.stats.draft_seconds += taken
            self._pay(taken)
        self.drafter.forget(branch)

    # ---- what it knows ----

    def _pay(self, seconds: float) -> None:
        if self._credit is not None:
            most = MOST_CREDIT * self.times.plain(self._rows)
            self._credit = min(self._credit - seconds, most)

    def _note(self, judged: Sequence[Judged]) -> None:
        if judged:
            self.calibration.note(judged)

    def _per_token(self, rows: int, count: int) -> float:
        """Seconds that a token more of one of so many branches saves."""
        row = self.times.per_row(rows)
        shared = max(0.0, self.times.plain(rows) - row * count)
        evenness = self._progress.evenness if count > 1 else 1.0
        return row + evenness * shared / count

    def _note_gain(self, gain: float, has_proposed: bool, is_computed: bool) -> None:
        """A step is predicted to be so many times as fast as without asking."""
        if self._trial is None:
            self._gain += FOLLOW * (gain - self._gain)
            self.pays = self._gain > END_GAIN
            return
        self._gain = gain
        self._trial.drafted(is_computed, has_proposed, gain > BEGIN_GAIN)
        if self._trial.is_over:
            self.pays, self._trial = self._trial.pays, None

    def _wanted(self, count: int, rows: int) -> int:
        """Nodes a branch worth asking for."""
        if self.drafter.nodes_are_free:
            needs_all = self.pays or self.drafter.learns_when_computed
            return self.max_nodes if needs_all else min(self.max_nodes, FREE_LIMIT)
        if self._num_asked:
            self._limit = self._best_limit(count, rows)
        return min(self.max_nodes, self._limit)

    def _best_limit(self, count: int, rows: int) -> int:
        most = self.max_nodes
        fall = UNKNOWN_FALL ** np.arange(1, most + 1)
        probabilities = np.concatenate([self._best, self._best[-1] * fall])[:most]
        sizes = 1 + np.arange(most)
        right = count * np.cumsum(probabilities)
        worth = self.times.plain(rows) + self._per_token(rows, count) * right
        curve = self.times.drafted(rows, count, count * most)
        taken = curve[np.minimum(count * sizes, len(curve)) - 1]
        call = self._drafting.at_zero + count * sizes * self._drafting.slope
        limit = int(sizes[np.argmax(worth / (taken + call))])
        # Now and then some more, to see how it goes on.
        return min(most, 2 * limit) if self._num_asked % LOOK_AHEAD == 0 else limit

    def _note_best(self, means: NDArray[np.float64]) -> None:
        shared = min(len(means), len(self._best))
        follow = max(1 / (self._num_asked + 1), FOLLOW_BEST)
        self._best[:shared] += follow * (means[:shared] - self._best[:shared])
        self._best = np.concatenate([self._best, means[shared:]])
