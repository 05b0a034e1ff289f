"""What a method gives back for one question."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.timeline import Moment
from parallel_decode.reasoning.metrics.collapse import path_collapse
from parallel_decode.reasoning.search_tree import TreeNode

PATHS_COMPARED = 24
"""Path collapse is looked for among so many: a mean over pairs needs no more."""

NOT_IN_DICT = ("paths", "tree", "timeline")


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

    @classmethod
    def told(cls, text: str, answer: str | None, weight: float, error: str | None) -> Path:
        """Of a text that no branch wrote, or of a failure before there was one."""
        reason = None if error is None else "error"
        return cls(text, answer, [], [], 0.0, reason, None, weight, error)


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
        timeline: tokens and KV blocks after steps of the model, at most 256; set by the engine.
    """

    question: str
    answer: str | None
    votes: list[tuple[str, float]]
    paths: list[Path]
    tree: TreeNode
    warnings: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    interrupted: bool = False
    timeline: Sequence[Moment] = field(default=(), compare=False)

    @classmethod
    def of(
        cls,
        branches: Sequence[Branch],
        answers: Mapping[int, str | None],
        weights: Mapping[int, float],
        votes: list[tuple[str, float]],
        answer: str | None,
    ) -> Solution:
        """From the branches that took part in the end, which share one root.

        Args:
            answers, weights: of each branch that may vote, by id(branch).
        """
        root = branches[0]
        while root.parent is not None:
            root = root.parent
        prompt = root.text_before_output
        tree = TreeNode.of(root, prompt, answers)
        paths = [
            Path.of(branch, answers.get(id(branch)), weights.get(id(branch), 0.0))
            for branch in branches
        ]
        warnings = [*_warnings(paths, tree), *_collapse(branches, answers)]
        return cls(prompt, answer, votes, paths, tree, warnings)

    @classmethod
    def across(
        cls,
        root: Branch,
        paths: list[Path],
        answers: Mapping[int, str | None],
        votes: list[tuple[str, float]],
    ) -> Solution:
        """From paths of several engines, of which `root` holds the question on this one.

        Args:
            answers: of each branch that took part in the end, by id(branch).
        """
        prompt = root.text_before_output
        tree = TreeNode.of(root, prompt, answers)
        answer = votes[0][0] if votes else None
        return cls(prompt, answer, votes, paths, tree, _warnings(paths, tree))

    @classmethod
    def merged(cls, solutions: Sequence[Solution], votes: list[tuple[str, float]]) -> Solution:
        """From solutions of one question whose branches share one root: all their paths, and votes
        of their own."""
        tree = solutions[-1].tree
        nodes = [node for solution in solutions for node in solution.tree.walk()]
        answers = {node.name: node.answer for node in nodes if node.answer is not None}
        for node in tree.walk():
            node.answer = answers.get(node.name)
        paths = [path for solution in solutions for path in solution.paths]
        answer = votes[0][0] if votes else None
        return cls(solutions[-1].question, answer, votes, paths, tree, _warnings(paths, tree))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain types only; NaN log-probabilities become None, the tree its rows. The
        timeline, which is no part of the result, is not in it."""
        names = [item.name for item in dataclasses.fields(self)]
        data = {name: getattr(self, name) for name in names if name not in NOT_IN_DICT}
        data["votes"] = [list(vote) for vote in self.votes]
        data["usage"] = dataclasses.asdict(self.usage)
        data["paths"] = [dataclasses.asdict(path) for path in self.paths]
        for path in data["paths"]:
            path["logprobs"] = [None if math.isnan(p) else p for p in path["logprobs"]]
        data["tree"] = self.tree.as_rows()
        return data


def _warnings(paths: Sequence[Path], tree: TreeNode) -> list[str]:
    """Of failures anywhere in the tree, and of paths that say nothing or were cut off."""
    warnings = []
    below_root = list(tree.walk())[1:]
    errors = [node.error for node in below_root if node.error is not None]
    if errors:
        warnings.append(f"{len(errors)} of {len(below_root)} branches failed: {errors[0]}")
    sound = [path for path in paths if path.error is None]
    silent = sum(path.answer is None for path in sound)
    if silent:
        warnings.append(f"{silent} of {len(paths)} branches gave no answer")
    for reason, why in (
        ("length", "reached max_tokens or the context"),
        ("budget", "ran out of budget"),
        ("aborted", "were stopped"),
    ):
        cut = sum(path.finish_reason == reason for path in sound)
        if cut:
            warnings.append(f"{cut} of {len(paths)} branches {why} before their end")
    return warnings


def _collapse(branches: Sequence[Branch], answers: Mapping[int, str | None]) -> list[str]:
    """Whether branches that could have differed from their first token on are all alike."""
    sound = [b for b in branches if b.status != "failed" and b.output_tokens][:PATHS_COMPARED]
    # Beams have much in common by their descent; samples have a child of the root each.
    if len(sound) < 2 or len({b.path[:1] for b in sound}) < len(sound):
        return []
    collapse = path_collapse(
        [branch.output_tokens for branch in sound], [answers.get(id(b)) for b in sound]
    )
    return [] if collapse.warning is None else [collapse.warning]
