"""`Executor`: who runs the callables of `Call`; `SimulatedExecutor` does by a clock of its own."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

Job = tuple["Future[Any]", Callable[..., Any], Sequence[Any]]


class Executor(Protocol):
    """Runs callables outside of the engine."""

    def now(self) -> float:
        """Seconds on its clock."""
        ...

    def submit(self, function: Callable[..., Any], args: Sequence[Any]) -> "Future[Any]":
        """Starts function(*args), at once or when there is room."""
        ...

    def cancel(self, future: "Future[Any]") -> None:
        """Nobody waits for it any more."""
        ...

    def wait(self, futures: Sequence["Future[Any]"], seconds: float) -> None:
        """Sleeps until one of them is done, or so long."""
        ...


async def awaited(awaitable: Awaitable[Any]) -> Any:
    """Any awaitable as a coroutine, which is what event loops take."""
    return await awaitable


class SimulatedExecutor:
    """A clock that moves when the engine takes a step or waits: for plans whose time is to be known
    exactly.

    A callable runs when its time has come; `spans` tells when each began and ended.

    Args:
        latency: (callable, arguments) -> seconds that it takes.
        seconds_per_step: of a step of the model; see `stepped`.
    """

    def __init__(
        self,
        latency: Callable[[Callable[..., Any], Sequence[Any]], float],
        seconds_per_step: float = 0.0,
    ) -> None:
        if seconds_per_step < 0:
            raise ValueError(f"seconds_per_step must not be negative, got {seconds_per_step}")
        self.spans: list[tuple[Callable[..., Any], Sequence[Any], float, float]] = []
        self._latency = latency
        self._seconds_per_step = seconds_per_step
        self._now = 0.0
        self._running: list[tuple[float, float, Job]] = []

    def now(self) -> float:
        return self._now

    def stepped(self, stats: object = None) -> None:
        """A step of the model has passed: give it to `Engine.observe`."""
        self._move_to(self._now + self._seconds_per_step)

    def submit(self, function: Callable[..., Any], args: Sequence[Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        end = self._now + self._latency(function, args)
        self._running.append((end, self._now, (future, function, args)))
        return future

    def cancel(self, future: "Future[Any]") -> None:
        future.cancel()
        self._running = [entry for entry in self._running if entry[2][0] is not future]

    def wait(self, futures: Sequence["Future[Any]"], seconds: float) -> None:
        """Time passes as fast as nothing happens."""
        if not any(future.done() for future in futures):
            ends = [end for end, _, _ in self._running]
            self._move_to(min([self._now + max(0.0, seconds), *ends]))

    def _move_to(self, now: float) -> None:
        self._now = now
        due = sorted((e for e in self._running if e[0] <= now), key=lambda e: e[:2])
        self._running = [entry for entry in self._running if entry[0] > now]
        for end, begin, (future, function, args) in due:
            self.spans.append((function, args, begin, end))
            try:
                result = function(*args)
                future.set_result(asyncio.run(awaited(result)) if _awaits(result) else result)
            except Exception as error:
                future.set_exception(error)


def _awaits(result: object) -> bool:
    return inspect.isawaitable(result)
