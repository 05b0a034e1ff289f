"""When enough samples have been drawn: pure functions of the answers so far, in their order.

None is a sample without an answer. A rule can be replayed on a stored pool of answers.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from parallel_decode.reasoning.at_least import at_least

StoppingRule = Callable[[Sequence[str | None]], bool]
"""The answers so far to whether no more are needed."""


def majority_probability(first: int, second: int) -> float:
    """P(x > 1/2) for x ~ Beta(first + 1, second + 1): how sure it is that the leading answer stays
    ahead of the next one (Aggarwal et al., 2023).

    Exact: it is P(Binomial(first + second + 1, 1/2) ≤ first). 4 votes to none give 31/32.
    """
    if not 0 <= second <= first:
        raise ValueError(f"counts must be in order and not negative, got {first}, {second}")
    n = first + second + 1
    return sum(math.comb(n, j) for j in range(first + 1)) / 2**n


def beta_criterion(threshold: float) -> StoppingRule:
    """Whether the two most frequent answers are far enough apart (Adaptive-Consistency)."""
    if not 0.5 < threshold < 1:
        raise ValueError(f"threshold must be in (0.5, 1), got {threshold}")

    def rule(answers: Sequence[str | None]) -> bool:
        counts = Counter(answer for answer in answers if answer is not None).most_common(2)
        first, second = ([count for _, count in counts] + [0, 0])[:2]
        return majority_probability(first, second) >= threshold

    return rule


def unanimous_window(size: int) -> StoppingRule:
    """Whether the last whole window of `size` samples has one answer (ESC, Li et al., 2024)."""
    at_least(1, window=size)

    def rule(answers: Sequence[str | None]) -> bool:
        return len(answers) % size == 0 and settled(answers, size)

    return rule


def settled(answers: Sequence[str | None], size: int) -> bool:
    """Whether the last `size` are the same answer."""
    last = answers[-size:]
    return len(last) == size and last[0] is not None and len(set(last)) == 1


def consensus(votes: Sequence[tuple[str, float]], share: float) -> bool:
    """Whether the heaviest of the votes, in order as `tally` gives them, has this share of all."""
    total = math.fsum(weight for _, weight in votes)
    return total > 0 and votes[0][1] >= share * total


def samples_needed(rule: StoppingRule, answers: Sequence[str | None], batch: int) -> int:
    """How many of a pool are drawn, `batch` at a time, before the rule stops or the pool ends."""
    at_least(1, batch=batch)
    for drawn in range(batch, len(answers), batch):
        if rule(answers[:drawn]):
            return drawn
    return len(answers)
