"""Time several callables against each other, in turns, on a machine that others use as well."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Wall time of one call: the median, and how far apart the quicker and slower calls are."""

    p20_us: float
    p50_us: float
    p80_us: float
    num_calls: int

    @staticmethod
    def of(seconds: list[float]) -> "Timing":
        p20, p50, p80 = (float(p) for p in np.percentile(np.array(seconds) * 1e6, [20, 50, 80]))
        return Timing(p20, p50, p80, len(seconds))

    def columns(self, prefix: str = "") -> dict[str, float | int]:
        return {
            f"{prefix}p20_us": self.p20_us,
            f"{prefix}p50_us": self.p50_us,
            f"{prefix}p80_us": self.p80_us,
            f"{prefix}num_calls": self.num_calls,
        }


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    num_warmup: int = 3,
    num_calls: int = 30,
    max_seconds: float = float("inf"),
    min_calls: int = 5,
) -> dict[str, Timing]:
    """Call each of `calls` once a round, so that a slow moment of the machine hits all alike.

    The order rotates: nobody always runs on the caches that the same neighbour left. Rounds stop
    after `num_calls`, or after `max_seconds` once there are `min_calls`.
    """
    if not calls:
        raise ValueError("nothing to time")
    if num_calls < 1 or min_calls < 1 or num_warmup < 0:
        raise ValueError(f"bad counts: {num_calls=}, {min_calls=}, {num_warmup=}")
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        for name in names * num_warmup:
            calls[name]()
        end = time.perf_counter() + max_seconds
        for round_index in range(num_calls):
            if round_index >= min_calls and time.perf_counter() > end:
                break
            first = round_index % len(names)
            for name in names[first:] + names[:first]:
                _wait_for_device()
                start = time.perf_counter()
                calls[name]()
                _wait_for_device()
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(times) for name, times in seconds.items()}
