"""Accuracy of many samples, and how sure a difference is."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

EXACT_SUBSETS = 20_000
"""maj@k is enumerated up to this many subsets and drawn beyond."""
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
    size = len(answers)
    if math.comb(size, k) <= EXACT_SUBSETS:
        subsets = list(combinations(range(size), k))
    else:
        rng = random.Random(seed)
        subsets = [tuple(rng.sample(range(size), k)) for _ in range(RESAMPLES)]
    return math.fsum(_majority_right(answers, correct, subset) for subset in subsets) / len(subsets)


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


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of second - first, and the ends of its 95 % interval), resampled over questions."""
    if len(first) != len(second) or not first:
        raise ValueError(f"paired values are needed, got {len(first)} and {len(second)}")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    rng = random.Random(seed)
    size = len(differences)
    means = sorted(sum(rng.choices(differences, k=size)) / size for _ in range(num_resamples))
    low, high = means[int(0.025 * num_resamples)], means[int(0.975 * num_resamples) - 1]
    return sum(differences) / size, low, high
