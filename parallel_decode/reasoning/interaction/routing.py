"""Who hears whom: pure functions of what the paths wrote (Luo et al., LeaP, 2025)."""

import random
from collections.abc import Callable, Sequence

import numpy as np

from parallel_decode.reasoning.metrics.edit_distance import normalised_edit_distances

Route = Callable[[Sequence[str], int, random.Random], Sequence[Sequence[int]]]
"""(summaries, how many each path hears, random numbers) -> numbers of the peers that each path
hears, in their order."""


def dispersed(texts: Sequence[str], count: int, rng: random.Random) -> list[list[int]]:
    """The peers that say the least alike, by edit distance."""
    return [ordered[::-1][:count] for ordered in _nearest(texts)]


def clustered(texts: Sequence[str], count: int, rng: random.Random) -> list[list[int]]:
    """The peers that say the most alike."""
    return [ordered[:count] for ordered in _nearest(texts)]


def hybrid(texts: Sequence[str], count: int, rng: random.Random) -> list[list[int]]:
    """Half of them the most alike, half the least; the odd one is of the least."""
    near = count // 2
    return [ordered[:near] + ordered[near:][::-1][: count - near] for ordered in _nearest(texts)]


def at_random(texts: Sequence[str], count: int, rng: random.Random) -> list[list[int]]:
    """Any peers, whatever they say: the control."""
    paths = range(len(texts))
    return [
        rng.sample([peer for peer in paths if peer != path], min(count, len(texts) - 1))
        for path in paths
    ]


def check_route(route: Sequence[Sequence[int]], num_paths: int) -> None:
    """ValueError unless each path hears some of the others, nobody twice."""
    if len(route) != num_paths:
        raise ValueError(f"the route has {len(route)} paths, there are {num_paths}")
    for path, peers in enumerate(route):
        others = set(range(num_paths)) - {path}
        if not others.issuperset(peers) or len(set(peers)) != len(peers):
            raise ValueError(f"path {path} of {num_paths} can't hear {list(peers)}")


def _nearest(texts: Sequence[str]) -> list[list[int]]:
    """For each text the others, the nearest first, of equals the first."""
    distances = normalised_edit_distances(texts)
    order = np.argsort(distances, axis=1, kind="stable").tolist()
    return [[j for j in row if j != i] for i, row in enumerate(order)]
