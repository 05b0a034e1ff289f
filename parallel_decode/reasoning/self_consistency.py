"""Self-consistency: many samples of one question, and a vote (Wang et al., 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Extend, Fork, Prefill
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.reasoning.extract import Extractor, last_number
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.scorer import Scorer, score_branches
from parallel_decode.reasoning.solution import Solution
from parallel_decode.reasoning.vote import tally

VOTES = ("majority", "logprob", "weighted")


@dataclass(frozen=True)
class SelfConsistency:
    """D copies the question, P samples each copy to its end, A lets the answers vote.

    Args:
        n: samples.
        params: how they are drawn.
        extract: text of a branch to its answer; a branch without one does not vote.
        vote: "majority" counts; "logprob" weighs by exp(mean log-probability), the model's own
            confidence per token; "weighted" weighs by `scorer`.
        scorer: branches to scores that are not negative, for "weighted".
    """

    n: int = 16
    params: SamplingParams = field(default_factory=SamplingParams)
    extract: Extractor = last_number
    vote: Literal["majority", "logprob", "weighted"] = "majority"
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.vote not in VOTES:
            raise ValueError(f"vote must be one of {', '.join(VOTES)}, got {self.vote!r}")
        if (self.vote == "weighted") != (self.scorer is not None):
            raise ValueError("vote='weighted' and a scorer go together")

    def program(self, question: Question) -> Steps:
        return Pipeline(self._copy, self._sample, self._vote).program(question)

    def _copy(self, question: Question) -> Steps:
        root = yield Prefill(question)
        return (yield Fork(root, self.n))

    def _sample(self, branches: Sequence[Branch]) -> Steps:
        return (yield Extend(branches, self.params))

    def _vote(self, question: Question, branches: Sequence[Branch]) -> Steps:
        voters = [branch for branch in branches if branch.status != "failed"]
        answers = [self.extract(branch.text) for branch in voters]
        weights = yield from self._weights(voters)
        votes = tally(answers, weights)
        ids = [id(branch) for branch in voters]
        solution = Solution.of(
            branches,
            dict(zip(ids, answers, strict=True)),
            dict(zip(ids, weights, strict=True)),
            votes,
            votes[0][0] if votes else None,
        )
        if len(branches) > 1 and len({path.text for path in solution.paths}) == 1:
            solution.warnings.append("all branches are the same text: raise the temperature")
        return solution

    def _weights(self, branches: Sequence[Branch]) -> Steps:
        if self.scorer is not None:
            return (yield from score_branches(self.scorer, branches))
        if self.vote == "logprob":
            return [math.exp(branch.mean_logprob) for branch in branches]
        return [1.0] * len(branches)
