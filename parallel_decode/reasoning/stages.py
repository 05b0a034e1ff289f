"""Stages that many methods share: copies of the question (D), samples to their end (P)."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Extend, Fork, Prefill
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.reasoning.pipeline import Question


def root(question: Question) -> Steps:
    """D: one branch that holds the question -> list of it."""
    branch = yield Prefill(question)
    return [branch]


@dataclass(frozen=True)
class Copies:
    """D: `n` branches that share the question."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")

    def __call__(self, question: Question) -> Steps:
        branch = yield Prefill(question)
        return (yield Fork(branch, self.n))


@dataclass(frozen=True)
class Samples:
    """P: each branch to its end, alone.

    Args:
        params: how they are drawn.
        keep_hidden: strings at whose ends a scorer will look at hidden states.
    """

    params: SamplingParams
    keep_hidden: str | Sequence[str] = ()

    def __call__(self, branches: Sequence[Branch]) -> Steps:
        return (yield Extend(branches, self.params, keep_hidden=self.keep_hidden))
