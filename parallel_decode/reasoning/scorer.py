"""Scorers: how good branches look so far."""

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.program import Steps

Scorer = Callable[[Sequence[Branch]], Any]
"""Branches to one finite number each, higher is better. A scorer that asks the model is a generator
function: it yields operations, such as `Score(branches, head=...)`, and returns the numbers."""


def given(branches: Sequence[Branch]) -> list[float]:
    """The scores that the branches already have."""
    scores = [branch.score for branch in branches]
    if None in scores:
        raise ValueError(f"{branches[scores.index(None)]!r} has no score")
    return [score for score in scores if score is not None]


def likelihood(branches: Sequence[Branch]) -> list[float]:
    """exp of the mean log-probability, the model's own confidence per token, in (0, 1]."""
    return [math.exp(branch.mean_logprob) for branch in branches]


def mean_logprob(branches: Sequence[Branch]) -> list[float]:
    """The logarithm of `likelihood`."""
    return [branch.mean_logprob for branch in branches]


def score_branches(scorer: Scorer, branches: Sequence[Branch]) -> Steps:
    """One score a branch -> list[float], also left on `branch.score`.

    Raises:
        ValueError: the scorer gave a wrong number of scores, or one that is not finite.
    """
    if not branches:
        return []
    given = scorer(branches)
    if isinstance(given, Generator):
        given = yield from given
    scores = [float(score) for score in given]
    if len(scores) != len(branches):
        raise ValueError(f"the scorer gave {len(scores)} scores for {len(branches)} branches")
    for branch, score in zip(branches, scores, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"the scorer gave {score} for {branch!r}")
        branch.score = score
    return scores


def ranked(branches: Sequence[Branch]) -> list[Branch]:
    """By their scores, the best first; of equals the first stays the first. What has no score, such
    as a branch that failed, comes last."""
    return sorted(branches, key=lambda b: math.inf if b.score is None else -b.score)
