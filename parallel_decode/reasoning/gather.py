"""`gather`: several programs as one, each as fast as its own operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parallel_decode.engine import FirstOf, Operation, Steps


@dataclass(eq=False)
class _Part:
    steps: Steps
    request: Any = None
    result: Any = None
    done: bool = False

    @property
    def operations(self) -> list[Operation]:
        """What it waits for."""
        if isinstance(self.request, FirstOf):
            return list(self.request.operations)
        return list(self.request) if isinstance(self.request, list | tuple) else [self.request]

    @property
    def can_go_on(self) -> bool:
        done = [operation.done for operation in self.operations]
        return any(done) if isinstance(self.request, FirstOf) else all(done)

    def go_on(self) -> None:
        """To its next request, or its end."""
        try:
            if self.request is None:
                self.request = next(self.steps)
                return
            finished = [operation for operation in self.operations if operation.done]
            error = next((op.error for op in finished if op.error is not None), None)
            if error is not None:
                self.request = self.steps.throw(error)
            elif isinstance(self.request, FirstOf):
                self.request = self.steps.send(finished)
            elif isinstance(self.request, list | tuple):
                self.request = self.steps.send([operation.result for operation in finished])
            else:
                self.request = self.steps.send(self.request.result)
        except StopIteration as stop:
            self.result, self.done = stop.value, True


def gather(programs: Sequence[Steps]) -> Steps:
    """Runs programs side by side in one -> list of their results, in their order.

    They must not work on the same branches. What one of them raises ends all.
    """
    parts = [_Part(steps) for steps in programs]
    try:
        for part in parts:
            part.go_on()
        while True:
            moving = True
            while moving:
                ready = [part for part in parts if not part.done and part.can_go_on]
                moving = bool(ready)
                for part in ready:
                    part.go_on()
            waiting = [op for part in parts if not part.done for op in part.operations]
            if not waiting:
                return [part.result for part in parts]
            try:
                yield FirstOf([operation for operation in waiting if not operation.done])
            except Exception:
                # The program that asked for what failed is told; another error is not theirs.
                if all(operation.error is None for operation in waiting):
                    raise
    finally:
        for part in parts:
            part.steps.close()
