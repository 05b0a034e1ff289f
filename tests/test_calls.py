"""Calls outside of the engine: decoding goes on, nothing spins, and every end gives its error."""

import asyncio
import threading
import time

import pytest

from parallel_decode import Budget, Extend, FirstOf, Prefill, SamplingParams
from parallel_decode.engine import Call, Delegate, Interrupted, SimulatedExecutor, Threads
from tests.tiny_model import tiny_engine

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


def one(operation):
    return (yield operation)


def sampled(text, n=20):
    root = yield Prefill(text)
    yield Extend([root], SamplingParams(max_tokens=n, ignore_eos=True))
    return root.text


def add(a, b):
    return a + b


async def add_later(a, b):
    await asyncio.sleep(0.001)
    return a + b


def hidden_awaitable(a, b):
    return add_later(a, b)


@pytest.mark.parametrize("function", [add, add_later, hidden_awaitable], ids=lambda f: f.__name__)
def test_a_callable_gives_its_result(function):
    engine = tiny_engine()
    assert engine.run_program(one(Call(function, (1, 2)))) == 3
    assert engine.usage.calls == 1


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_it_raises_reaches_the_program(kind):
    def fails():
        raise kind("no such page")

    def asks():
        try:
            yield Call(fails)
        except (ValueError, RuntimeError) as error:
            return str(error)

    assert "no such page" in tiny_engine().run_program(asks())


def test_decoding_goes_on_while_a_call_runs():
    engine = tiny_engine()
    go = threading.Event()

    def waits():
        return go.wait(60)

    slow = engine.submit(one(Call(waits)))
    quick = engine.submit(sampled("abc"))
    engine.wait([quick])
    assert slow.status == "waiting" and quick.result == tiny_engine().run_program(sampled("abc"))
    go.set()
    engine.wait([slow])
    assert slow.result is True


def test_who_waits_sleeps():
    """Steps of the scheduler while nothing runs: a few looks a second, and no busy loop."""
    engine = tiny_engine()
    steps = 0
    plain = engine._scheduler._step

    def counted():
        nonlocal steps
        steps += 1
        return plain()

    engine._scheduler._step = counted
    busy = time.process_time()
    engine.run_program(one(Call(time.sleep, (0.3,))))
    assert steps < 20 and time.process_time() - busy < 0.25


@pytest.mark.parametrize("function", [time.sleep, asyncio.sleep], ids=["thread", "loop"])
def test_a_call_that_takes_too_long(function):
    engine = tiny_engine()
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no result within 0.05 s"):
        engine.run_program(one(Call(function, (30,), timeout=0.05)))
    assert time.monotonic() - begin < 10
    # A thread that hangs has no place among the others.
    engine.executor = Threads(max_threads=1)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            engine.run_program(one(Call(time.sleep, (30,), timeout=0.01)))
    assert engine.run_program(one(Call(add, (1, 2), timeout=20))) == 3


def test_bad_calls():
    engine = tiny_engine()
    for operation, kind in [
        (Call(add, (1, 2), timeout=0), ValueError),
        (Call("add"), TypeError),
        (Call(add), TypeError),
    ]:
        with pytest.raises(kind):
            engine.run_program(one(operation))
    with pytest.raises(ValueError, match="max_threads"):
        Threads(0)
    with pytest.raises(ValueError, match="seconds_per_step"):
        SimulatedExecutor(lambda function, args: 1.0, -1)
    program = engine.submit(one(Call(time.sleep, (0.05,))))
    engine.step(wait=False)
    with pytest.raises(ValueError, match="under way"):
        engine.executor = Threads()
    engine.wait([program])


def test_calls_end_with_the_budget_and_with_an_interrupt():
    engine = tiny_engine()
    begin = time.monotonic()
    with pytest.raises(Interrupted, match="budget"):
        engine.run_program(one(Call(time.sleep, (30,))), budget=Budget(seconds=0.05))
    program = engine.submit(one(Call(asyncio.sleep, (30,))))
    engine.step(wait=False)
    engine._scheduler.interrupt([program])
    engine.wait([program])
    assert isinstance(program.error, Interrupted)

    def goes_on():
        root = yield Prefill("abc")
        yield Extend([root], PARAMS)
        yield Call(add, (1, 2))

    with pytest.raises(Interrupted, match="not made"):
        engine.run_program(goes_on(), budget=Budget(tokens=3))
    assert time.monotonic() - begin < 10 and engine.blocks_in_use == 0


def test_a_dropped_program_cancels_its_calls():
    engine = tiny_engine()
    cancelled = threading.Event()

    async def long():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    program = engine.submit(one(Call(long)))
    for _ in range(3):
        engine.step()
    engine.drop(program)
    assert cancelled.wait(10) and not engine.step()


def test_the_first_of_a_call_and_a_branch():
    engine = tiny_engine()

    def asks():
        root = yield Prefill("abc")
        extend, call = Extend([root], PARAMS), Call(time.sleep, (30,))
        done = yield FirstOf([extend, call])
        return [operation is extend for operation in done]

    assert engine.run_program(asks()) == [True]


def test_on_another_engine():
    """A guest that waits for a call holds nobody up, and nobody spins for it."""
    engine, other = tiny_engine(), tiny_engine()
    go = threading.Event()
    slow = engine.submit(one(Delegate(other, one(Call(go.wait, (60,))))))
    quick = engine.submit(sampled("abc", 100))
    engine.wait([quick])
    assert slow.status == "waiting"
    for _ in range(5):
        engine.step()
    go.set()
    engine.wait([slow])
    assert slow.result is True


def test_a_simulated_clock():
    """Time is that of the slowest chain, and steps of the model count."""
    engine = tiny_engine()
    engine.executor = clock = SimulatedExecutor(lambda function, args: args[0], 0.5)
    engine.observe(clock.stepped)

    def chain(first, second):
        yield Call(float, (first,))
        return (yield Call(float, (second,)))

    programs = [engine.submit(chain(*pair)) for pair in ((3, 4), (1, 2), (5, 1))]
    engine.wait(programs)
    assert [program.result for program in programs] == [4, 2, 1]
    assert clock.now() == 7 and len(clock.spans) == 6
    with pytest.raises(TimeoutError):
        engine.run_program(one(Call(float, (100,), timeout=10)))
    assert clock.now() == 17
    before = engine.usage.forward_steps
    engine.run_program(sampled("abc"))
    assert clock.now() == 17 + 0.5 * (engine.usage.forward_steps - before)
