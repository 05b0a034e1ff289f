"""Allocation: how many children each partial solution gets. Pure functions."""

import math
from collections.abc import Sequence


def softmax_allocation(rewards: Sequence[float], budget: int, temperature: float) -> list[int]:
    """Children of each node, in proportion to exp(reward / T) (REBASE, Wu et al., 2024).

    In the order of their rewards, W_j = ceil(B · exp(r_j/T) / Σ_{i≥j} exp(r_i/T)), where B is what
    the nodes before left. The sum is `budget` where there are nodes; the weakest may get none.

    Args:
        rewards: finite, higher is better.
        budget: children in all.
        temperature: towards 0 all go to the best; equal rewards share alike.

    Raises:
        ValueError: the temperature is not positive, or a reward not finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not all(map(math.isfinite, rewards)):
        raise ValueError(f"rewards must be finite, got {list(rewards)}")
    counts = [0] * len(rewards)
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    highest = max(rewards, default=0.0)
    powers = [math.exp((rewards[i] - highest) / temperature) for i in order]
    left = max(0, budget)
    for rank, i in enumerate(order):
        rest = math.fsum(powers[rank:])
        # Where all that is left underflows to 0 the first of it takes the rest.
        share = powers[rank] / rest if rest else 1.0
        # Not ceil(3 * 0.3333333333333334) = 2 where a third is meant.
        counts[i] = min(left, math.ceil(left * share - 1e-9))
        left -= counts[i]
    return counts
