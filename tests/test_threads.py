"""`Threads`: none is left behind by its executor, none is lost by a call that hangs."""

import gc
import threading
import time
import weakref
from concurrent.futures import Future

import pytest

from parallel_decode.engine import Threads


def add(a, b):
    return a + b


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it took more than 10 s"
        time.sleep(0.005)


def test_idle_threads_end_with_their_executor():
    before = set(threading.enumerate())
    executor = Threads()
    futures = [executor.submit(add, (n, 1)) for n in range(8)]
    assert [future.result(10) for future in futures] == list(range(1, 9))
    alive = weakref.ref(executor)
    del executor
    gc.collect()
    assert alive() is None
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_result_that_comes_while_its_call_is_given_up(monkeypatch):
    """The thread is done between the look at the future and what is noted of it."""
    executor = Threads(max_threads=1)
    crew = executor._crew
    release = threading.Event()
    future = executor.submit(release.wait, (10,))
    wait_until(future.running)
    done = future.done

    def late():
        seen = done()
        release.set()
        wait_until(done)
        return seen

    monkeypatch.setattr(future, "done", late)
    executor.cancel(future)
    wait_until(lambda: not crew._given_up)
    assert crew._num_threads == 0
    assert executor.submit(add, (1, 2)).result(10) == 3
    assert crew._num_threads == 1


@pytest.mark.parametrize("max_threads", [1, 2])
def test_calls_after_one_that_hangs(max_threads):
    """A thread that went from one call right on to the next is no idle one."""
    executor = Threads(max_threads)
    first, hang = threading.Event(), threading.Event()
    try:
        begun = [executor.submit(first.wait, (10,)) for _ in range(max_threads)]
        hanging = [executor.submit(hang.wait, (30,)) for _ in range(max_threads)]
        first.set()
        for future in begun:
            future.result(10)
        for future in hanging:
            wait_until(future.running)
            executor.cancel(future)
        assert executor.submit(add, (1, 2)).result(10) == 3
    finally:
        hang.set()


def test_a_call_that_was_cancelled_in_the_queue_does_not_run():
    executor = Threads(max_threads=1)
    release, ran = threading.Event(), []
    running: Future = executor.submit(release.wait, (10,))
    queued = executor.submit(ran.append, (1,))
    executor.cancel(queued)
    release.set()
    assert running.result(10) and executor.submit(add, (1, 2)).result(10) == 3
    assert queued.cancelled() and not ran
