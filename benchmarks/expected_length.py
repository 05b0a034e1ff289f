"""What one step commits in the mean by a rule, from every way that its decisions can go."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from parallel_decode.kernels.acceptance import Row, Uniforms, Walk


class _Decisions(Uniforms):
    """The given answers, then always yes; no uniform decides twice. Which token comes behind the
    accepted ones is not asked: it is one token in any case."""

    def __init__(self, answers: Sequence[bool]) -> None:
        self._answers = list(answers)
        self.taken: list[bool] = []
        self.probability = 1.0
        self.open: list[list[bool]] = []
        """Answers of the other ways that were open behind the given ones."""

    def below(self, threshold: float, index: int, stream: int) -> bool:
        yes = min(max(threshold, 0.0), 1.0)
        if len(self.taken) < len(self._answers):
            answer = self._answers[len(self.taken)]
        else:
            answer = yes > 0
            if 0 < yes < 1:
                self.open.append([*self.taken, False])
        self.taken.append(answer)
        self.probability *= yes if answer else 1 - yes
        return answer

    def choose(self, weights: Row, index: int, stream: int) -> int:
        return 0


def _walks(decide: Callable[[Uniforms], Walk]) -> Iterator[tuple[float, Walk]]:
    scripts: list[list[bool]] = [[]]
    while scripts:
        decisions = _Decisions(scripts.pop())
        walk = decide(decisions)
        scripts += decisions.open
        yield decisions.probability, walk


def expected_length(
    accept: Callable[..., Walk],
    tokens: Sequence[int],
    parents: Sequence[int],
    p: NDArray[np.float64],
    q: NDArray[np.float64] | None,
    replacement: bool,
) -> float:
    """Tokens that a step commits, in the mean over the rule's random numbers.

    accept: `kernels.acceptance.accept` or `kernels.traversal.traverse`; the other arguments are
    theirs. q: None for a tree of tokens that were chosen.
    """
    size = len(tokens)

    def decide(uniforms: Uniforms) -> Walk:
        chosen = [q is None] * size
        return accept(tokens, parents, p, q, chosen, replacement, size, 0, uniforms)

    walks = list(_walks(decide))
    assert abs(sum(probability for probability, _ in walks) - 1) < 1e-9
    return sum(probability * (1 + len(path)) for probability, (path, _) in walks)
