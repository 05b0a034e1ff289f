"""The decisions of searches as pure functions: shares, draws, posteriors, sets of leaves."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode.reasoning.search.allocation import softmax_allocation
from parallel_decode.reasoning.search.gumbel import conditioned, gumbels
from parallel_decode.reasoning.search.leaf_choice import LeafChoice, cosine_clusters
from parallel_decode.reasoning.search.mcts import uct
from parallel_decode.reasoning.search.node import SearchNode
from parallel_decode.reasoning.search.posterior import BetaPrior, GaussianPrior
from parallel_decode.reasoning.search.resampling import effective_sample_size, systematic
from tests.chi_square import assert_follows

REWARDS = st.lists(st.floats(-5, 5), min_size=1, max_size=12)
WEIGHTS = st.lists(st.floats(0, 10), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3)


# ---- allocation ----


def test_allocation_by_hand():
    # e^1 / (e^1 + e^0) = 0.731: ceil(5 * 0.731) = 4, and what is left.
    assert softmax_allocation([0.0, 1.0], 5, 1.0) == [1, 4]
    # Four are used up by the first two: ceil(4 * 0.665) = 3, ceil(1 * 0.731) = 1, 0.
    assert softmax_allocation([2.0, 1.0, 0.0], 4, 1.0) == [3, 1, 0]
    assert softmax_allocation([3.0, 0.0], 7, 1e-9) == [7, 0]
    assert softmax_allocation([], 7, 1.0) == []


@given(REWARDS, st.integers(0, 40), st.floats(0.01, 10))
def test_allocation_shares_out_all_and_favours_the_better(rewards, budget, temperature):
    counts = softmax_allocation(rewards, budget, temperature)
    assert sum(counts) == budget and min(counts) >= 0
    for (r, n), (s, m) in itertools.product(zip(rewards, counts, strict=True), repeat=2):
        # Rounding up may give the last of them less than its share, never a better one less.
        assert r <= s + 1e-12 or n >= m - 1


@given(st.integers(1, 50), st.floats(-5, 5), st.floats(0.01, 10))
def test_equal_rewards_share_alike(n, reward, temperature):
    assert softmax_allocation([reward] * n, n, temperature) == [1] * n


@pytest.mark.parametrize(
    ("rewards", "temperature", "message"),
    [([1.0], 0.0, "temperature"), ([math.nan], 1.0, "finite"), ([math.inf], 1.0, "finite")],
)
def test_allocation_refuses(rewards, temperature, message):
    with pytest.raises(ValueError, match=message):
        softmax_allocation(rewards, 3, temperature)


# ---- resampling ----


@given(WEIGHTS, st.integers(1, 30), st.floats(0, 1, exclude_max=True))
def test_systematic_resampling_is_within_one_of_the_share(weights, n, uniform):
    counts = systematic(weights, n, uniform)
    assert sum(counts) == n
    for weight, count in zip(weights, counts, strict=True):
        share = n * weight / math.fsum(weights)
        assert share - 1 - 1e-6 < count < share + 1 + 1e-6
        assert weight > 0 or not count


def test_systematic_resampling_is_unbiased():
    weights, n, points = [0.1, 2.0, 0.7, 1.3], 5, 20_000
    counts = [systematic(weights, n, (i + 0.5) / points) for i in range(points)]
    means = np.mean(counts, axis=0)
    # The integral over the uniform, by the midpoint rule.
    assert np.allclose(means, n * np.array(weights) / sum(weights), atol=2 / points)


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_equal_particles_come_once_each(n, uniform):
    assert systematic([0.3] * n, n, uniform) == [1] * n
    assert effective_sample_size([0.3] * n) == pytest.approx(n)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [math.inf], [math.nan]])
def test_resampling_refuses(weights):
    with pytest.raises(ValueError, match="weights must be"):
        systematic(weights, 3, 0.5)


# ---- Gumbel variables ----


def test_conditioned_variables_have_the_maximum_and_keep_their_order():
    rng = np.random.default_rng(0)
    weights = np.log(np.array([0.5, 0.2, 0.2, 0.1, 1e-300]))
    for maximum in (-800.0, -3.0, 0.0, 4.0, 900.0):
        before = gumbels(weights, rng)
        after = conditioned(before, maximum)
        assert after.max() == maximum and np.isfinite(after).all()
        # Far below what is likely they come so close that some are equal, and never swap.
        assert (np.diff(after[np.argsort(before)]) >= 0).all()
        assert maximum < -50 or len(set(after)) == len(after)
    after = conditioned(gumbels(np.array([0.0, -np.inf]), rng), 1.0)
    assert after.tolist() == [1.0, -math.inf]


def test_conditioning_is_exact():
    """Bottom up, where the largest of some variables is what it is, or top down, given the largest:
    the same law. Here for the order of three leaves below two nodes."""
    probabilities = np.array([0.5, 0.2, 0.3])  # the first two lie below one node
    rng = np.random.default_rng(1)
    law: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(3)):
        left, p = 1.0, 1.0
        for item in order:
            p *= probabilities[item] / left
            left -= probabilities[item]
        law[order] = p
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(4000):
        nodes = conditioned(gumbels(np.log([0.7, 0.3]), rng), 0.0)
        pair = conditioned(gumbels(np.log(probabilities[:2]), rng), float(nodes[0]))
        leaves = [*pair, nodes[1]]
        seen[tuple(sorted(range(3), key=lambda i: -leaves[i]))] += 1
    assert_follows(seen, law)


# ---- posteriors ----


def test_gaussian_posterior_equals_the_sum_over_a_grid():
    """E[mean] and E[variance] against numerical integration of prior times likelihood."""
    prior, rewards = GaussianPrior(0.2, 2.0, 5.0, 0.3), [0.9, 0.4, 1.3]
    known = prior.posterior(rewards)
    mean = np.linspace(-4, 5, 901)[:, None]
    variance = np.geomspace(1e-3, 60, 1200)[None, :]
    log_density = -(prior.nu / 2 + 1) * np.log(variance) - prior.nu * prior.variance / (
        2 * variance
    )
    log_density = log_density - 0.5 * np.log(variance / prior.kappa)
    log_density = log_density - prior.kappa * (mean - prior.mean) ** 2 / (2 * variance)
    for reward in rewards:
        log_density = log_density - 0.5 * np.log(variance) - (reward - mean) ** 2 / (2 * variance)
    density = np.exp(log_density - log_density.max()) * variance  # of log variance
    density /= density.sum()
    assert (density * mean).sum() == pytest.approx(known.mean, abs=1e-3)
    expected = known.nu * known.variance / (known.nu - 2)
    assert (density * variance).sum() == pytest.approx(expected, rel=1e-2)


def test_beta_posterior_and_draws():
    known = BetaPrior().posterior([1.0, 0.25, 0.0])
    assert (known.a, known.b) == (1.75, 2.25)
    rng = np.random.default_rng(0)
    draws = [BetaPrior().draw([1.0, 0.25, 0.0], rng) for _ in range(4000)]
    # Mean 1.75/4, standard error below 0.004.
    assert np.mean(draws) == pytest.approx(1.75 / 4, abs=0.02)
    with pytest.raises(ValueError, match=r"rewards in \[0, 1\]"):
        BetaPrior().posterior([1.5])
    draws = [GaussianPrior(1.0, 4.0, 50.0, 0.04).draw([], rng) for _ in range(4000)]
    assert np.mean(draws) == pytest.approx(1.0, abs=0.01)
    assert np.std(draws) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("make", [lambda: GaussianPrior(kappa=0), lambda: BetaPrior(a=-1)])
def test_priors_refuse(make):
    with pytest.raises(ValueError, match="must be positive"):
        make()


# ---- UCT ----


def node(parent: SearchNode | None, *values: float, in_flight: int = 0) -> SearchNode:
    made = SearchNode(None, parent, in_flight=in_flight)  # type: ignore[arg-type]
    for value in values:
        made.back_up(value)
    return made


def test_uct_by_hand():
    root = node(None)
    child, other = node(root, 0.5, 0.7), node(root, 0.9)
    assert root.visits == 3 and root.mean == pytest.approx(0.7)
    assert uct(child, 2.0, 0.0) == pytest.approx(0.6 + 2 * math.sqrt(math.log(3) / 2))
    assert uct(other, 0.0, 0.0) == pytest.approx(0.9)
    # A virtual loss counts as a visit that gave the worst value, here and above.
    other.in_flight = root.in_flight = 1
    expected = (0.9 - 0.3) / 2 + 2 * math.sqrt(math.log(4) / 2)
    assert uct(other, 2.0, -0.3) == pytest.approx(expected)
    assert uct(node(root), 1.0, 0.0) == math.inf


# ---- leaves ----

# Two leaves share the nodes 0 and 1, the third has 2 and 3 for itself.
NODES = [{0, 1, 4}, {0, 1, 5}, {0, 2, 3, 6}]


def cost(leaves):
    return len(set().union(*(NODES[i] for i in leaves)))


def test_objective_by_hand():
    choice = LeafChoice([2.0, 1.0, 1.0], [7, 7, 9], cost, 0.5, 0.25)
    # Of 7 nodes leaves 0 and 1 have 4, and one of two clusters.
    assert choice.value([0, 1]) == pytest.approx(0.75 - 0.5 * 4 / 7 + 0.25 / 2)
    assert choice.value([0, 1, 2]) == pytest.approx(1 - 0.5 + 0.25)
    best = max(
        (s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)), key=choice.value
    )
    assert choice.exact() == list(best)


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_cost_decides_how_many_leaves_stay(weight):
    choice = LeafChoice([2.0, 1.0, 1.0], [0, 1, 2], cost, weight, 0.0)
    assert choice.exact() == choice.greedy() == ([0, 1, 2] if weight == 0 else [0])


@given(st.data())
def test_greedy_is_never_better_than_exact_and_ends_where_no_leaf_helps(data):
    n = data.draw(st.integers(1, 7))
    weights = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    clusters = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    paths = data.draw(st.lists(st.sets(st.integers(0, 8), min_size=1), min_size=n, max_size=n))
    factors = data.draw(st.tuples(st.floats(0, 3), st.floats(0, 3)))
    choice = LeafChoice(
        weights, clusters, lambda s: len(set().union(*(paths[i] for i in s))), *factors
    )
    greedy, exact = choice.greedy(), choice.exact()
    assert greedy and choice.value(greedy) <= choice.value(exact) + 1e-9
    for i in range(n):
        flipped = sorted(set(greedy) ^ {i})
        assert not flipped or choice.value(flipped) <= choice.value(greedy) + 1e-9


def test_clusters_by_average_linkage():
    angles = np.radians([0, 2, 90, 92, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1], [5], [1], [2], [3]])
    assert cosine_clusters(vectors, 0.05) == [0, 0, 1, 1, 2]
    assert len(set(cosine_clusters(vectors, 0.0))) == 5
    assert set(cosine_clusters(vectors, 3.0)) == {0}
    # Between (0°, 2°) and 90° the mean distance is just below 1.
    assert len(set(cosine_clusters(vectors[:3], 0.9))) == 2
    assert len(set(cosine_clusters(vectors[:3], 1.1))) == 1


def test_leaf_choice_refuses():
    with pytest.raises(ValueError, match="1 weights, 2 clusters"):
        LeafChoice([1.0], [0, 1], len)
