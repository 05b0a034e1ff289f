"""Stages that many methods share: copies of the question (D), samples to their end (P)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Extend, Fork, Prefill
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.reasoning.at_least import at_least
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
        at_least(1, n=self.n)

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


@dataclass(frozen=True)
class Pieces:
    """Samples that pause every `size` tokens, all at the same length, for somebody to look at them.

    Each branch draws what it would in one go, and what is seen of it at a pause does not depend on
    what else runs.

    Args:
        params: of the whole sample, which is what a branch has after the prompt.
    """

    params: SamplingParams
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the tokens between two looks must be at least 1, got {self.size}")

    def advance(self, branches: Sequence[Branch]) -> Steps:
        """A piece more of each -> those that go on after it."""
        drawn = [len(branch.output_tokens) for branch in branches]
        shared: dict[int, SamplingParams] = {n: self._piece(n) for n in set(drawn)}
        params = [shared[n] for n in drawn]
        yield Extend(branches, params)
        return [
            branch
            for branch, n, piece in zip(branches, drawn, params, strict=True)
            # One that got less is at the end of its context.
            if branch.finish_reason == "length"
            and len(branch.output_tokens) == n + piece.max_tokens < self.params.max_tokens
        ]

    def _piece(self, drawn: int) -> SamplingParams:
        size = min(self.size, self.params.max_tokens - drawn)
        least = max(0, self.params.min_tokens - drawn)
        # No stop string ends a branch that is short of min_tokens, here after this piece as well.
        stop = self.params.stop if least <= size else ()
        return replace(self.params, max_tokens=size, min_tokens=min(size, least), stop=stop)
