"""Drafts of a smaller model of the same vocabulary (Leviathan et al. 2023)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from parallel_decode import _C
from parallel_decode.engine import Engine
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import NO_DRAFT, DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest


class DraftModelDrafter(Drafter):
    """Chains that another model says, with keys and values of its own, which its branches share
    as the target's do.

    It draws with the random numbers that the target is going to draw with. So two models that
    agree about a distribution agree about the token at any temperature, and a draft that is right
    is as likely as the models are alike.

    Args:
        engine: the smaller model, on the CPU backend; it is used for nothing else meanwhile.
        max_depth: tokens of a chain, at the most.
        min_prob: of a path, below which a chain ends.

    Raises:
        ValueError: the engine is on another backend, or a number is out of range.
    """

    def __init__(self, engine: Engine, max_depth: int = 24, min_prob: float = 0.02) -> None:
        if engine.model.fused is None or engine.placement.backend != "cpu":
            raise ValueError(
                f"a draft model runs on backend 'cpu', this is on {engine.placement.backend!r}"
            )
        if max_depth < 1 or not 0 <= min_prob <= 1:
            raise ValueError(
                f"max_depth must be at least 1 and min_prob in [0, 1], got {max_depth}, {min_prob}"
            )
        self.engine = engine
        self.max_depth = max_depth
        self.min_prob = min_prob
        self._mirrors: weakref.WeakKeyDictionary[Branch, _Mirror] = weakref.WeakKeyDictionary()

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """See `Drafter.propose`."""
        asked = []
        for number, (request, limit) in enumerate(zip(requests, max_nodes, strict=True)):
            room = self.engine.max_seq_len - request.branch.num_tokens
            depth = min(limit, self.max_depth, room)
            # Positions of joined branches are not those of their tokens.
            if depth > 0 and request.branch.recomputable:
                asked.append((number, request, depth))
        trees = [NO_DRAFT] * len(requests)
        if not asked:
            return trees
        mirrors = [self._mirror(request.branch) for _, request, _ in asked]
        # The last token is computed again: the logits behind it are wanted. Only now, as it may
        # have been computed for a child.
        for mirror, (_, request, _) in zip(mirrors, asked, strict=True):
            mirror.follow(request.branch, request.branch.num_tokens - 1)
        branches = [
            _C.DraftBranch(
                mirror.table,
                mirror.pending(request.branch),
                request.params.temperature,
                request.params.top_k,
                request.params.top_p,
                request.params.min_p,
                request.key,
                depth,
                mirror.table.num_tokens,
            )
            for mirror, (_, request, depth) in zip(mirrors, asked, strict=True)
        ]
        chains = self._chains(branches, mirrors)
        if chains is None:
            return trees
        for (number, request, _), mirror, chain in zip(asked, mirrors, chains, strict=True):
            mirror.said(request.branch, chain.tokens.tolist())
            trees[number] = DraftTree(chain)
        return trees

    def observe(self, branch: Branch) -> None:
        """See `Drafter.observe`."""
        mirror = self._mirrors.get(branch)
        if mirror is not None:
            mirror.follow(branch, branch.num_tokens - 1)

    def forget(self, branch: Branch) -> None:
        """Its keys stay while somebody may go on from them; see `clear`."""

    def clear(self) -> None:
        """Gives all blocks of the draft model back."""
        self._mirrors.clear()

    def _mirror(self, branch: Branch) -> _Mirror:
        """Of a branch; a new one begins with its parent's."""
        line = [branch]
        while line[-1] not in self._mirrors and line[-1].parent is not None:
            line.append(line[-1].parent)
        mirror = self._mirrors.get(line[-1])
        if mirror is None:
            mirror = _Mirror(_C.BlockTable(self.engine.cache.pool), [])
            self._mirrors[line[-1]] = mirror
        for parent, child in zip(line[:0:-1], line[-2::-1]):
            mirror.follow(parent, parent.num_tokens)
            self._compute(mirror, parent, child.fork_length)
            mirror = self._mirrors[child] = mirror.fork(child.fork_length)
        return mirror

    def _compute(self, mirror: _Mirror, branch: Branch, num_tokens: int) -> None:
        """Stores the first tokens of a branch, so that its children share them."""
        missing = branch.tokens[mirror.table.num_tokens : num_tokens]
        if not missing:
            return
        stored = mirror.table.num_tokens
        request = _C.DraftBranch(mirror.table, missing, 0.0, 0, 1.0, 0.0, 0, 1, stored)
        if self._chains([request], [mirror]) is not None:
            mirror.tokens += missing

    def _chains(
        self, branches: Sequence[_C.DraftBranch], mirrors: Sequence[_Mirror]
    ) -> list[_C.DraftColumns] | None:
        """None where the pool has no room even without all that is not asked for."""
        fused, cache = self.engine.model.fused, self.engine.cache
        assert fused is not None
        for _ in range(2):
            try:
                chains: list[_C.DraftColumns] = fused.draft_combs(
                    cache.storage, branches, self.min_prob
                )
                return chains
            except ValueError as failure:
                if "pool" not in str(failure):
                    raise
                kept = {id(mirror) for mirror in mirrors}
                for branch, mirror in list(self._mirrors.items()):
                    if id(mirror) not in kept:
                        del self._mirrors[branch]
        return None


class _Mirror:
    """A branch in the draft model: `table` holds the keys of `tokens`."""

    def __init__(self, table: _C.BlockTable, tokens: list[int]) -> None:
        self.table = table
        self.tokens = tokens

    def fork(self, num_tokens: int) -> _Mirror:
        table = self.table.fork()
        table.truncate(min(num_tokens, table.num_tokens))
        return _Mirror(table, self.tokens[: table.num_tokens])

    def follow(self, branch: Branch, most: int) -> None:
        """Drops what is not the branch's own, and what is beyond its first `most` tokens."""
        num_tokens = branch.num_tokens
        limit = min(len(self.tokens), most)
        # All but what was drafted last has been compared before.
        first = max(0, min(self.checked, limit))
        recent = branch.recent(num_tokens - first)
        while first < limit and self.tokens[first] == recent[first - num_tokens]:
            first += 1
        del self.tokens[first:]
        self.table.truncate(first)
        self.checked = first

    checked = 0

    def pending(self, branch: Branch) -> list[int]:
        return branch.recent(branch.num_tokens - len(self.tokens))

    def said(self, branch: Branch, drafted: Sequence[int]) -> None:
        """The pending tokens are stored, and those drafted but the last."""
        self.tokens += self.pending(branch)
        self.tokens += drafted[: self.table.num_tokens - len(self.tokens)]
