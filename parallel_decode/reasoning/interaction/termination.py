"""When rounds of parallel answers end: pure functions of the semantic entropy of each round."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

Termination = Callable[[Sequence[float], int], bool]
"""(semantic entropies of the rounds so far, rounds at the most) -> whether the last one was enough.
"""


def semantic_entropy(answers: Sequence[str | None]) -> float:
    """Entropy of the answers of one round, in nats. What gives no answer agrees with nobody."""
    counts = list(Counter(answer for answer in answers if answer is not None).values())
    counts += [1] * answers.count(None)
    return math.fsum(count / len(answers) * math.log(len(answers) / count) for count in counts)


def low_entropy(threshold: float) -> Termination:
    """Once the answers of a round differ so little, in nats. Answers may agree and be wrong."""
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    return lambda entropies, rounds: entropies[-1] <= threshold


def secretary(entropies: Sequence[float], rounds: int) -> bool:
    """The rule of the secretary problem, without a threshold: after rounds / e of them the first
    one with less entropy than all before."""
    observed = math.ceil(rounds / math.e)
    return len(entropies) > observed and entropies[-1] < min(entropies[:-1])
