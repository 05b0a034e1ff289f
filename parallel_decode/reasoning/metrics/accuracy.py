"""Accuracy of many samples: by chance, by majority, and at best."""

import math
import random
from collections import Counter
from collections.abc import Sequence

LARGEST_EXACT_POOL = 64
"""maj@k is counted exactly in pools up to this size and drawn beyond."""
RESAMPLES = 2_000


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), the chance that k of n samples hold a right one (unbiased;
    Chen et al., 2021), as a product."""
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"bad counts: n={num_samples}, c={num_correct}, k={k}")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(
        1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1)
    )


def maj_at_k(
    answers: Sequence[str | None], correct: Sequence[bool], k: int, seed: int = 0
) -> float:
    """The chance that the majority of k of the samples is right; ties are broken evenly.

    answers: of each sample; None does not vote.
    correct: whether each sample is right; an answer counts as right by the share of its samples
        that are, since two texts may give one answer and differ in the eyes of the checker.
    """
    if len(answers) != len(correct) or not 1 <= k <= len(answers):
        raise ValueError(f"bad counts: {len(answers)} answers, {len(correct)} verdicts, k={k}")
    if k < len(answers) <= LARGEST_EXACT_POOL:
        return _expected_majority(answers, correct, k)
    if k == len(answers):
        return _majority_right(answers, correct, range(k))
    rng = random.Random(seed)
    subsets = [rng.sample(range(len(answers)), k) for _ in range(RESAMPLES)]
    return math.fsum(_majority_right(answers, correct, subset) for subset in subsets) / RESAMPLES


def _expected_majority(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Mean over all C(n, k) subsets. A leader is right by its share in the pool, which is its
    expected share among those of it that were drawn."""
    counts = Counter(answers)
    num_silent = counts.pop(None, 0)
    right = Counter(
        answer
        for answer, verdict in zip(answers, correct, strict=True)
        if verdict and answer is not None
    )
    total = 0.0
    for answer, num_right in right.items():
        others = [count for other, count in counts.items() if other != answer]
        lead = _lead_probability(counts[answer], others, num_silent, k)
        total += lead * num_right / counts[answer]
    return total


def _lead_probability(count: int, others: Sequence[int], num_silent: int, k: int) -> float:
    """Probability that an answer with `count` votes in the pool wins among k drawn samples.

    With j votes it leads if no other has more, and with t others at j it wins 1 / (t + 1) of the
    time. ways[t][m]: ways to draw m samples of the others and the silent ones so that t others
    have j votes and none has more. Whole numbers: nothing is rounded before the division.
    """
    wins = 0.0
    for j in range(1, min(count, k) + 1):
        rest = k - j
        ways = [[math.comb(num_silent, m) for m in range(rest + 1)]]
        for other in others:
            can_tie = other >= j and len(ways) * j <= rest
            after = [[0] * (rest + 1) for _ in range(len(ways) + can_tie)]
            for t, row in enumerate(ways):
                for m, number in enumerate(row):
                    for drawn in range(min(other, j, rest - m) + 1 if number else 0):
                        after[t + (drawn == j)][m + drawn] += number * math.comb(other, drawn)
            ways = after
        wins += math.comb(count, j) * math.fsum(row[rest] / (t + 1) for t, row in enumerate(ways))
    return wins / math.comb(count + sum(others) + num_silent, k)


def _majority_right(
    answers: Sequence[str | None], correct: Sequence[bool], subset: Sequence[int]
) -> float:
    counts = Counter(answers[i] for i in subset if answers[i] is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    leaders = [answer for answer, count in counts.items() if count == most]
    shares = []
    for leader in leaders:
        verdicts = [correct[i] for i in subset if answers[i] == leader]
        shares.append(sum(verdicts) / len(verdicts))
    return sum(shares) / len(shares)


def oracle_gap(pass_at_k: float, accuracy: float) -> float:
    """What the best choice among the samples would add to `accuracy`, such as that of maj@k."""
    return pass_at_k - accuracy


def selection_efficiency(accuracy: float, pass_at_1: float, pass_at_k: float) -> float:
    """(accuracy - pass@1) / (pass@k - pass@1): 0 is a blind choice, 1 the best one, and a choice
    below 0 is worse than none. NaN where there is nothing to gain."""
    room = pass_at_k - pass_at_1
    return (accuracy - pass_at_1) / room if room else math.nan
