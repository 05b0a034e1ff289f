"""Half-split rotary embedding of queries and keys, in place:

    (a, b) -> (a cos - b sin, b cos + a sin)

where a and b are the halves of a head, in fp32. Each number of q and k is read and written once. A
program turns up to BLOCK_H heads of one token, which share its cosines and sines.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.rows import check_devices, check_rows, num_warps
from parallel_decode.kernels.torch_op import torch_op

BLOCK_ITEMS = 1024
"""Numbers of a program: few, so that one token's heads are spread over the card."""


@triton.jit
def _rotate(
    x_ptr,
    first_head,
    cos,
    sin,
    stride_head,
    NUM_HEADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Heads of the token at x_ptr; cos, sin: [BLOCK_D]."""
    h = first_head + tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (h < NUM_HEADS) & (d < HALF)
    place = x_ptr + h * stride_head + d
    a = tl.load(place, mask=mask, other=0).to(tl.float32)
    b = tl.load(place + HALF, mask=mask, other=0).to(tl.float32)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    tl.store(place, (a * cos[None, :] - b * sin[None, :]).to(dtype), mask=mask)
    tl.store(place + HALF, (b * cos[None, :] + a * sin[None, :]).to(dtype), mask=mask)


@triton.jit
def rope_kernel(
    q_ptr,  # [num_tokens, NUM_HEADS, 2 * HALF]
    k_ptr,  # [num_tokens, NUM_KV_HEADS, 2 * HALF]
    cos_ptr,  # [max_seq_len, HALF] fp32
    sin_ptr,
    positions_ptr,  # [num_tokens] int32
    stride_q_token,
    stride_q_head,
    stride_k_token,
    stride_k_head,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: (num_tokens, blocks of query heads and then of KV heads)."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    angle = tl.load(positions_ptr + token).to(tl.int64) * HALF + d
    cos = tl.load(cos_ptr + angle, mask=d < HALF, other=0)
    sin = tl.load(sin_ptr + angle, mask=d < HALF, other=0)
    first_head = tl.program_id(1) * BLOCK_H
    NUM_PADDED: tl.constexpr = (NUM_HEADS + BLOCK_H - 1) // BLOCK_H * BLOCK_H
    if first_head < NUM_PADDED:
        q_ptr += token * stride_q_token
        _rotate(q_ptr, first_head, cos, sin, stride_q_head, NUM_HEADS, BLOCK_H, HALF, BLOCK_D)
    else:
        k_ptr += token * stride_k_token
        first_head -= NUM_PADDED
        _rotate(k_ptr, first_head, cos, sin, stride_k_head, NUM_KV_HEADS, BLOCK_H, HALF, BLOCK_D)


def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.ReferenceOps.rope`. Writes into q and k and returns them.

    Args:
        q: [num_tokens, num_heads, head_dim] fp32, fp16 or bf16, contiguous in the last dimension.
        k: [num_tokens, num_kv_heads, head_dim], as q.
        cos, sin: [max_seq_len, head_dim / 2] fp32, contiguous.
        positions: [num_tokens] int32, contiguous, each below max_seq_len.

    Raises:
        ValueError: a shape, stride, dtype or device does not fit, or head_dim is odd.
    """
    _check(q, k, cos, sin, positions)
    _launch(q, k, cos, sin, positions)
    return q, k


@torch_op("rope(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, Tensor positions) -> ()")
def _launch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, half = k.shape[1], head_dim // 2
    block_d = triton.next_power_of_2(half)
    block_h = max(1, BLOCK_ITEMS // (2 * block_d))
    num_blocks = triton.cdiv(num_heads, block_h) + triton.cdiv(num_kv_heads, block_h)
    rope_kernel[(num_tokens, num_blocks)](
        q,
        k,
        cos,
        sin,
        positions,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_H=block_h,
        HALF=half,
        BLOCK_D=block_d,
        num_warps=num_warps(2 * block_h * block_d),
    )


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    num_tokens, head_dim = q.shape[0], q.shape[-1]
    for name, x in (("q", q), ("k", k)):
        check_rows(name, x, *x.shape[1:2], head_dim)
        if len(x) != num_tokens or x.dtype != q.dtype:
            raise ValueError(
                f"q is {q.dtype} of {num_tokens} tokens, {name} is {x.dtype} of {len(x)}"
            )
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, got {head_dim}")
    for name, table in (("cos", cos), ("sin", sin)):
        if (
            table.dtype != torch.float32
            or tuple(table.shape) != (len(cos), head_dim // 2)
            or not table.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be fp32 [{len(cos)}, {head_dim // 2}] and contiguous, got"
                f" {table.dtype} {tuple(table.shape)} with strides {table.stride()}"
            )
    if (
        positions.dtype != torch.int32
        or tuple(positions.shape) != (num_tokens,)
        or not positions.is_contiguous()
    ):
        raise ValueError(
            f"positions must hold {num_tokens} int32, got {positions.dtype}"
            f" {tuple(positions.shape)} with strides {positions.stride()}"
        )
    check_devices(q, k=k, cos=cos, sin=sin, positions=positions)
