"""`Executor`: who runs the callables of `Call`: threads and an event loop, or a simulated clock."""

import asyncio
import inspect
import queue
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
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


class Threads:
    """Plain callables in daemon threads, which start as they are needed; what is an `async def`, or
    gives an awaitable, on one event loop.

    A thread can't be ended from outside: what has timed out or was cancelled runs on by itself, and
    its result is dropped. It keeps no place, and does not hold up the end of the process.

    Args:
        max_threads: plain callables that run at a time.
    """

    def __init__(self, max_threads: int = 32) -> None:
        if max_threads < 1:
            raise ValueError(f"max_threads must be at least 1, got {max_threads}")
        self._max_threads = max_threads
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._num_threads = 0
        self._given_up: set[Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def now(self) -> float:
        return time.monotonic()

    def submit(self, function: Callable[..., Any], args: Sequence[Any]) -> "Future[Any]":
        if inspect.iscoroutinefunction(function):
            return asyncio.run_coroutine_threadsafe(function(*args), self._running_loop())
        future: Future[Any] = Future()
        self._jobs.put((future, function, args))
        if not self._idle.acquire(blocking=False) and self._num_threads < self._max_threads:
            self._start_thread()
        return future

    def cancel(self, future: "Future[Any]") -> None:
        if not future.cancel() and not future.done():
            # The thread ends with what it does now; another takes its place.
            self._given_up.add(future)
            self._num_threads -= 1
            if not self._jobs.empty():
                self._start_thread()

    def wait(self, futures: Sequence["Future[Any]"], seconds: float) -> None:
        wait(futures, timeout=max(0.0, seconds), return_when=FIRST_COMPLETED)

    def _start_thread(self) -> None:
        self._num_threads += 1
        arguments = (self._jobs, self._idle, self._given_up, self._running_loop)
        threading.Thread(target=_work, args=arguments, daemon=True).start()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return self._loop


def _work(
    jobs: "queue.SimpleQueue[Job | None]",
    idle: threading.Semaphore,
    given_up: set["Future[Any]"],
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    while (job := jobs.get()) is not None:
        future, function, args = job
        if future.set_running_or_notify_cancel():
            try:
                result = function(*args)
                if inspect.isawaitable(result):
                    result = asyncio.run_coroutine_threadsafe(_awaited(result), loop()).result()
                future.set_result(result)
            except BaseException as error:
                future.set_exception(error)
        if future in given_up:
            given_up.discard(future)
            return
        del job, future, function, args
        idle.release()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _awaited(awaitable: Awaitable[Any]) -> Any:
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
                future.set_result(asyncio.run(_awaited(result)) if _awaits(result) else result)
            except Exception as error:
                future.set_exception(error)


def _awaits(result: object) -> bool:
    return inspect.isawaitable(result)
