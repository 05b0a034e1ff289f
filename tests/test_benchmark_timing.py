import gc
import time

import pytest

from benchmarks.timing import Timing, time_interleaved


def test_percentiles():
    timing = Timing.of([i / 1e6 for i in range(101)])
    assert (timing.p20_us, timing.p50_us, timing.p80_us) == pytest.approx((20, 50, 80))
    assert timing.columns("host_") == {
        "host_p20_us": timing.p20_us,
        "host_p50_us": timing.p50_us,
        "host_p80_us": timing.p80_us,
        "host_num_calls": 101,
    }


def test_calls_take_turns_and_rotate():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = time_interleaved(calls, num_warmup=1, num_calls=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {timing.num_calls for timing in timings.values()} == {3}


def test_the_slower_call_takes_longer():
    timings = time_interleaved(
        {"slow": lambda: time.sleep(0.01), "fast": lambda: None}, num_warmup=0, num_calls=5
    )
    assert timings["slow"].p20_us >= 9_000
    assert timings["fast"].p50_us < timings["slow"].p50_us


def test_time_limit_leaves_the_least_number_of_calls():
    [timing] = time_interleaved(
        {"a": lambda: None}, num_calls=1_000_000, max_seconds=0, min_calls=7
    ).values()
    assert timing.num_calls == 7


def test_garbage_collection_is_restored_after_a_failure():
    def fail() -> None:
        assert not gc.isenabled()
        raise RuntimeError("in the call")

    with pytest.raises(RuntimeError, match="in the call"):
        time_interleaved({"a": fail})
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("calls", "counts"),
    [({}, {}), ({"a": int}, {"num_calls": 0}), ({"a": int}, {"num_warmup": -1})],
    ids=["nothing", "no-calls", "negative-warmup"],
)
def test_bad_arguments(calls: dict, counts: dict):
    with pytest.raises(ValueError):
        time_interleaved(calls, **counts)
