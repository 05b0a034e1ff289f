"""Whole blocks of the KV cache, copied in every layer: the copy of copy-on-write.

One launch reads and writes 2 * num_layers * block_bytes a copy, in words that make vectors of 16
bytes. A program copies BLOCK words. No copy of a call may read what another one writes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.rows import num_warps
from parallel_decode.kernels.torch_op import torch_op

VECTOR_BYTES = 16
MAX_BLOCK = 1024
"""8 KiB: with 16 words a thread, eight vectors of each are under way."""


@triton.jit
def copy_blocks_kernel(
    storage_ptr,  # [num_planes, num_blocks, block_words] int64
    copies_ptr,  # [num_copies, 2] int64: from, to
    num_blocks,
    block_words,
    BLOCK: tl.constexpr,
):
    """Grid: (num_copies, num_planes, cdiv(block_words, BLOCK))."""
    source = tl.load(copies_ptr + tl.program_id(0) * 2)
    target = tl.load(copies_ptr + tl.program_id(0) * 2 + 1)
    first = tl.program_id(1).to(tl.int64) * num_blocks
    word = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = word < block_words
    values = tl.load(storage_ptr + (first + source) * block_words + word, mask=mask)
    tl.store(storage_ptr + (first + target) * block_words + word, values, mask=mask)


def copy_blocks(storage: Tensor, copies: list[tuple[int, int]]) -> None:
    """See `reference.ReferenceOps.copy_blocks`.

    Args:
        storage: [num_layers, 2, num_blocks, ...] of any dtype, contiguous; a block takes a multiple
            of 16 bytes.
        copies: (from, to); no block is both.

    Raises:
        ValueError: storage is not laid out so, or a block does not exist.
    """
    num_layers, _, num_blocks = storage.shape[:3]
    block_bytes = storage.stride(2) * storage.element_size()
    if not storage.is_contiguous() or storage.data_ptr() % VECTOR_BYTES:
        raise ValueError(
            f"storage must be contiguous and begin at a multiple of {VECTOR_BYTES} bytes, its"
            f" strides are {storage.stride()}, its address {storage.data_ptr():#x}"
        )
    if block_bytes % VECTOR_BYTES:
        raise ValueError(f"a block must be a multiple of {VECTOR_BYTES} bytes, got {block_bytes}")
    for pair in copies:
        if not all(0 <= block < num_blocks for block in pair):
            raise ValueError(f"there are {num_blocks} blocks, a copy is {tuple(pair)}")
    if not copies:
        return
    words = storage.view(-1).view(torch.int64).view(2 * num_layers, num_blocks, -1)
    _launch(words, torch.tensor(copies, dtype=torch.int64, device=storage.device))


@torch_op("copy_blocks(Tensor(a!) words, Tensor copies) -> ()")
def _launch(words: Tensor, copies: Tensor) -> None:
    num_planes, num_blocks, block_words = words.shape
    block = min(MAX_BLOCK, triton.next_power_of_2(block_words))
    copy_blocks_kernel[(len(copies), num_planes, triton.cdiv(block_words, block))](
        words, copies, num_blocks, block_words, BLOCK=block, num_warps=num_warps(block)
    )
