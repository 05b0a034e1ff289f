"""How sure a difference between two methods is."""

import random
from collections.abc import Sequence


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
