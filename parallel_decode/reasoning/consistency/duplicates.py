"""Traces that go the same way: judges of pairs, and clusters of what they find alike."""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

from parallel_decode.engine import Branch, Steps
from parallel_decode.reasoning.extraction import Extractor, answers_of

Judge = Callable[[Sequence[tuple[Branch, Branch]]], Any]
"""Pairs of unfinished traces to one number each, how likely the two end in the same answer. One
that asks the model is a generator function: it yields operations and returns the numbers."""


def token_overlap(pairs: Sequence[tuple[Branch, Branch]]) -> list[float]:
    """Twice the tokens that two traces have in common, in any order, by the tokens of both: 1 is
    the same, 0 nothing in common."""
    counts = {id(branch): Counter(branch.output_tokens) for pair in pairs for branch in pair}
    overlaps = []
    for first, second in pairs:
        a, b = counts[id(first)], counts[id(second)]
        overlaps.append(2 * (a & b).total() / max(1, a.total() + b.total()))
    return overlaps


def same_answer(extract: Extractor) -> Judge:
    """1 where the texts so far give the same answer, 0 where they do not, or give none."""

    def judge(pairs: Sequence[tuple[Branch, Branch]]) -> list[float]:
        branches = list({id(branch): branch for pair in pairs for branch in pair}.values())
        answers = answers_of(extract, [branch.text for branch in branches])
        of = dict(zip(map(id, branches), answers, strict=True))
        return [
            float(of[id(first)] is not None and of[id(first)] == of[id(second)])
            for first, second in pairs
        ]

    return judge


def greedy_clusters(num_traces: int, alike: Callable[[int, int], bool]) -> list[list[int]]:
    """In order, each trace joins the first cluster whose first trace it is like, or opens its own.

    Args:
        alike: (i, j) with i < j.
    """
    clusters: list[list[int]] = []
    for trace in range(num_traces):
        for cluster in clusters:
            if alike(cluster[0], trace):
                cluster.append(trace)
                break
        else:
            clusters.append([trace])
    return clusters


def clustered(branches: Sequence[Branch], judge: Judge, threshold: float) -> Steps:
    """Clusters of branches whose first one is like each of the others -> list[list[Branch]].

    Raises:
        ValueError: the judge gave a wrong number of values, or one that is not in [0, 1].
    """
    numbers = [(i, j) for j in range(len(branches)) for i in range(j)]
    if not numbers:
        return [[branch] for branch in branches]
    found = judge([(branches[i], branches[j]) for i, j in numbers])
    if isinstance(found, Generator):
        found = yield from found
    values = [float(value) for value in found]
    if len(values) != len(numbers):
        raise ValueError(f"the judge gave {len(values)} values for {len(numbers)} pairs")
    for value in values:
        if not 0 <= value <= 1:
            raise ValueError(f"the judge gave {value}, which is not in [0, 1]")
    likeness = dict(zip(numbers, values, strict=True))
    clusters = greedy_clusters(len(branches), lambda i, j: likeness[i, j] >= threshold)
    return [[branches[i] for i in cluster] for cluster in clusters]
