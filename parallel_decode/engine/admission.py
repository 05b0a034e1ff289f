"""Memory: what a branch finds stored, and who gives blocks back when the pool is full."""

import gc
from collections.abc import Sequence

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.budget import Usage
from parallel_decode.engine.chunk import Chunk
from parallel_decode.engine.kv_cache import KVCache
from parallel_decode.engine.operation import Join, Prefill
from parallel_decode.engine.prefix_tree import PrefixTree
from parallel_decode.engine.program import Program
from parallel_decode.engine.runner import Runner
from parallel_decode.engine.work import Work
from parallel_decode.kernels import BLOCK_SIZE

Entry = tuple[Program, Work, Chunk]


class Admission:
    """Decides which branches run in a step.

    Args:
        runner: knows how many blocks a step takes.
        cache: the pool.
        tree: stored prefixes.
        usage: of the engine as a whole.
    """

    def __init__(self, runner: Runner, cache: KVCache, tree: PrefixTree, usage: Usage) -> None:
        self._runner = runner
        self._cache = cache
        self._tree = tree
        self._usage = usage

    def num_blocks_held(self) -> int:
        """Blocks that branches hold: those in use less those that only the prefix tree keeps."""
        return self._cache.num_used - self._cache.pool.num_idle

    def admit(self, program: Program, work: Work) -> bool:
        """Gives a branch without blocks what the prefix tree has -> whether it can run now."""
        branch = work.branch
        if branch.num_stored or not branch.recomputable:
            return True
        if work.claimed is None:
            tokens = branch.tokens
            # What is asked of a token beside its keys needs it to run, even if those are stored.
            wanted = tokens[: work.num_reusable()]
            blocks, more_coming = self._tree.match(wanted, work)
            if more_coming:
                return False
            if not _share_with_ancestor(branch, len(blocks) * BLOCK_SIZE, len(wanted) - 1):
                for index, block in enumerate(blocks):
                    branch.table.append_full_block(block, index * BLOCK_SIZE)
            branch.position = branch.num_stored
            if isinstance(work.operation, Prefill) and not work.admitted:
                program.usage.prompt_tokens_shared += branch.num_stored
            work.admitted = True
            self._tree.claim(tokens, work)
            work.claimed = tokens
        return True

    def stored(self, work: Work) -> None:
        """Hands computed blocks that the work had claimed to the prefix tree."""
        if work.claimed is None:
            return
        self._tree.fill(work.claimed, work.branch.table, work)
        if not work.branch.num_pending:
            self.withdraw(work)

    def withdraw(self, work: Work) -> None:
        """Gives up what the work claimed in the prefix tree and did not compute."""
        if work.claimed is not None:
            self._tree.abandon(work.claimed, work)
            work.claimed = None

    def fit(
        self, chunks: list[Entry], programs: Sequence[Program]
    ) -> tuple[list[Entry], Program | None]:
        """Makes room in the pool: idle prefixes go first, then whole questions, youngest first.

        Returns:
            The chunks that can run, and the program that can't go on, if there is one.
        """
        while chunks:
            missing = (
                self._runner.blocks_needed([chunk for _, _, chunk in chunks])
                - self._cache.pool.num_free
            )
            if missing <= 0 or self._tree.evict(missing) >= missing:
                return chunks, None
            active = {id(program): program for program, _, _ in chunks}.values()
            victims = [p for p in programs if p.status != "preempted" and _recomputable(p)]
            oldest = min(active, key=lambda p: p.order)
            victims = [p for p in victims if p is not oldest]
            if victims:
                self._preempt(max(victims, key=lambda p: p.order))
                chunks = [entry for entry in chunks if entry[0].status != "preempted"]
                continue
            # Nobody else can be started again from text: who fits goes on, the rest wait.
            fitting = self._fitting(chunks, sorted(active, key=lambda p: p.order))
            if fitting:
                return fitting, None
            # Branches refer to their children and back: only the collector finds a dropped tree.
            free = self._cache.pool.num_free
            gc.collect()
            if self._cache.pool.num_free == free:
                return [], max(active, key=lambda p: p.order)
        return chunks, None

    def _fitting(self, chunks: list[Entry], programs: Sequence[Program]) -> list[Entry]:
        """The chunks of as many programs as the free blocks hold, the first ones first."""
        room = self._cache.pool.num_free
        fitting = set()
        for program in programs:
            needed = self._runner.blocks_needed([c for p, _, c in chunks if p is program])
            if needed <= room:
                room -= needed
                fitting.add(id(program))
        return [entry for entry in chunks if id(entry[0]) in fitting]

    def _preempt(self, program: Program) -> None:
        for work in program.works:
            self.withdraw(work)
            work.branch.release()
        for branch in program.branches:
            branch.release()
        program.status = "preempted"
        program.usage.preemptions += 1
        self._usage.preemptions += 1

    def restart(self, programs: Sequence[Program]) -> None:
        """Lets pre-empted programs run again, the oldest first, where they fit."""
        preempted = [program for program in programs if program.status == "preempted"]
        if not preempted:
            return
        running = sum(len(p.works) for p in programs if p.status == "waiting")
        # One block more for each branch that runs, or the next steps would put somebody out again.
        spare = self._cache.pool.num_free + self._tree.num_evictable() - running
        for program in preempted:
            needed = program.blocks_to_restore() + len(program.works)
            if running and spare < needed:
                return
            program.status = "waiting"
            spare -= needed
            running += len(program.works)


def _share_with_ancestor(branch: Branch, at_least: int, at_most: int) -> bool:
    """Lets a branch without blocks share those that the nearest ancestor holds of its tokens, where
    these are more than `at_least` -> whether it does."""
    ancestor, shared = branch.parent, branch.fork_length
    while ancestor is not None and not ancestor.num_stored:
        shared = min(shared, ancestor.fork_length)
        ancestor = ancestor.parent
    if ancestor is None or not ancestor.recomputable:
        return False
    shared = min(shared, ancestor.num_stored, at_most)
    # A rollback may have put other tokens there since.
    if shared <= at_least or ancestor.tokens[:shared] != branch.tokens[:shared]:
        return False
    branch.table = ancestor.table.fork()
    branch.table.truncate(shared)
    return True


def _recomputable(program: Program) -> bool:
    """Whether its branches can be taken away and computed again from their tokens."""
    for work in program.works:
        operation = work.operation
        # A join of keys needs all its branches stored at once, those without work, too.
        if isinstance(operation, Join) and operation.mode.startswith("kv"):
            return False
        if not work.branch.recomputable:
            return False
    return all(b.recomputable or not (b.num_stored or b.away) for b in program.branches)
