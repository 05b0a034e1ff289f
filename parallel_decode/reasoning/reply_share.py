"""`share`: how likely a model finds one reply rather than another."""

import math
from collections.abc import Sequence


def share(replies: Sequence[Sequence[float]]) -> float:
    """Of two replies, p(first) / (p(first) + p(second)), 0.5 where neither can come; of a single
    one, its probability.

    Args:
        replies: log-probabilities of each reply's tokens; one reply or two.
    """
    first, *others = map(math.fsum, replies)
    if not others:
        return math.exp(first)
    [second] = others
    if first == second:
        return 0.5
    return 1 / (1 + math.exp(min(700.0, second - first)))
