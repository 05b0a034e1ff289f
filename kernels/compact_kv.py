"""Keys and values of accepted tokens, moved right behind their branch's prefix. See `acceptance`.

One launch moves those of all branches in all layers: it reads and writes 2 * num_layers *
num_kv_heads * head_dim numbers a token, as words of 8 bytes. A program has one branch, the keys or
the values of one head of one layer, and some of their columns, so that no other program touches
what it moves. It holds all of it in registers before it writes any: slots may overlap in any way.
It is one warp, as a barrier between several does not wait for their loads on all cards, and a
warp's own stores never overtake its loads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.draft_tree import check_devices, check_moves
from parallel_decode.kernels.plan import BLOCK_SIZE
from parallel_decode.kernels.torch_op import torch_op

MAX_WORDS = 512
"""That a program moves: 16 a thread."""


@triton.jit
def compact_kv_kernel(
    storage_ptr,  # [num_planes, num_blocks, num_kv_heads, PAGE, row_words] int64
    source_ptr,  # [num_branches, max_moves] int64
    target_ptr,  # [num_branches, max_moves] int64
    num_blocks,
    num_kv_heads,
    row_words,
    max_moves,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Grid: (num_branches, num_planes * num_kv_heads, cdiv(row_words, BLOCK_W))."""
    first_move = tl.program_id(0).to(tl.int64) * max_moves
    plane = tl.program_id(1) // num_kv_heads
    head = tl.program_id(1) % num_kv_heads
    move = tl.arange(0, BLOCK_M)
    word = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)
    source = tl.load(source_ptr + first_move + move, mask=move < max_moves, other=-1)
    target = tl.load(target_ptr + first_move + move, mask=move < max_moves, other=-1)
    # A chain lies where it has to, as the beginning of many a path does.
    moves = (source >= 0) & (source != target)
    mask = moves[:, None] & (word[None, :] < row_words)
    first_block = plane.to(tl.int64) * num_blocks
    from_row = ((first_block + source // PAGE) * num_kv_heads + head) * PAGE + source % PAGE
    to_row = ((first_block + target // PAGE) * num_kv_heads + head) * PAGE + target % PAGE
    values = tl.load(storage_ptr + from_row[:, None] * row_words + word[None, :], mask=mask)
    # Another thread may have yet to read what this one writes.
    tl.debug_barrier()
    tl.store(storage_ptr + to_row[:, None] * row_words + word[None, :], values, mask=mask)


def compact_kv(storage: Tensor, source_slots: Tensor, target_slots: Tensor) -> None:
    """See `acceptance.compact_kv`.

    Args:
        storage: as there, contiguous; a token's keys take a multiple of 8 bytes a head.
        source_slots, target_slots: as there, contiguous.

    Raises:
        ValueError: a shape, a dtype, strides or a device are not as said.
    """
    check_moves(storage, source_slots, target_slots)
    check_devices(storage, source_slots=source_slots, target_slots=target_slots)
    row_bytes = storage.shape[5] * storage.element_size()
    if not storage.is_contiguous() or row_bytes % 8 or storage.data_ptr() % 8:
        raise ValueError(
            "storage must be contiguous, its rows and its address multiples of 8 bytes, got strides"
            f" {storage.stride()}, rows of {row_bytes} bytes, address {storage.data_ptr():#x}"
        )
    for name, slots in (("source_slots", source_slots), ("target_slots", target_slots)):
        if not slots.is_contiguous():
            raise ValueError(f"{name} must be contiguous, its strides are {slots.stride()}")
    if source_slots.shape[1] > 0:
        _launch(storage.view(torch.int64), source_slots, target_slots)


@torch_op("compact_kv(Tensor(a!) storage, Tensor source_slots, Tensor target_slots) -> ()")
def _launch(storage: Tensor, source_slots: Tensor, target_slots: Tensor) -> None:
    num_layers, _, num_blocks, num_kv_heads, _, row_words = storage.shape
    num_branches, max_moves = source_slots.shape
    block_m = triton.next_power_of_2(max_moves)
    block_w = min(triton.next_power_of_2(row_words), max(MAX_WORDS // block_m, 1))
    planes = 2 * num_layers
    compact_kv_kernel[(num_branches, planes * num_kv_heads, triton.cdiv(row_words, block_w))](
        storage,
        source_slots,
        target_slots,
        num_blocks,
        num_kv_heads,
        row_words,
        max_moves,
        PAGE=BLOCK_SIZE,
        BLOCK_M=block_m,
        BLOCK_W=block_w,
        num_warps=1,
    )
