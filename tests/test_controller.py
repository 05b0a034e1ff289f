"""How much is drafted: what pays by the formula, and nothing where nothing does."""

import itertools
import math

import numpy as np
import pytest

from parallel_decode.engine import DraftRequest, SamplingParams, Verified
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.speculation import Speculation, StepCosts, controller
from tests.guesses import Listener
from tests.tiny_model import tiny_engine

TREE = DraftTree.of([1, 2, 3, 4, 5], [-1, 0, -1, 1, 0], [0.8, 0.5, 0.15, 0.9, 0.3])


class Fixed:
    """Always the same tree."""

    def __init__(self, tree: DraftTree) -> None:
        self.tree, self.num_asked = tree, 0

    def propose(self, requests, max_nodes):
        self.num_asked += 1
        return [self.tree] * len(requests)

    def learn(self, verified):
        """It stays as it is."""


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(controller, "time", clock)
    return clock


def requests(count: int) -> list[DraftRequest]:
    return [DraftRequest(None, SamplingParams(), 0)] * count


def believed(tree: DraftTree, rows, seconds) -> Speculation:
    """One whose drafter is known to be right as often as it says."""
    speculation = Speculation(Fixed(tree), StepCosts(rows, seconds))
    speculation._tried += 1e9
    speculation._right[:] = speculation._tried * (np.arange(16) + 0.5) / 16
    speculation._said[:] = speculation._right
    return speculation


def test_without_observations_the_drafters_word_counts():
    speculation = Speculation(Fixed(TREE), StepCosts(*LINEAR))
    paths = np.linspace(0, 1, 1001)
    assert speculation._corrected(paths) == pytest.approx(paths, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_corrections_do_not_jump(seed):
    """Not even between two bins of which one was right often and the other one never."""
    rng = np.random.default_rng(seed)
    speculation = Speculation(Fixed(TREE), StepCosts(*LINEAR))
    speculation._tried[:] = rng.integers(0, 1000, 16)
    speculation._said[:] = speculation._tried * (np.arange(16) + rng.random(16)) / 16
    speculation._right[:] = speculation._tried * rng.random(16)
    paths = np.linspace(0, 1, 1_000_001)
    corrected = speculation._corrected(paths)
    assert corrected[0] == 0 and corrected.min() >= 0 and corrected.max() <= 1
    assert np.abs(np.diff(corrected)).max() < 1e-3  # 1,000 times as steep as what the drafter says


def test_a_bin_that_was_tried_often_counts_as_often_as_it_was_right():
    speculation = Speculation(Fixed(TREE), StepCosts(*LINEAR))
    speculation._tried[12] = 1e6
    speculation._said[12] = 1e6 * 12.5 / 16
    speculation._right[12] = 1e6 * 0.2
    [corrected] = speculation._corrected(np.array([12.5 / 16]))
    assert corrected == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize("row_seconds", [0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.9])
def test_the_tree_that_maximises_tokens_over_seconds(clock, row_seconds):
    """Of all parts of the tree in which no node is without its parent."""
    seconds = [1.0 + row_seconds * n for n in range(64)]
    speculation = believed(TREE, list(range(1, 65)), seconds)
    paths = speculation._corrected(TREE.path_probabilities)

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
    speculation = believed(TREE, [1, 2, 64], [1.0, 2.0, 64.0])
    assert [len(tree) for tree in speculation.draft(requests(3), 3, 60)] == [0, 0, 0]


def run(speculation: Speculation, clock: Clock, num_steps: int, right: int) -> float:
    """Steps of a branch, of 1 s and 0.5 s a node -> seconds a token. right: nodes of a draft."""
    num_tokens = 0
    start = clock.now
    for _ in range(num_steps):
        draft = None
        if speculation.wants_to_draft():
            [draft] = speculation.draft(requests(1), 1, 60)
        nodes = 0 if draft is None else len(draft)
        seconds = 1.0 + 0.5 * nodes
        clock.now += seconds
        path = list(range(min(right, nodes)))
        num_tokens += 1 + len(path)
        if draft is not None:
            speculation.learn([Verified(None, draft, path)], 1 + nodes, seconds)
    return (clock.now - start) / num_tokens


CHAIN = DraftTree.chain([1, 2, 3], [0.9, 0.9, 0.9])
LINEAR = ([1, 64], [1.0, 1.0 + 0.5 * 63])


def test_a_drafter_that_is_never_right_costs_next_to_nothing(clock):
    speculation = Speculation(Fixed(CHAIN), StepCosts(*LINEAR))
    assert run(speculation, clock, 2000, right=0) < 1.02
    asked = speculation.drafter.num_asked
    assert run(speculation, clock, 2000, right=0) < 1.011
    assert speculation.drafter.num_asked > asked  # it is still looked at


def test_one_that_is_right_is_used(clock):
    speculation = Speculation(Fixed(CHAIN), StepCosts(*LINEAR))
    assert run(speculation, clock, 500, right=3) < 0.7  # 2.5 s for 4 tokens are 0.63
    assert speculation.stats.acceptance > 0.99


def test_one_that_gets_better_is_found_again(clock):
    speculation = Speculation(Fixed(CHAIN), StepCosts(*LINEAR))
    run(speculation, clock, 1000, right=0)
    run(speculation, clock, 6000, right=3)
    assert run(speculation, clock, 500, right=3) < 0.8


def test_costs_follow_a_machine_that_gets_slower():
    costs = StepCosts(*LINEAR)
    for _ in range(100):
        costs.observe(1, 2.0)
        costs.observe(33, 2 * 17.0)
    assert costs.seconds[1] == pytest.approx(2.0, rel=0.01)
    assert costs.seconds[33] == pytest.approx(34.0, rel=0.1)


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
    assert costs._rows[-1] == rows
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
