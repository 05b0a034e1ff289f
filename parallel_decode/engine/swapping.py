"""`Swapping`: keys go to the host's memory while their branch waits, and come back."""

from collections.abc import Callable

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.kv_cache import KVCache, PoolExhausted
from parallel_decode.engine.operation import Operation, Prune, Release, See, Seed, Swap

LEAVE_AWAY = (Prune, Release, Seed, Swap)
"""Operations that need no keys."""


class Swapping:
    """Moves the blocks that a branch holds alone.

    Args:
        cache: the pool.
        evict: frees up to so many idle blocks -> how many it freed.
    """

    def __init__(self, cache: KVCache, evict: Callable[[int], int]) -> None:
        self._cache = cache
        self._evict = evict

    def take_out(self, branch: Branch) -> int:
        """Copies the blocks behind the last one that somebody else holds, too, and gives them back
        -> the tokens of the branch that are in the host's memory."""
        if branch.away is not None:
            entries = branch.away.entries
            return int((entries[:, 2] - entries[:, 1]).sum())
        blocks = branch.table.entries()[:, 0].tolist()
        first = len(blocks)
        while first and self._cache.pool.ref_count(blocks[first - 1]) == 1:
            first -= 1
        own = blocks[first:]
        return branch.put_away(len(own), self._cache.copy_out(own)) if own else 0

    def bring_back_for(self, operation: Operation) -> None:
        """Brings back the keys of the branches that an operation is about.

        Raises:
            PoolExhausted: the pool has no room for keys that can't be computed again.
        """
        if isinstance(operation, LEAVE_AWAY):
            return
        for branch in _branches_of(operation):
            if branch.away is not None:
                self._bring_back(branch)

    def _bring_back(self, branch: Branch) -> None:
        assert branch.away is not None
        needed, pool = len(branch.away.entries), self._cache.pool
        missing = needed - pool.num_free
        if missing > 0 and self._evict(missing) < missing:
            if branch.recomputable:
                branch.away = None  # its tokens are pending now, and wait for blocks as others do
                return
            raise PoolExhausted(
                f"{branch!r} has keys of {needed} KV blocks in the host's memory, {pool.num_free}"
                " are free: prune or release others first"
            )
        self._cache.copy_in(*branch.take_back())


def _branches_of(operation: Operation) -> list[Branch]:
    named = [getattr(operation, name) for name in ("branch", "parent") if hasattr(operation, name)]
    views = operation.views if isinstance(operation, See) else ()
    seen = [view if isinstance(view, Branch) else view.branch for view in views]
    return [*named, *getattr(operation, "branches", ()), *seen]
