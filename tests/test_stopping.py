"""Stopping rules against integrals and enumeration, and replayed on pools of answers."""

import random
from collections import Counter
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode.reasoning.consistency.stopping import (
    beta_criterion,
    consensus,
    majority_probability,
    samples_needed,
    settled,
    unanimous_window,
)

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (4, 0), (3, 3), (9, 4), (30, 10)])
def test_majority_probability_is_the_integral_of_the_beta_density(a, b):
    # Exact: expand (1 - x)^b and integrate x^(a + i) from 1/2 to 1.
    area = sum(
        comb(b, i) * Fraction((-1) ** i, a + i + 1) * (1 - Fraction(1, 2 ** (a + i + 1)))
        for i in range(b + 1)
    )
    whole = Fraction(1, (a + b + 1) * comb(a + b, a))  # B(a + 1, b + 1)
    assert majority_probability(a, b) == float(area / whole)


def test_four_votes_to_none_are_enough_and_three_are_not():
    assert majority_probability(4, 0) == 31 / 32
    rule = beta_criterion(0.95)
    assert not rule(["7"] * 3) and rule(["7"] * 4)
    assert not rule(["7", None, "7", "7"]) and not rule([None] * 40) and not rule([])
    # One vote against the leader takes it to eight in all.
    assert [rule(["7"] * n + ["8"]) for n in range(4, 9)] == [False, False, True, True, True]


def test_the_criterion_is_about_the_two_leading_answers():
    rule = beta_criterion(0.95)
    assert rule(["a"] * 9 + ["b", "c", "d", "e"]) == rule(["a"] * 9 + ["b"])


@given(ANSWERS, st.integers(1, 5))
def test_a_window_is_whole_unanimous_and_has_an_answer(answers, size):
    expected = (
        len(answers) > 0
        and len(answers) % size == 0
        and len(set(answers[-size:])) == 1
        and answers[-1] is not None
    )
    assert unanimous_window(size)(answers) == expected


@given(ANSWERS, st.integers(1, 5))
def test_settled_looks_at_the_last_answers_only(answers, size):
    assert settled([*answers, *["x"] * size], size)
    assert not settled([*answers, None, *["x"] * (size - 1)], size)
    assert not settled(["x"] * (size - 1), size)


def test_consensus_is_a_share_of_the_weight():
    assert consensus([("a", 3.0), ("b", 1.0)], 0.75)
    assert not consensus([("a", 3.0), ("b", 1.01)], 0.75)
    assert not consensus([], 0.5) and not consensus([("a", 0.0)], 0.5)


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=30), st.integers(1, 7))
def test_a_replay_stops_at_the_first_batch_that_is_enough(answers, batch):
    rule = beta_criterion(0.9)
    needed = samples_needed(rule, answers, batch)
    assert needed == len(answers) or (needed % batch == 0 and rule(answers[:needed]))
    assert not any(rule(answers[:n]) for n in range(batch, needed, batch))


def test_on_a_pool_it_saves_samples_and_keeps_the_majority():
    """500 questions, answers drawn with a right one of probability 0.3 to 1. The criterion is wrong
    about the majority of what was seen in at most 5 % of the stops, and about that of all 40
    samples less often."""
    rng = random.Random(0)
    used, agreed, easy = 0, 0, []
    for _ in range(500):
        p = rng.uniform(0.3, 1)
        pool = [rng.choices("abc", (p, (1 - p) * 0.7, (1 - p) * 0.3))[0] for _ in range(40)]
        needed = samples_needed(beta_criterion(0.95), pool, 1)
        used += needed
        early, late = (Counter(answers).most_common(1)[0][0] for answers in (pool[:needed], pool))
        agreed += early == late
        if p > 0.9:
            easy.append(needed)
    assert agreed >= 0.95 * 500
    assert used < 0.5 * 500 * 40
    assert np.mean(easy) < 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: beta_criterion(1.0), "threshold must be in"),
        (lambda: beta_criterion(0.5), "threshold must be in"),
        (lambda: unanimous_window(0), "window must be at least 1, got 0"),
        (lambda: majority_probability(1, 2), "counts must be in order"),
        (lambda: samples_needed(beta_criterion(0.9), ["a"], 0), "batch must be at least 1"),
    ],
)
def test_bad_rules_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
