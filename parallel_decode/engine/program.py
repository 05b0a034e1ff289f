"""A reasoning program: a generator that yields operations, and what it has used."""

import time
from collections.abc import Generator
from typing import Any

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.budget import Budget, Usage
from parallel_decode.engine.operation import Operation
from parallel_decode.engine.timeline import Timeline
from parallel_decode.engine.work import Work
from parallel_decode.kernels import BLOCK_SIZE

Steps = Generator[Any, Any, Any]


class Program:
    """One live program.

    Attributes:
        branches: what it made and has not let go; released when it ends.
        works: branches in motion.
        waiting_for: operations of the last `yield`.
        status: "ready" (to be resumed), "waiting", "preempted", "done".
        stop_reason: once set, sampling ends at once with this reason ("budget", "aborted").
    """

    def __init__(self, steps: Steps, budget: Budget, seed: int, order: int, keep: bool) -> None:
        self.steps = steps
        self.budget = budget
        self.seed = seed
        self.order = order
        self.keep = keep
        self.usage = Usage()
        self.timeline = Timeline()
        self.branches: list[Branch] = []
        self.works: list[Work] = []
        self.waiting_for: list[Operation] = []
        self.any_is_enough = False
        self.as_list = False
        self.status = "ready"
        self.stop_reason: str | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.started = time.perf_counter()

    def over_budget(self, num_blocks: int) -> bool:
        limits, used = self.budget, self.usage
        return (
            (limits.tokens is not None and used.generated_tokens >= limits.tokens)
            or (limits.steps is not None and used.forward_steps >= limits.steps)
            or (limits.blocks is not None and num_blocks > limits.blocks)
            or (limits.seconds is not None and time.perf_counter() - self.started >= limits.seconds)
        )

    def blocks_to_restore(self) -> int:
        """Blocks that its branches take once they are computed again, each shared token once."""
        live = [branch for branch in self.branches if branch.status in ("live", "finished")]
        return sum(-(-(b.num_tokens - b.fork_length) // BLOCK_SIZE) for b in live)

    def finish(self, result: Any = None, error: BaseException | None = None) -> None:
        self.status = "done"
        self.result, self.error = result, error
        self.usage.wall_seconds = time.perf_counter() - self.started
        if not self.keep:
            for branch in self.branches:
                branch.release()
        self.branches = []
