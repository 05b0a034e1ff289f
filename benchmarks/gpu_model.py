"""What a launch takes on a card, by its floors: memory, cache, arithmetic, and uneven programs.

A program reads its pages one after another. While the card is busy a page takes the longest of

    its bytes from memory / the program's share of the memory's bandwidth,
    its bytes / the program's share of the bandwidth of L2,
    its operations / the program's share of the tensor cores' peak.

Programs start in the order of the list, as many at a time as the card holds, and each further one
where one ends. What several programs of one such wave read comes from memory once and from L2 for
the others: this holds for every planner alike, also for one that reads a prefix once for each
branch. The model knows nothing of a kernel's quality, and is the same for all.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parallel_decode.kernels.launch import TENSOR_EFFICIENCY, WIDE, AttentionShape, Card
from parallel_decode.kernels.plan import BLOCK_SIZE


@dataclass(frozen=True)
class Read:
    """One program, for each KV head: pages under a tile of `tile_m` rows, read `times` times."""

    blocks: NDArray[np.int32]
    tile_m: int
    times: int = 1


@dataclass(frozen=True)
class Kernel:
    """Programs of one launch; bytes beside pages: partial results, written or read."""

    reads: Sequence[Read]
    partial_bytes: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """kv_bytes: from memory; kv_bytes_requested: by programs. balance: the fullest place for
    programs over the mean, of the kernel that takes longest."""

    us: float
    kv_bytes: float
    kv_bytes_requested: float
    balance: float


def efficiency(tile_m: int) -> float:
    return TENSOR_EFFICIENCY[WIDE if tile_m >= 64 else 0]


def predict(
    kernels: Sequence[Kernel], shape: AttentionShape, card: Card, programs_per_sm: int
) -> Prediction:
    us = kv_bytes = requested = 0.0
    longest, balance = -1.0, 1.0
    for kernel in kernels:
        taken, dram, asked, even = _predict_kernel(kernel, shape, card, programs_per_sm)
        us += taken
        kv_bytes += dram
        requested += asked
        if taken > longest:
            longest, balance = taken, even
    return Prediction(us, kv_bytes, requested, balance)


def _predict_kernel(
    kernel: Kernel, shape: AttentionShape, card: Card, programs_per_sm: int
) -> tuple[float, float, float, float]:
    slots = card.num_sms * programs_per_sm
    partial_us = kernel.partial_bytes / (card.l2_gb_s * 1e3)
    if not kernel.reads:
        return card.launch_us + partial_us, 0.0, 0.0, 1.0
    heads, page_bytes = shape.num_kv_heads, shape.page_bytes
    pages = np.array([len(read.blocks) * read.times for read in kernel.reads], np.float64)
    distinct = _from_memory(kernel.reads, max(1, slots // heads))
    peak = card.tensor_tflops * 1e6
    costs = []
    for read, from_memory in zip(kernel.reads, distinct, strict=True):
        page_us = max(
            page_bytes * from_memory / (card.dram_gb_s * 1e3 / slots),
            page_bytes / (card.l2_gb_s * 1e3 / slots),
            4
            * read.tile_m
            * BLOCK_SIZE
            * shape.head_dim
            / (peak * efficiency(read.tile_m) / slots),
        )
        costs.append(card.start_us + len(read.blocks) * read.times * page_us)
    loads = _place(np.repeat(costs, heads), slots)
    dram = float((pages * distinct).sum()) * page_bytes * heads
    asked = float(pages.sum()) * page_bytes * heads
    us = max(loads.max(), dram / (card.dram_gb_s * 1e3), asked / (card.l2_gb_s * 1e3))
    # Neighbours in the list go to different multiprocessors.
    per_sm = loads.reshape(-1, card.num_sms).sum(0)
    return card.launch_us + us + partial_us, dram, asked, float(per_sm.max() / per_sm.mean())


def _from_memory(reads: Sequence[Read], wave: int) -> NDArray[np.float64]:
    """Of the pages of each read, the part that no earlier read of its wave has fetched."""
    parts = np.ones(len(reads))
    for begin in range(0, len(reads), wave):
        of_wave = reads[begin : begin + wave]
        sizes = [len(read.blocks) for read in of_wave]
        blocks = np.concatenate([read.blocks for read in of_wave])
        # Readers of one page share its way from memory evenly.
        _, which, readers = np.unique(blocks, return_inverse=True, return_counts=True)
        shares = np.add.reduceat(1.0 / readers[which], np.cumsum([0, *sizes[:-1]]))
        times = np.array([read.times for read in of_wave])
        parts[begin : begin + wave] = shares / sizes / times
    return parts


def _place(costs: NDArray[np.float64], slots: int) -> NDArray[np.float64]:
    """Load of each slot when programs go, in order, to the slot that is free first."""
    loads = np.zeros(slots)
    heap = [(0.0, slot) for slot in range(slots)]
    for cost in costs.tolist():
        free_at, slot = heapq.heappop(heap)
        loads[slot] = free_at + cost
        heapq.heappush(heap, (float(loads[slot]), slot))
    return loads


def dense_us(num_bytes: float, operations: float, card: Card) -> float:
    """A matrix product: the slower of its bytes and its operations."""
    return max(num_bytes / (card.dram_gb_s * 1e3), operations / (card.tensor_tflops * 1e6))
