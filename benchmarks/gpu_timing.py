"""Times on a card: CUDA graphs and events. On a CPU, for a dry run: the clock."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

REPEATS = 5
"""Graphs are replayed so often between two readings of the clock."""


class Timer:
    """Times of functions that take turns, in microseconds of one call.

    Args:
        device: "cuda" or "cpu".
        rounds: turns of each function; the median counts.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._device = device
        self._rounds = rounds

    def interleaved(self, runs: Sequence[Callable[[], object]], calls: int) -> list[float]:
        """runs: each makes `calls` calls of what is timed, on tensors at fixed addresses."""
        replays = [self._prepared(run) for run in runs]
        seconds: list[list[float]] = [[] for _ in runs]
        for _ in range(self._rounds):
            for times, replay in zip(seconds, replays, strict=True):
                times.append(self._seconds(replay))
        return [1e6 * statistics.median(times) / calls for times in seconds]

    def _prepared(self, run: Callable[[], object]) -> Callable[[], object]:
        if self._device.type != "cuda":
            return run
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        return graph.replay

    def _seconds(self, replay: Callable[[], object]) -> float:
        if self._device.type != "cuda":
            start = time.perf_counter()
            replay()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(REPEATS):
            replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / REPEATS


def copy_gb_s(device: torch.device) -> float:
    """Bandwidth of a copy, bytes read and written."""
    size = 1 << (30 if device.type == "cuda" else 22)
    source, target = torch.zeros(2, size, dtype=torch.uint8, device=device)
    [us] = Timer(device, 5).interleaved([lambda: target.copy_(source)], 1)
    return 2 * size / us / 1e3


def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a large matrix product of random numbers."""
    n = 8192 if device.type == "cuda" else 256
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    out = torch.empty(n, n, device=device, dtype=dtype)
    [us] = Timer(device, 5).interleaved([lambda: torch.mm(a, b, out=out)], 1)
    return 2 * n**3 / us / 1e6
