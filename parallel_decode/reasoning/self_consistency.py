"""Self-consistency: many samples of one question, and a vote (Wang et al., 2022)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.operation import Extend, Fork, Prefill
from parallel_decode.engine.program import Steps
from parallel_decode.engine.sampling_params import SamplingParams
from parallel_decode.reasoning.extract import Extractor, last_number
from parallel_decode.reasoning.pipeline import Pipeline, Question
from parallel_decode.reasoning.search_tree import TreeNode
from parallel_decode.reasoning.solution import Path, Solution
from parallel_decode.reasoning.vote import tally

Scorer = Callable[[Sequence[Branch]], Sequence[float]]
VOTES = ("majority", "logprob", "weighted")


def checked_scores(scorer: Scorer, branches: Sequence[Branch]) -> list[float]:
    """One finite score a branch, also left on `branch.score`; ValueError for anything else."""
    scores = [float(score) for score in scorer(branches)]
    if len(scores) != len(branches):
        raise ValueError(f"the scorer gave {len(scores)} scores for {len(branches)} branches")
    for branch, score in zip(branches, scores, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"the scorer gave {score} for {branch!r}")
        branch.score = score
    return scores


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
        yield from ()  # a stage is a program, and this one needs no operation
        voters = [branch for branch in branches if branch.status != "failed"]
        answers = {id(branch): self.extract(branch.text) for branch in voters}
        weights = dict(zip(map(id, voters), self._weights(voters), strict=True))
        votes = tally([answers[id(b)] for b in voters], [weights[id(b)] for b in voters])
        paths = [
            Path.of(branch, answers.get(id(branch)), weights.get(id(branch), 0.0))
            for branch in branches
        ]
        root = branches[0].parent
        assert root is not None
        return Solution(
            question=root.text_before_output,
            answer=votes[0][0] if votes else None,
            votes=votes,
            paths=paths,
            tree=TreeNode.of(root, root.text_before_output),
            warnings=self._warnings(paths),
        )

    def _weights(self, branches: Sequence[Branch]) -> list[float]:
        if self.scorer is not None:
            return checked_scores(self.scorer, branches)
        if self.vote == "logprob":
            return [math.exp(branch.mean_logprob) for branch in branches]
        return [1.0] * len(branches)

    def _warnings(self, paths: Sequence[Path]) -> list[str]:
        warnings = []
        failed = [path for path in paths if path.error is not None]
        if failed:
            warnings.append(f"{len(failed)} of {len(paths)} branches failed: {failed[0].error}")
        silent = sum(path.answer is None for path in paths) - len(failed)
        if silent:
            warnings.append(f"{silent} of {len(paths)} branches gave no answer")
        texts = {path.text for path in paths}
        if len(paths) > 1 and len(texts) == 1:
            warnings.append("all branches are the same text: raise the temperature")
        return warnings
