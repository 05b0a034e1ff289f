"""What a method gives back for one question."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.budget import Usage
from parallel_decode.reasoning.search_tree import TreeNode


@dataclass(frozen=True)
class Path:
    """One finished branch; it holds no KV blocks.

    Attributes:
        text: after the prompt.
        answer: what was extracted, None if nothing.
        logprobs: of each token after the prompt, NaN where it was not computed.
        mean_logprob: over the sampled tokens.
        weight: of its vote; 0 where it had none.
    """

    text: str
    answer: str | None
    tokens: list[int]
    logprobs: list[float]
    mean_logprob: float
    finish_reason: str | None
    score: float | None
    weight: float
    error: str | None

    @classmethod
    def of(cls, branch: Branch, answer: str | None, weight: float) -> Path:
        return cls(
            text=branch.text,
            answer=answer,
            tokens=branch.output_tokens,
            logprobs=branch.logprobs,
            mean_logprob=branch.mean_logprob,
            finish_reason=branch.finish_reason,
            score=branch.score,
            weight=weight,
            error=branch.error,
        )


@dataclass
class Solution:
    """The answer to one question and how it came about.

    Attributes:
        answer: the winner, None where no branch gave an answer.
        votes: (answer, weight), the heaviest first.
        paths: the branches that took part in the end.
        tree: all branches, pruned ones too.
        warnings: what the reader should know before trusting the answer.
        usage, interrupted: set by the engine.
    """

    question: str
    answer: str | None
    votes: list[tuple[str, float]]
    paths: list[Path]
    tree: TreeNode
    warnings: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain types only; NaN log-probabilities become None."""
        data = dataclasses.asdict(self)
        for path in data["paths"]:
            path["logprobs"] = [None if p != p else p for p in path["logprobs"]]
        return data
