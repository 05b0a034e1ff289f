"""Callables that programs wait for while decoding goes on."""

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from parallel_decode.engine.branch import Branch
from parallel_decode.engine.executor import Executor
from parallel_decode.engine.interrupted import Interrupted
from parallel_decode.engine.operation import Call, Operation
from parallel_decode.engine.program import Program

ENDED = ("pruned", "failed")
"""States of a branch that takes no results any more."""


class _Running(NamedTuple):
    program: Program
    call: Call
    future: "Future[Any]"
    deadline: float | None


class Calls:
    """Each `Call` under way with the program that waits for it.

    Args:
        executor: who runs them.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._running: dict[int, _Running] = {}

    def __bool__(self) -> bool:
        return bool(self._running)

    def __contains__(self, operation: Operation) -> bool:
        return id(operation) in self._running

    def add(self, program: Program, call: Call) -> None:
        if call.timeout is not None and not call.timeout > 0:
            raise ValueError(f"Call: timeout must be positive, got {call.timeout}")
        if not callable(call.function):
            raise TypeError(f"Call: {call.function!r} can't be called")
        deadline = None if call.timeout is None else self.executor.now() + call.timeout
        future = self.executor.submit(call.function, call.args)
        program.usage.calls += 1
        self._running[id(call)] = _Running(program, call, future, deadline)

    def collect(self) -> None:
        """Gives results to the calls that are done, in the order in which they were started."""
        if not self._running:
            return
        now = self.executor.now()
        for entry in list(self._running.values()):
            if entry.future.done():
                self._finish(entry)
            elif entry.deadline is not None and now >= entry.deadline:
                late = TimeoutError(f"no result within {entry.call.timeout:g} s")
                self._give_up(entry, late)
            elif entry.call.branch is not None and entry.call.branch.status in ENDED:
                self._give_up(entry, Interrupted(f"{entry.call.branch!r} waited for the call"))

    def wait(self, seconds: float) -> None:
        """Sleeps until a call is done or late, or so long."""
        running = list(self._running.values())
        now = self.executor.now()
        left = [entry.deadline - now for entry in running if entry.deadline is not None]
        self.executor.wait([entry.future for entry in running], min([seconds, *left]))

    def stop(self, program: Program, error: Exception) -> None:
        """Ends the calls of a program, which is told so."""
        for entry in list(self._running.values()):
            if entry.program is program:
                self._give_up(entry, error)

    def stop_branch(self, branch: Branch, reason: str) -> bool:
        """Ends the calls whose results are for a branch -> whether there were any."""
        entries = [entry for entry in self._running.values() if entry.call.branch is branch]
        for entry in entries:
            self._give_up(entry, Interrupted(f"the call was stopped: {reason}"))
        return bool(entries)

    def cancel(self, calls: Sequence[Call]) -> None:
        """Ends those of the calls that are under way."""
        for call in calls:
            entry = self._running.get(id(call))
            if entry is not None:
                self._give_up(entry, Interrupted("the call was cancelled"))

    def drop(self, program: Program) -> None:
        """The program has ended: nobody waits for its calls."""
        for key, entry in list(self._running.items()):
            if entry.program is program:
                del self._running[key]
                self.executor.cancel(entry.future)

    def _finish(self, entry: _Running) -> None:
        del self._running[id(entry.call)]
        try:
            entry.call.result = entry.future.result()
        except CancelledError as error:
            entry.call.error = RuntimeError(f"the call was cancelled: {error}")
        except Exception as error:
            entry.call.error = error
        except BaseException as error:
            entry.call.error = RuntimeError(f"the call ended with {error!r}")
        entry.call.done = True

    def _give_up(self, entry: _Running, error: Exception) -> None:
        del self._running[id(entry.call)]
        self.executor.cancel(entry.future)
        entry.call.error, entry.call.done = error, True
