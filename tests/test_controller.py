"""How much is drafted: what pays by the formula, and nothing where nothing does."""

import itertools
import math

import numpy as np
import pytest

from parallel_decode import _C
from parallel_decode.engine import Drafter, DraftRequest, SamplingParams, Verified
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.speculation import (
    Speculation,
    StaticSpeculation,
    StepCosts,
)
from parallel_decode.speculation.calibration import Calibration, Judged
from parallel_decode.speculation.step_times import StepTimes
from tests.guesses import Listener
from tests.tiny_model import tiny_engine

TREE = DraftTree.of([1, 2, 3, 4, 5], [-1, 0, -1, 1, 0], [0.8, 0.5, 0.15, 0.9, 0.3])


class Said:
    """A branch that goes on as it is told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def recent(self, limit: int) -> list[int]:
        return self.tokens[-limit:] if limit else []


class Fixed(Drafter):
    """Always the same tree."""

    def __init__(self, tree: DraftTree) -> None:
        self.tree, self.num_asked = tree, 0

    def propose(self, requests, max_nodes):
        self.num_asked += 1
        return [self.tree] * len(requests)

    def observe(self, branch):
        """It stays as it is."""

    def forget(self, branch):
        """It stays as it is."""


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def requests(count: int) -> list[DraftRequest]:
    return [DraftRequest(Said(), SamplingParams(), 0) for _ in range(count)]


def believed(tree: DraftTree, rows, seconds, clock: Clock) -> Speculation:
    """One whose drafter is known to be right as often as it says."""
    speculation = Speculation(Fixed(tree), StepCosts(rows, seconds), clock=clock)
    speculation.calibration.num_tried = 1e9
    speculation._credit, speculation.pays = 1e9, True
    return speculation


def note(calibration: Calibration, said: np.ndarray, right: np.ndarray) -> None:
    """Paths of one token."""
    draft = DraftTree(_C.DraftColumns(np.zeros(len(said)), np.full(len(said), -1), said))
    calibration.note([Judged(draft, np.flatnonzero(right).tolist())])


def corrected(calibration: Calibration, said: float) -> float:
    """What the choice of nodes takes a path for."""
    draft = _C.DraftColumns([0], [-1], [said])
    *_, [value] = _C.choose_drafts([draft], calibration.factors, [1.0], 1.0, 1.0, 0.0, 0.0, 0)
    return value


def test_without_observations_the_drafters_word_counts():
    for said in np.linspace(0, 1, 1001):
        assert corrected(Calibration(), said) == pytest.approx(said, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_corrections_do_not_jump(seed):
    """Not even between two bins of which one was right often and the other one never."""
    rng = np.random.default_rng(seed)
    calibration = Calibration()
    said = rng.random(5000)
    often = rng.random(16)[(said * 16).astype(int)]
    note(calibration, said, (rng.random(5000) < often).astype(float))
    assert corrected(calibration, 0.0) == 0
    # The ends and middles of all bins are among them.
    for path in [*np.linspace(0, 1, 33), *rng.random(2000)]:
        near = [corrected(calibration, min(max(path + d, 0), 1)) for d in (-1e-6, 0, 1e-6)]
        assert min(near) >= 0 and max(near) <= 1
        assert np.abs(np.diff(near)).max() < 1e-3  # 1,000 times as steep as what the drafter says


def test_what_was_often_seen_counts_as_often_as_it_was_right():
    calibration = Calibration()
    said = np.full(10_000, 12.5 / 16)
    note(calibration, said, np.arange(10_000) % 5 == 0)
    assert corrected(calibration, said[0]) == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("row_seconds", [0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.9])
def test_the_tree_that_maximises_tokens_over_seconds(clock, row_seconds):
    """Of all parts of the tree in which no node is without its parent."""
    seconds = [1.0 + row_seconds * n for n in range(64)]
    speculation = believed(TREE, list(range(1, 65)), seconds, clock)
    paths = TREE.path_probabilities

    def rate(nodes: tuple[int, ...]) -> float:
        return (1 + sum(paths[list(nodes)])) / seconds[len(nodes)]

    parts = [
        nodes
        for size in range(len(TREE) + 1)
        for nodes in itertools.combinations(range(len(TREE)), size)
        if all(TREE.parents[node] in (-1, *nodes) for node in nodes)
    ]
    best = max(parts, key=rate)
    [kept] = speculation.draft(requests(1), 1, 60)
    assert kept.tokens.tolist() == (TREE.tokens[list(best)].tolist() if rate(best) > 1.02 else [])


def test_a_row_that_costs_a_step_is_never_drafted(clock):
    speculation = believed(TREE, [1, 2, 64], [1.0, 2.0, 64.0], clock)
    assert [len(tree) for tree in speculation.draft(requests(3), 3, 60)] == [0, 0, 0]


def run(speculation: Speculation, clock: Clock, num_steps: int, right: int) -> float:
    """Steps of a branch, of 1 s and 0.5 s a node -> seconds a token. right: how many nodes of each
    draft are what the branch says, which is always the same."""
    branch = Said()
    start = clock.now
    for _ in range(num_steps):
        draft = None
        if speculation.wants_to_draft(1):
            [draft] = speculation.draft([DraftRequest(branch, SamplingParams(), 0)], 1, 60)
        nodes = 0 if draft is None else len(draft)
        seconds = 1.0 + 0.5 * nodes
        clock.now += seconds
        path = list(range(min(right, nodes)))
        branch.tokens += [1 if right else 9] * (1 + len(path))
        if draft is not None:
            speculation.learn([Verified(branch, draft, path)], 1 + nodes, seconds)
    return (clock.now - start) / branch.num_tokens


CHAIN = DraftTree.chain([1, 1, 1], [0.9, 0.9, 0.9])
LINEAR = ([1, 64], [1.0, 1.0 + 0.5 * 63])


def test_a_drafter_that_is_never_right_costs_next_to_nothing(clock):
    speculation = Speculation(Fixed(CHAIN), StepCosts(*LINEAR), clock=clock)
    assert run(speculation, clock, 2000, right=0) < 1.02
    asked = speculation.drafter.num_asked
    assert run(speculation, clock, 2000, right=0) < 1.011
    assert speculation.drafter.num_asked > asked  # it is still looked at


def test_one_that_is_right_is_used(clock):
    speculation = Speculation(Fixed(CHAIN), StepCosts(*LINEAR), clock=clock)
    assert run(speculation, clock, 500, right=3) < 0.7  # 2.5 s for 4 tokens are 0.63
    assert speculation.stats.acceptance > 0.99


def test_one_that_gets_better_is_found_again(clock):
    speculation = Speculation(Fixed(CHAIN), StepCosts(*LINEAR), clock=clock)
    run(speculation, clock, 1000, right=0)
    run(speculation, clock, 6000, right=3)
    assert run(speculation, clock, 500, right=3) < 0.8


def test_times_follow_a_machine_that_gets_slower():
    times = StepTimes(StepCosts(*LINEAR))
    for _ in range(100):
        times.note_plain(1, 2.0)
        times.note_drafted(1, 1, 32, 2 * 17.0)
    assert times.plain(1) == pytest.approx(2.0, rel=0.01)
    assert times.drafted(1, 1, 32)[-1] == pytest.approx(34.0, rel=0.01)


def test_times_of_other_rows_are_those_of_the_nearest_in_proportion():
    times = StepTimes(StepCosts([1, 8, 64], [1.0, 2.0, 9.0]))
    assert times.plain(8) == 2.0
    times.note_plain(8, 6.0)
    assert times.plain(1) == pytest.approx(3.0)
    assert times.plain(64) == pytest.approx(27.0)


def test_drafts_of_many_branches_take_more_than_their_rows():
    times = StepTimes(StepCosts([1, 64], [1.0, 1.0], branch_seconds=0.25))
    assert times.drafted(4, 4, 6) == pytest.approx([1.25, 1.5, 1.75, 2.0, 2.0, 2.0])


def test_a_drafter_that_does_not_pay_is_watched(clock):
    """What the branch says tells how often it is right; nothing of it is computed."""
    speculation = Speculation(Fixed(CHAIN), StepCosts(*LINEAR), clock=clock)
    run(speculation, clock, 2000, right=0)
    before = speculation.stats.drafted, speculation.calibration.num_tried
    run(speculation, clock, 2000, right=0)
    assert speculation.stats.drafted - before[0] < 0.1 * 3 * 2000
    assert corrected(speculation.calibration, 0.9) < 0.4


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_of_nodes_is_that_of_the_formula(seed):
    rng = np.random.default_rng(seed)
    trees, calibration = [], Calibration()
    for _ in range(rng.integers(1, 6)):
        size = int(rng.integers(0, 9))
        parents = [int(rng.integers(-1, node)) for node in range(size)]
        trees.append(DraftTree.of(range(size), parents, rng.random(size)))
    sizes = [len(tree) for tree in trees]
    said = rng.random(500)
    note(calibration, said, (rng.random(500) < said**2).astype(float))
    curve = 1 + np.cumsum(rng.random(sum(sizes)) * 0.2)
    plain, per_token, proposing = 0.9, 0.3, 0.1
    kept, promise, gain, best = _C.choose_drafts(
        [tree.columns for tree in trees],
        calibration.factors,
        curve,
        plain,
        per_token,
        proposing,
        0.0,
        0,
    )
    right = []
    for tree in trees:
        mine: list[float] = []
        for said, parent in zip(tree.path_probabilities.tolist(), tree.parents.tolist()):
            value = corrected(calibration, said)
            mine.append(value if parent < 0 else min(value, mine[parent]))
        right.append(mine)
    every = np.array([value for mine in right for value in mine])
    count = len(trees)
    if len(every) == 0:
        assert promise == gain == 1.0 and sum(map(len, kept)) == len(best) == 0
        return
    worth = plain + per_token * np.cumsum(np.sort(every)[::-1])
    rates = worth / curve
    assert promise == pytest.approx(rates.max())
    assert gain == pytest.approx(max(*(worth / (curve + proposing)), plain / (plain + proposing)))
    assert sum(map(len, kept)) == 1 + rates.argmax()
    promised = 0.0
    for tree, some, mine in zip(trees, map(DraftTree, kept), right, strict=True):
        for number, node in enumerate(some.tokens.tolist()):  # a token is its node's number
            assert some.path_to(number) == tree.path_to(node)
            promised += mine[node]
    assert plain + per_token * promised == pytest.approx(worth[rates.argmax()])
    table = np.zeros((count, max(sizes)))
    for row, mine in enumerate(right):
        table[row, : len(mine)] = sorted(mine, reverse=True)
    assert best == pytest.approx(table.mean(0))


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_static_shape_drafts_in_every_step(num_nodes):
    speculation = StaticSpeculation(Fixed(CHAIN), num_nodes)
    speculation.drafter.propose = lambda requests, limits: [CHAIN.cut(n) for n in limits]
    for count in (1, 4):
        assert speculation.wants_to_draft(count)
        trees = speculation.draft(requests(count), count, 60)
        assert [len(tree) for tree in trees] == [num_nodes] * count
        speculation.learn([Verified(Said(), tree, [0]) for tree in trees], 9, 1.0)
    assert speculation.stats.tokens == 10 and speculation.stats.tokens_per_step == 2
    assert [len(tree) for tree in speculation.draft(requests(4), 4, 3)] == [0] * 4
    with pytest.raises(ValueError, match="from 1 to 63, got 0"):
        StaticSpeculation(Fixed(CHAIN), 0)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="from 1 to 63, got 64"):
        Speculation(Fixed(CHAIN), StepCosts(*LINEAR), max_nodes=64)
    with pytest.raises(ValueError, match="rows must rise"):
        StepCosts([2, 1], [1.0, 1.0])
    for rows, seconds in ([0, 1], [1.0, 1.0]), ([1, 2], [0.0, 1.0]), ([1, 2], [1.0, math.nan]):
        with pytest.raises(ValueError, match="must be positive"):
            StepCosts(rows, seconds)


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 64), ({"max_batch_tokens": 9}, 8), ({"max_seq_len": 30}, 12)],
    ids=["all", "short steps", "a short context"],
)
def test_what_there_is_room_for_is_measured(options, rows):
    engine = tiny_engine(**options)
    engine.speculator = before = Listener()
    costs = StepCosts.measure(engine)
    assert costs.rows[-1] == rows
    assert engine.speculator is before and engine.blocks_in_use == 0
    engine.speculator = None
    root = engine.prefill(range(9))
    engine.extend(root, SamplingParams(temperature=0.0, max_tokens=5))  # and it goes on


@pytest.mark.parametrize("options", [{"max_batch_tokens": 1}, {"max_seq_len": 16}], ids=str)
def test_where_there_is_no_room_nothing_can_be_measured(options):
    engine = tiny_engine(**options)
    with pytest.raises(ValueError, match="no room for drafts"):
        StepCosts.measure(engine)
    assert engine.speculator is None and engine.blocks_in_use == 0
