"""`Threads`: runs callables outside of the engine, in threads and on an event loop."""

import asyncio
import inspect
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from parallel_decode.engine.executor import Job, awaited


class Threads:
    """Plain callables in daemon threads, which start as they are needed; what is an `async def`, or
    gives an awaitable, on one event loop. Idle threads end with the executor.

    A thread can't be ended from outside: what has timed out or was cancelled runs on by itself, and
    its result is dropped. It keeps no place, and does not hold up the end of the process.

    Args:
        max_threads: plain callables that run at a time.
    """

    def __init__(self, max_threads: int = 32) -> None:
        if max_threads < 1:
            raise ValueError(f"max_threads must be at least 1, got {max_threads}")
        self._crew = _Crew(max_threads)
        weakref.finalize(self, self._crew.dismiss)

    def now(self) -> float:
        return time.monotonic()

    def submit(self, function: Callable[..., Any], args: Sequence[Any]) -> "Future[Any]":
        if inspect.iscoroutinefunction(function):
            return asyncio.run_coroutine_threadsafe(function(*args), self._crew.loop())
        future: Future[Any] = Future()
        self._crew.add((future, function, args))
        return future

    def cancel(self, future: "Future[Any]") -> None:
        self._crew.give_up(future)

    def wait(self, futures: Sequence["Future[Any]"], seconds: float) -> None:
        wait(futures, timeout=max(0.0, seconds), return_when=FIRST_COMPLETED)


class _Crew:
    """What threads share. They hold it, not their executor, so that this can be collected."""

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._changed = threading.Condition(threading.RLock())
        self._jobs: deque[Job] = deque()
        self._num_threads = 0  # those that were given up do not count
        self._num_idle = 0
        self._given_up: set[Future[Any]] = set()
        self._dismissed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
            self._start_threads()

    def give_up(self, future: "Future[Any]") -> None:
        with self._changed:
            if not future.cancel() and not future.done():
                # Its thread ends with what it does now; another takes its place. The thread looks
                # at `_given_up` after it has set the result, and only with the lock.
                self._given_up.add(future)
                self._num_threads -= 1
                self._start_threads()

    def dismiss(self) -> None:
        with self._changed:
            self._dismissed = True
            self._changed.notify_all()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._changed:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run_loop, args=(self._loop,), daemon=True).start()
            return self._loop

    def _start_threads(self) -> None:
        if self._num_idle < len(self._jobs) and self._num_threads < self._max_threads:
            self._num_threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def _next(self) -> Job | None:
        with self._changed:
            self._num_idle += 1
            self._changed.wait_for(lambda: self._jobs or self._dismissed)
            self._num_idle -= 1
            return self._jobs.popleft() if self._jobs else None

    def _work(self) -> None:
        while (job := self._next()) is not None:
            future, function, args = job
            if future.set_running_or_notify_cancel():
                try:
                    result = function(*args)
                    if inspect.isawaitable(result):
                        waiting = asyncio.run_coroutine_threadsafe(awaited(result), self.loop())
                        result = waiting.result()
                    future.set_result(result)
                except BaseException as error:
                    future.set_exception(error)
            with self._changed:
                if future in self._given_up:
                    self._given_up.discard(future)
                    return
            del job, future, function, args  # an idle thread keeps nothing of its last call


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()
