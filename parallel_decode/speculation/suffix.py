"""Drafts from what the same tokens were followed by anywhere else (Oliaro et al. 2024)."""

import weakref
from collections.abc import Sequence
from operator import sub

from parallel_decode import _C
from parallel_decode.engine.branch import Branch
from parallel_decode.engine.draft_tree import DraftTree
from parallel_decode.engine.drafter import Drafter, DraftRequest

CONTEXT_LENGTHS = (1, 2, 4, 8, 16)
"""`benchmarks.drafters` compares them with all lengths up to 32, which draft about as well."""


class SuffixDrafter(Drafter):
    """SuffixDecoding over one index of everything: the prompt, the branch itself, its live
    siblings, which draft for each other, and requests that are done.

    The longest context of the branch's last tokens that was seen before is followed, or a shorter
    one where that promises more. A probability is a frequency among the last continuations of a
    path, less a part for tokens not seen there yet: csrc/suffix_index.h has the formula.

    Args:
        max_tokens: how many the index remembers, 70 to 230 bytes each; the oldest go first.
        min_prob: of a drafted path.
        factor, offset: a draft is at most factor * (length of the context) + offset tokens deep.
        unseen: how much is left for tokens not seen yet. With 0 probabilities are the paper's
            frequencies, which a token that was seen once has all of.
        max_continuations: how many of a context, the last ones, are counted.
        context_lengths: rising; the numbers of last tokens that are looked for.

    Raises:
        ValueError: where one of them makes no sense.
    """

    nodes_are_free = True

    def __init__(
        self,
        max_tokens: int = 1 << 18,
        min_prob: float = 0.05,
        factor: float = 2.0,
        offset: float = 0.0,
        unseen: float = 0.5,
        max_continuations: int = 64,
        context_lengths: Sequence[int] = CONTEXT_LENGTHS,
    ) -> None:
        self.index = _C.SuffixIndex(max_tokens, context_lengths, max_continuations)
        self._limits = (min_prob, factor, offset, unseen)
        probe = self.index.open()
        self.index.draft([probe], [0], *self._limits)  # raises where they make no sense
        self.index.release(probe)
        # By id: to look up a weak reference takes longer than to draft.
        self._streams: dict[int, int] = {}

    def propose(
        self, requests: Sequence[DraftRequest], max_nodes: Sequence[int]
    ) -> list[DraftTree]:
        """See `Drafter.propose`; the branches' newest tokens are observed before any is drafted."""
        streams = self._followed([request.branch for request in requests])
        return [*map(DraftTree, self.index.draft(streams, max_nodes, *self._limits))]

    def observe(self, branch: Branch) -> None:
        """See `Drafter.observe`."""
        self._followed([branch])

    def forget(self, branch: Branch) -> None:
        """Nothing: what it said drafts for others, until newer tokens take its place."""

    def _followed(self, branches: Sequence[Branch]) -> list[int]:
        """The streams of the branches, which have their tokens then."""
        known = self._streams.get
        streams = [
            self._opened(branch) if (stream := known(id(branch))) is None else stream
            for branch in branches
        ]
        lengths = [branch.num_tokens for branch in branches]
        missing = map(sub, lengths, self.index.num_tokens(streams))
        newest = [branch.recent(max(0, n)) for branch, n in zip(branches, missing, strict=True)]
        self.index.follow(streams, lengths, newest)
        return streams

    def _opened(self, branch: Branch) -> int:
        """A stream for a new branch, which shares its parent's tokens up to the fork."""
        unknown = [branch]
        while (parent := unknown[-1].parent) is not None and id(parent) not in self._streams:
            unknown.append(parent)
        for opened in reversed(unknown):
            if opened.parent is None:
                stream = self.index.open()
            else:
                [stream] = self._followed([opened.parent])
                num_shared = min(opened.fork_length, opened.parent.num_tokens)
                stream = self.index.fork(stream, num_shared)
            self._streams[id(opened)] = stream
            # Children need it as long as there are any, even if the branch is pruned.
            weakref.finalize(opened, self._close, id(opened))
        return stream

    def _close(self, branch_id: int) -> None:
        self.index.release(self._streams.pop(branch_id))
