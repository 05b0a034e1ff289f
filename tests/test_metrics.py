"""Metrics against enumeration, and the interval against a case that can be computed."""

from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode.reasoning.metrics import maj_at_k, paired_bootstrap, pass_at_k


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_counts_subsets(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    subsets = list(combinations(correct, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_not_the_plug_in():
    # survey: p = .1, n = 16, k = 8 gives .5700 in the mean, the plug-in .4913
    mean = sum(comb(16, c) * 0.1**c * 0.9 ** (16 - c) * pass_at_k(16, c, 8) for c in range(17))
    assert mean == pytest.approx(1 - 0.9**8, abs=1e-12)


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7),
    st.sampled_from(["a", "b"]),
    st.data(),
)
def test_maj_at_k_counts_subsets_and_breaks_ties_evenly(answers, right, data):
    k = data.draw(st.integers(1, len(answers)))
    total = 0.0
    subsets = list(combinations(answers, k))
    for subset in subsets:
        counts = {a: subset.count(a) for a in subset if a is not None}
        leaders = [a for a, n in counts.items() if n == max(counts.values())]
        total += leaders.count(right) / len(leaders) if leaders else 0.0
    correct = [answer == right for answer in answers]
    assert maj_at_k(answers, correct, k) == pytest.approx(total / len(subsets), abs=1e-12)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", ""]), st.booleans()), min_size=1, max_size=7),
    st.data(),
)
def test_maj_at_k_where_texts_of_one_answer_differ_in_verdict(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    total = 0.0
    subsets = list(combinations(samples, k))
    for subset in subsets:
        names = [name for name, _ in subset]
        leaders = [name for name in set(names) if names.count(name) == max(map(names.count, names))]
        for leader in leaders:
            verdicts = [verdict for name, verdict in subset if name == leader]
            total += sum(verdicts) / len(verdicts) / len(leaders)
    answers, correct = zip(*samples, strict=True)
    assert maj_at_k(answers, correct, k) == pytest.approx(total / len(subsets), abs=1e-12)


def test_maj_at_k_of_a_pool_of_64_is_exact():
    # One right answer, 63 wrong ones that all differ: it wins one draw in k where it is drawn.
    answers = ["right", *map(str, range(63))]
    correct = [answer == "right" for answer in answers]
    assert maj_at_k(answers, correct, 16) == pytest.approx(1 / 64, abs=1e-12)
    # Three right ones win alone as soon as two of them are drawn.
    answers = ["right"] * 3 + list(map(str, range(61)))
    correct = [answer == "right" for answer in answers]
    two_or_three = (comb(3, 2) * comb(61, 14) + comb(61, 13)) / comb(64, 16)
    one = 3 * comb(61, 15) / comb(64, 16)
    assert maj_at_k(answers, correct, 16) == pytest.approx(two_or_three + one / 16, abs=1e-12)


def test_maj_at_k_falls_with_k_where_the_wrong_mode_leads():
    answers = ["wrong"] * 11 + ["right"] * 9
    correct = [answer == "right" for answer in answers]
    curve = [maj_at_k(answers, correct, k) for k in (1, 3, 19)]
    assert curve[0] == pytest.approx(0.45) and curve[0] > curve[1] > curve[2]


def test_maj_at_k_resamples_large_pools_repeatably():
    answers = ["a"] * 31 + ["b"] * 34
    correct = [answer == "a" for answer in answers]
    first = maj_at_k(answers, correct, 16)
    assert first == maj_at_k(answers, correct, 16)
    assert 0.3 < first < 0.5


def test_bootstrap_interval_covers_the_mean_and_shrinks_with_size():
    small = paired_bootstrap([0, 1] * 20, [1, 1] * 20, 2000)
    large = paired_bootstrap([0, 1] * 500, [1, 1] * 500, 2000)
    for mean, low, high in (small, large):
        assert mean == 0.5 and low < 0.5 < high
    assert large[2] - large[1] < small[2] - small[1]
    # The standard error of 1,000 differences of 0 or 1 is 0.0158; 1.96 of them on either side.
    assert large[2] - large[1] == pytest.approx(2 * 1.96 * 0.0158, rel=0.1)


@pytest.mark.parametrize("bad", [(3, 4, 1), (3, 1, 4), (3, 1, 0)])
def test_bad_counts_are_refused(bad):
    with pytest.raises(ValueError, match="bad counts"):
        pass_at_k(*bad)
