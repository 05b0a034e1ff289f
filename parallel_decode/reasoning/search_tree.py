"""The tree of a solved question as plain data: for views, files and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
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
        status: of a leaf, and of what took part in the end, that of the branch: "live", "finished",
            "pruned", "failed". Of another branch that was forked, "expanded" where anything below
            it is not pruned or failed, else "pruned".
        answer: what was extracted, of a branch that took part in the end.
    """

    name: str
    text: str
    num_tokens: int
    score: float | None
    logprob: float
    status: str
    finish_reason: str | None
    answer: str | None = None
    error: str | None = None
    children: Sequence[TreeNode] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        branch: Branch,
        prompt: str | None = None,
        answers: Mapping[int, str | None] | None = None,
    ) -> TreeNode:
        """Of a branch and everything forked from it.

        Args:
            prompt: replaces the text of `branch`.
            answers: id(branch) -> its answer.
        """
        root = cls._leaf(branch, answers or {})
        root.text = root.text if prompt is None else prompt
        # Not by recursion: a tree is as deep as a search has steps.
        pairs = [(root, branch)]
        for node, source in pairs:
            if source.children:
                node.children = [cls._leaf(child, answers or {}) for child in source.children]
                pairs += zip(node.children, source.children, strict=True)
        for node, source in reversed(pairs):
            # One that was forked for probes alone, and took part itself, stays what it is.
            if node.children and id(source) not in (answers or {}):
                alive = any(child.alive for child in node.children)
                node.status = "expanded" if alive else "pruned"
        return root

    @classmethod
    def _leaf(cls, branch: Branch, answers: Mapping[int, str | None]) -> TreeNode:
        return cls(
            name=".".join(map(str, branch.path)) or "root",
            text=branch.own_text,
            num_tokens=branch.num_tokens - branch.fork_length,
            score=branch.score,
            logprob=branch.mean_logprob,
            status=branch.status,
            finish_reason=branch.finish_reason,
            answer=answers.get(id(branch)),
            error=branch.error,
        )

    @property
    def alive(self) -> bool:
        return self.status not in ("pruned", "failed")

    def walk(self) -> Iterator[TreeNode]:
        """This node and all below it, parents first."""
        open_nodes = [self]
        while open_nodes:
            node = open_nodes.pop()
            yield node
            open_nodes += reversed(node.children)

    def as_rows(self) -> list[dict[str, Any]]:
        """Flat, for JSON: one object a node, in the order of `walk`.

        `id` is its index, `parent` and `children` are ids; the root's parent is None.
        """
        nodes = list(self.walk())
        ids = {id(node): number for number, node in enumerate(nodes)}
        parents = {id(child): ids[id(node)] for node in nodes for child in node.children}
        names = [item.name for item in dataclasses.fields(self) if item.name != "children"]
        return [
            {
                "id": ids[id(node)],
                "parent": parents.get(id(node)),
                "children": [ids[id(child)] for child in node.children],
                **{name: getattr(node, name) for name in names},
            }
            for node in nodes
        ]
