"""The tree of a solved question as plain data: for views, files and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from parallel_decode.engine.branch import Branch


@dataclass
class TreeNode:
    """One branch: what it added since its fork.

    Attributes:
        text: own text; of the root, the prompt.
        num_tokens: own tokens.
        score: what the method ranked it by, if it did.
        status: of the branch: "live", "finished", "pruned", "failed".
    """

    name: str
    text: str
    num_tokens: int
    score: float | None
    logprob: float
    status: str
    finish_reason: str | None
    children: list[TreeNode] = field(default_factory=list)

    @classmethod
    def of(cls, branch: Branch, prompt: str | None = None) -> TreeNode:
        """Of a branch and everything forked from it; `prompt` replaces the root's text."""
        return cls(
            name=".".join(map(str, branch.path)) or "root",
            text=branch.own_text if prompt is None else prompt,
            num_tokens=branch.num_tokens - branch.fork_length,
            score=branch.score,
            logprob=branch.mean_logprob,
            status=branch.status,
            finish_reason=branch.finish_reason,
            children=[cls.of(child) for child in branch.children],
        )

    def walk(self) -> Iterator[TreeNode]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
