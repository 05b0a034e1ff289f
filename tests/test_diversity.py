"""Diversity, collapse, confidence and coverage against direct computations."""

import math
import random
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_decode import Engine, SamplingParams, SelfConsistency, StepBeam
from parallel_decode.reasoning import metrics
from tests.tiny_model import tiny_checkpoint

SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=2, max_size=6)


def levenshtein(a, b) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@given(SEQUENCES)
def test_edit_distances_are_those_of_the_dynamic_program(sequences):
    found = metrics.edit_distances(sequences)
    shares = metrics.normalised_edit_distances(sequences)
    for i, a in enumerate(sequences):
        for j, b in enumerate(sequences):
            assert found[i, j] == levenshtein(a, b)
            assert shares[i, j] == levenshtein(a, b) / max(1, len(a), len(b))


def test_edit_distances_at_the_ends_of_words_of_64():
    rng = random.Random(1)
    lengths = (0, 1, 63, 64, 65, 127, 128, 129, 200)
    sequences = [[rng.randrange(size) for _ in range(n)] for n in lengths for size in (2, 30)]
    found = metrics.edit_distances(sequences)
    for (i, a), (j, b) in combinations(enumerate(sequences), 2):
        assert found[i, j] == found[j, i] == levenshtein(a, b)


def test_edit_distances_of_long_sequences_take_no_time():
    rng = random.Random(0)
    sequences = [[rng.randrange(50) for _ in range(rng.randrange(250, 351))] for _ in range(64)]
    start = time.process_time()
    found = metrics.edit_distances(sequences)
    assert time.process_time() - start < 2  # the dynamic program in plain Python takes minutes
    for i, j in [(0, 1), (5, 63), (40, 12)]:
        assert found[i, j] == levenshtein(sequences[i], sequences[j])


@given(SEQUENCES)
def test_prefixes_and_divergence_by_pairs(sequences):
    pairs = list(combinations(sequences, 2))
    common = [
        next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for a, b in pairs
    ]
    assert metrics.first_divergence(sequences) == pytest.approx(sum(common) / len(pairs))
    longest = max(map(len, sequences))
    expected = [sum(a[:d] == b[:d] for a, b in pairs) / len(pairs) for d in range(1, longest + 1)]
    assert metrics.prefix_overlap(sequences) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=2, max_size=8))
def test_agreement_counts_pairs(answers):
    pairs = list(combinations(answers, 2))
    expected = sum(a == b and a is not None for a, b in pairs) / len(pairs)
    assert metrics.pairwise_agreement(answers) == pytest.approx(expected)
    assert 1 <= metrics.effective_sample_size(answers) <= len(answers)


def test_the_ends_of_the_effective_sample_size():
    assert metrics.effective_sample_size(["a"] * 9) == 1
    assert metrics.effective_sample_size(list("abcdefghi")) == 9
    # What agrees no more than by chance is independent.
    assert metrics.effective_sample_size(["a", "a", "b", "b"], chance=1 / 3) == 4
    with pytest.raises(ValueError, match="chance must be in"):
        metrics.effective_sample_size(["a", "b"], chance=1)


def test_effective_sample_size_is_what_the_variance_of_a_mean_says():
    """Two out of three samples are copies of one draw. The variance of the mean of n = 6 right or
    wrong answers, over 20,000 draws, is p (1 - p) / n_eff; its standard error is about 1 %."""
    rng = random.Random(0)
    means, agreements = [], []
    for _ in range(20_000):
        shared = rng.random() < 0.5
        right = [shared if i < 4 else rng.random() < 0.5 for i in range(6)]
        means.append(sum(right) / 6)
        agreements.append(metrics.pairwise_agreement([str(r) for r in right]))
    rho = (np.mean(agreements) - 0.5) / 0.5
    assert np.var(means) == pytest.approx(0.25 * (1 + 5 * rho) / 6, rel=0.04)


def test_answers_and_their_entropy():
    answers = ["a", "a", "b", "c", None]
    assert metrics.distinct_answers(answers) == 3
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert metrics.answer_entropy(answers) == pytest.approx(expected)
    assert metrics.answer_entropy([None]) == 0 and metrics.distinct_answers([]) == 0


def test_cosine_of_hidden_states():
    assert metrics.mean_cosine([[1, 0], [0, 2]]) == 0
    assert metrics.mean_cosine([[1, 1], [2, 2], [-3, -3]]) == pytest.approx(-1 / 3)
    with pytest.raises(ValueError, match="finite and not zero"):
        metrics.mean_cosine([[1, 0], [0, 0]])
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)
    root = engine.prefill("hello")
    kids = engine.fork(root, 4)
    engine.extend(kids, SamplingParams(max_tokens=8, ignore_eos=True))
    states = engine.score(kids, head=lambda hidden: hidden)
    similar = metrics.mean_cosine(np.stack([state.numpy() for state in states]))
    assert -1 < similar < 1 - 1e-6


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.mean_edit_distance([[1]]),
        lambda: metrics.prefix_overlap([]),
        lambda: metrics.pairwise_agreement(["a"]),
        lambda: metrics.mean_cosine([[1.0, 2.0]]),
    ],
)
def test_one_sample_makes_no_pair(call):
    with pytest.raises(ValueError, match="at least 2 samples"):
        call()


# ---- collapse ----


def test_collapse_by_its_thresholds():
    rng = random.Random(0)
    base = [rng.randrange(50) for _ in range(100)]
    other = [[rng.randrange(50) for _ in range(100)] for _ in range(5)]
    assert metrics.path_collapse(other, list("aaaaa")).warning is None
    same = metrics.path_collapse([base] * 5, list("aaaaa"))
    assert same == (1, 0.0, 1.0) and "same text" in same.warning
    near = [[*base[:i], 99, *base[i + 1 :]] for i in range(5)]
    assert "nearly the same text (mean edit distance 0.0" in metrics.path_collapse(near, []).warning
    late = [base[:60] + sequence[60:] for sequence in other]
    assert "100% of the pairs" in metrics.path_collapse(late, []).warning
    assert "100% of" in metrics.path_collapse([base[:50] + s[50:] for s in other], []).warning
    early = [base[:49] + sequence[49:] for sequence in other]
    assert metrics.path_collapse(early, []).warning is None


@pytest.mark.parametrize(
    ("temperature", "warned"), [(0.0, True), (0.001, True), (1.0, False)], ids=["0", "0.001", "1"]
)
def test_a_low_temperature_is_named_in_the_warnings(temperature, warned):
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)
    params = SamplingParams(temperature=temperature, max_tokens=40, ignore_eos=True)
    solution = engine.solve("hello", SelfConsistency(6, params))
    assert any("raise the temperature" in text for text in solution.warnings) == warned


def test_beams_are_alike_by_descent_and_no_collapse():
    engine = Engine(tiny_checkpoint(), threads=1, kv_tokens=1 << 14)
    step = SamplingParams(max_tokens=5, ignore_eos=True)
    method = StepBeam(2, 2, step="no such step", max_steps=12, params=step)
    for seed in range(4):
        solution = engine.solve("hello", method, seed=seed)
        common = metrics.first_divergence([path.tokens for path in solution.paths])
        if common > 35:
            break
    else:
        pytest.fail("no beam with a common past")
    assert not any("raise the temperature" in text for text in solution.warnings)


# ---- confidence, coverage, selection ----


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=9))
def test_discrimination_counts_pairs(samples):
    right = [score for score, good in samples if good]
    wrong = [score for score, good in samples if not good]
    pairs = [(r > w) + (r == w) / 2 for r in right for w in wrong]
    scores, verdicts = zip(*samples, strict=True)
    if not pairs:
        with pytest.raises(ValueError, match="no question has both"):
            metrics.within_question_discrimination([scores], [verdicts])
        return
    found = metrics.within_question_discrimination([scores], [verdicts])
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_discrimination_is_within_questions():
    # Between questions the confidence is perfect, within each it is the wrong way round.
    confidences, correct = [[0.9, 0.95], [0.1, 0.2]], [[True, False], [True, False]]
    assert metrics.within_question_discrimination(confidences, correct) == 0
    for bad in ([[0.1]], [[0.1, math.nan], [0.1, 0.2]], [[0.1], [0.1, 0.2]]):
        with pytest.raises(ValueError, match=r"NaN|in all|for 2 verdicts"):
            metrics.within_question_discrimination(bad, correct)


def test_a_power_law_is_found_again():
    law = metrics.CoverageLaw(-1.5, -0.4, 1.0)
    ks = [1, 2, 4, 8, 16, 64]
    found = metrics.CoverageLaw.fit([*ks, 9999], [*map(law.coverage, ks), 1.0])
    assert found == pytest.approx(law)
    assert 0 < found.coverage(1) < found.coverage(1000) < 1
    # Coverage of a mixture of easy and hard questions is close to one, as the paper has it.
    rates = np.random.default_rng(0).beta(0.4, 3, 3000)
    mixed = [float(np.mean(1 - (1 - rates) ** k)) for k in ks]
    assert metrics.CoverageLaw.fit(ks, mixed).r_squared > 0.98
    with pytest.raises(ValueError, match="at 2 numbers of samples"):
        metrics.CoverageLaw.fit([1, 2], [0.0, 0.5])
    with pytest.raises(ValueError, match="2 numbers of samples, 1 values"):
        metrics.CoverageLaw.fit([1, 2], [0.5])


def test_selection_by_question():
    right = [True, False, True, False, True]
    majority = [True, True, False, False, False]
    anyone = [True, True, True, True, False]
    assert metrics.selection(right, majority, anyone) == (1 / 2, 2 / 3, 1.0)
    assert math.isnan(metrics.selection([True], [True], [True]).rescue)
    with pytest.raises(ValueError, match="1, 2 and 1 verdicts"):
        metrics.selection([True], [True, False], [True])


def test_gap_and_efficiency():
    assert metrics.oracle_gap(0.8, 0.5) == pytest.approx(0.3)
    assert metrics.selection_efficiency(0.6, 0.4, 0.8) == pytest.approx(0.5)
    assert metrics.selection_efficiency(0.3, 0.4, 0.8) == pytest.approx(-0.25)
    assert math.isnan(metrics.selection_efficiency(0.4, 0.4, 0.4))
