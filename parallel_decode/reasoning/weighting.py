"""Weightings: from the scores of the candidates to the weights of their votes.

Pure functions of a list of scores, so that methods can be compared on stored samples.
"""

import math
from collections.abc import Callable, Sequence

Weighting = Callable[[Sequence[float]], list[float]]
"""Finite scores to weights that are not negative, of the same length."""


def by_score(scores: Sequence[float]) -> list[float]:
    """The scores themselves, which must not be negative: weighted best-of-N."""
    for score in scores:
        if not score >= 0:
            raise ValueError(f"a score that is a weight must not be negative, got {score}")
    return list(scores)


def best_only(scores: Sequence[float]) -> list[float]:
    """All weight on the highest score, the first of equals: best-of-N."""
    if not scores:
        return []
    best = max(range(len(scores)), key=lambda i: scores[i])
    return [float(i == best) for i in range(len(scores))]


def softmax(temperature: float) -> Weighting:
    """exp(s_i / T) / Σ_j exp(s_j / T), over the candidates of one question (CISC)."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")

    def weigh(scores: Sequence[float]) -> list[float]:
        if not scores:
            return []
        highest = max(scores)
        powers = [math.exp((score - highest) / temperature) for score in scores]
        total = math.fsum(powers)
        return [power / total for power in powers]

    return weigh


def borda(power: float) -> Weighting:
    """(N - r + 1)^p for rank r = 1..N by score (Kang et al., 2025); equal scores share the mean of
    their ranks. p = 0 is the majority, a large p the best candidate."""
    if not 0 <= power < math.inf:
        raise ValueError(f"power must be finite and not negative, got {power}")

    def weigh(scores: Sequence[float]) -> list[float]:
        ordered = sorted(scores, reverse=True)
        # The mean of the first and the last place of its equals.
        ranks = {
            score: (2 * ordered.index(score) + 1 + ordered.count(score)) / 2
            for score in set(scores)
        }
        return [(len(scores) - ranks[score] + 1) ** power for score in scores]

    return weigh


def top_fraction(share: float, weigh: Weighting = by_score) -> Weighting:
    """Weights by `weigh` for the best `share` of the candidates, at least one; 0 for the others."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")

    def weigh_the_best(scores: Sequence[float]) -> list[float]:
        if not scores:
            return []
        kept = math.ceil(share * len(scores))
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:kept]
        weights = [0.0] * len(scores)
        for i, weight in zip(order, weigh([scores[i] for i in order]), strict=True):
            weights[i] = weight
        return weights

    return weigh_the_best
