"""The exact law of what a verifier commits, by going every way that chance can go.

Drafts are enumerated with their probabilities. The uniforms of a walk are intervals: a decision
cuts its uniform's interval and takes one part, so that a uniform is not fresh when it decides a
second time, and the probability of a walk is the product of the parts' lengths.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_decode.kernels.acceptance import Row, Walk

Model = dict[tuple[int, ...], Row]
"""Path -> distribution of the next token."""


class Intervals:
    """Stands for `acceptance.Uniforms`: the ways of `script`, then each decision's first."""

    def __init__(self, script: Sequence[int] = ()) -> None:
        self._script = list(script)
        self._parts: dict[tuple[int, int], tuple[float, float]] = {}
        self._taken: list[int] = []
        self.untaken: list[list[int]] = []
        """Scripts of the other ways that were open behind `script`."""

    @property
    def probability(self) -> float:
        return math.prod(high - low for low, high in self._parts.values())

    def below(self, threshold: float, index: int, stream: int) -> bool:
        return self._cut([threshold, 1.0], (index, stream)) == 0

    def choose(self, weights: Row, index: int, stream: int) -> int:
        reached = np.cumsum(weights)
        return self._cut((reached / reached[-1]).tolist(), (index, stream))

    def _cut(self, ends: list[float], uniform: tuple[int, int]) -> int:
        """The number of the part, each behind the one before and up to its end."""
        low, high = self._parts.get(uniform, (0.0, 1.0))
        begins = [0.0, *ends]
        parts = [
            (number, max(low, begin), min(high, end))
            for number, (begin, end) in enumerate(zip(begins, ends))
            if max(low, begin) < min(high, end)
        ]
        way = 0
        if len(self._taken) < len(self._script):
            way = self._script[len(self._taken)]
        else:
            self.untaken += [[*self._taken, other] for other in range(1, len(parts))]
        self._taken.append(way)
        number, low, high = parts[way]
        self._parts[uniform] = low, high
        return number


def outcomes(decide: Callable[[Intervals], Walk]) -> Iterator[tuple[float, Walk]]:
    """Everything that `decide` can return, with its probability."""
    scripts: list[list[int]] = [[]]
    while scripts:
        intervals = Intervals(scripts.pop())
        walk = decide(intervals)
        scripts += intervals.untaken
        yield intervals.probability, walk


@dataclass(frozen=True)
class Case:
    """A tree, how its tokens are drawn, and two models over `vocab_size` tokens."""

    parents: tuple[int, ...]
    replacement: bool
    deterministic: tuple[bool, ...]
    target: Model
    draft: Model
    vocab_size: int

    @property
    def depth(self) -> int:
        return max(len(self.path_to(node)) for node in range(len(self.parents)))

    def path_to(self, node: int) -> list[int]:
        """Nodes from the root to this one."""
        return [] if node < 0 else [*self.path_to(self.parents[node]), node]

    def prefix(self, tokens: Sequence[int], node: int) -> tuple[int, ...]:
        return tuple(tokens[n] for n in self.path_to(node))

    def drafts(self, tokens: tuple[int, ...] = ()) -> Iterator[tuple[float, tuple[int, ...]]]:
        """All tokens that the drafter can give the nodes behind `tokens`."""
        node = len(tokens)
        if node == len(self.parents):
            yield 1.0, tokens
            return
        for token, probability in enumerate(self._law(node, tokens)):
            if probability > 0:
                for rest, drawn in self.drafts((*tokens, token)):
                    yield probability * rest, drawn

    def _law(self, node: int, tokens: tuple[int, ...]) -> Row:
        parent = self.parents[node]
        siblings = [tokens[n] for n in range(node) if self.parents[n] == parent]
        q = self.draft[self.prefix(tokens, parent)]
        if self.deterministic[node]:
            most_probable = int(np.argsort(-q, kind="stable")[len(siblings) % len(q)])
            return np.eye(len(q))[most_probable]
        if self.replacement:
            return q
        left = q.copy()
        left[siblings] = 0
        # With nothing left the drafter fills up with token 0.
        return left / left.sum() if left.sum() > 0 else np.eye(len(q))[0]


def target_law(target: Model, prefix: tuple[int, ...], length: int) -> NDArray[np.float64]:
    """[vocab_size] * length, the joint law of the next tokens."""
    if length == 0:
        return np.ones(())
    rows = [
        probability * target_law(target, (*prefix, token), length - 1)
        for token, probability in enumerate(target[prefix])
    ]
    return np.stack(rows)


def commits(accept: Callable[..., Walk], case: Case) -> Iterator[tuple[float, tuple[int, ...]]]:
    """What one step can commit, with its probability."""
    for chance, tokens in case.drafts():
        nodes = range(len(tokens))
        p = np.stack([case.target[case.prefix(tokens, n)] for n in (-1, *nodes)])
        q = np.stack([case.draft[case.prefix(tokens, case.parents[n])] for n in nodes])
        arguments = (tokens, case.parents, p, q, case.deterministic, case.replacement, case.depth)

        def decide(intervals: Intervals, arguments: tuple[object, ...] = arguments) -> Walk:
            return accept(*arguments, 0, intervals)

        for probability, (path, token) in outcomes(decide):
            yield chance * probability, (*(tokens[node] for node in path), token)


def committed_law(accept: Callable[..., Walk], case: Case) -> NDArray[np.float64]:
    """The joint law of the first depth + 1 tokens. Those behind a shorter commit are the target's,
    as they come out of the next steps if these are right."""
    length = case.depth + 1
    law = np.zeros((case.vocab_size,) * length)
    for probability, committed in commits(accept, case):
        rest = target_law(case.target, committed, length - len(committed))
        law[committed] += probability * rest
    return law


def tokens_per_step(accept: Callable[..., Walk], case: Case) -> float:
    """What one step commits, in the mean."""
    return sum(probability * len(committed) for probability, committed in commits(accept, case))


def distance(law: NDArray[np.float64], case: Case) -> float:
    """Total variation between a law and the target's."""
    return 0.5 * float(np.abs(law - target_law(case.target, (), case.depth + 1)).sum())
