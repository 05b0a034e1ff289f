"""Which leaves of a tree to keep: their worth against the keys they need. Pure functions."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LeafChoice:
    """The objective of ETS (Hooper et al., 2025) for a set S of leaves:

        Σ_{i∈S} w_i / Σ_i w_i - b · cost(S) / cost(all) + d · clusters(S) / clusters(all)

    Attributes:
        weights: of the leaves, not negative.
        clusters: of each leaf; leaves that say much the same share one.
        cost: a set of leaves, as indices, to what their tree takes, such as unique tokens.
        budget_weight, diversity_weight: b and d.
    """

    weights: Sequence[float]
    clusters: Sequence[int]
    cost: Callable[[Sequence[int]], float]
    budget_weight: float = 1.0
    diversity_weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.clusters) or not self.weights:
            raise ValueError(f"{len(self.weights)} weights, {len(self.clusters)} clusters")

    def value(self, leaves: Sequence[int]) -> float:
        everything = range(len(self.weights))
        total = math.fsum(self.weights) or 1.0
        worth = math.fsum(self.weights[i] for i in leaves) / total
        price = self.cost(list(leaves)) / (self.cost(list(everything)) or 1.0)
        spread = len({self.clusters[i] for i in leaves}) / len(set(self.clusters))
        return worth - self.budget_weight * price + self.diversity_weight * spread

    def exact(self) -> list[int]:
        """The best set that is not empty, among all 2^n; of equals the smallest, then the first."""
        n = len(self.weights)
        sizes = range(1, n + 1)
        sets = [list(s) for size in sizes for s in itertools.combinations(range(n), size)]
        return max(sets, key=self.value)

    def greedy(self) -> list[int]:
        """Adds or takes out one leaf at a time, whatever gains most, while anything gains."""
        chosen: set[int] = set()
        best = -math.inf
        while True:
            flips = [chosen ^ {i} for i in range(len(self.weights))]
            values = [self.value(sorted(flip)) if flip else -math.inf for flip in flips]
            top = int(np.argmax(values))
            if not values[top] > best + 1e-12:
                return sorted(chosen)
            chosen, best = flips[top], values[top]


def cosine_clusters(vectors: NDArray[np.float64], cut: float) -> list[int]:
    """A cluster number for each row: average linkage of 1 - cosine, merged while below `cut`.

    Args:
        vectors: [num_rows, size].
        cut: of the cosine distance, 0.05 in ETS.
    """
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    sums = 1 - (vectors / norms) @ (vectors / norms).T  # of the distances between two groups
    groups = [[row] for row in range(len(vectors))]
    while len(groups) > 1:
        sizes = np.array([len(group) for group in groups])
        first, second = np.triu_indices(len(groups), 1)
        linkage = sums[first, second] / (sizes[first] * sizes[second])
        nearest = int(np.argmin(linkage))
        if not linkage[nearest] < cut:
            break
        i, j = int(first[nearest]), int(second[nearest])
        groups[i] += groups.pop(j)
        sums[i] += sums[j]
        sums[:, i] += sums[:, j]
        sums = np.delete(np.delete(sums, j, 0), j, 1)
    numbers = {row: number for number, group in enumerate(groups) for row in group}
    return [numbers[row] for row in range(len(vectors))]
