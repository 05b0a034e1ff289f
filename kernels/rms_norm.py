"""RMS norm of rows, alone or of the sum with a residual:

    y = x / sqrt(mean(x^2) + eps) * weight

in fp32 whatever the dtype of x. `rms_norm` moves 2 n numbers a row of n and `add_rms_norm` 4 n: a
row is read once, and the sum replaces the residual while it is at hand. A program holds BLOCK_ROWS
whole rows in registers: one of the hidden state, or several of short heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.rows import check_devices, check_rows, num_warps
from parallel_decode.kernels.torch_op import torch_op

MAX_COLUMNS = 16384
"""32 numbers a thread: more do not stay in registers."""

BLOCK_ITEMS = 1024
"""Numbers of a program whose rows are shorter than that."""


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x_ptr,  # [num_tokens, num_heads, NUM_COLUMNS]
    residual_ptr,  # [num_tokens, NUM_COLUMNS], or None
    weight_ptr,  # [NUM_COLUMNS] fp32
    out_ptr,  # [num_tokens, num_heads, NUM_COLUMNS], contiguous
    num_rows,  # num_tokens * num_heads
    num_heads,
    stride_x_token,
    stride_x_head,
    stride_residual,
    eps,
    NUM_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Grid: (cdiv(num_rows, BLOCK_ROWS),)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < num_rows) & (column < NUM_COLUMNS)
    token = (row // num_heads).to(tl.int64)
    x_offset = token * stride_x_token + row % num_heads * stride_x_head + column
    x = tl.load(x_ptr + x_offset, mask=mask, other=0).to(tl.float32)
    if residual_ptr is not None:
        place = residual_ptr + token * stride_residual + column
        x += tl.load(place, mask=mask, other=0).to(tl.float32)
        # What is normed is the sum as it is stored.
        x = x.to(residual_ptr.dtype.element_ty)
        tl.store(place, x, mask=mask)
        x = x.to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < NUM_COLUMNS, other=0)
    mean = tl.sum(x * x, 1) / NUM_COLUMNS
    y = x * tl.rsqrt(mean + eps)[:, None] * weight
    out_offset = row.to(tl.int64) * NUM_COLUMNS + column
    tl.store(out_ptr + out_offset, y.to(out_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.ReferenceOps.rms_norm`.

    Args:
        x: [num_tokens, n] or [num_tokens, num_heads, n] fp32, fp16 or bf16, contiguous in the last
            dimension.
        weight: [n] fp32, contiguous.

    Raises:
        ValueError: a shape, stride, dtype or device does not fit, or n is beyond MAX_COLUMNS.
    """
    _check(x, weight)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, eps, out)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.ReferenceOps.add_rms_norm`. The sum is written into `residual`.

    Args:
        x: [num_tokens, n] fp32, fp16 or bf16, contiguous in the last dimension.
        residual: as x.
        weight: [n] fp32, contiguous.

    Raises:
        ValueError: a shape, stride, dtype or device does not fit, or n is beyond MAX_COLUMNS.
    """
    _check(x, weight)
    check_rows("residual", residual, weight.shape[0])
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"residual must be {x.dtype} {tuple(x.shape)} as x, got {residual.dtype}"
            f" {tuple(residual.shape)}"
        )
    check_devices(x, residual=residual)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, eps, out)
    return out, residual


def _check(x: Tensor, weight: Tensor) -> None:
    if weight.dtype != torch.float32 or weight.dim() != 1 or not weight.is_contiguous():
        raise ValueError(
            f"weight must be fp32 with one dimension, got {weight.dtype} {tuple(weight.shape)} with"
            f" strides {weight.stride()}"
        )
    if weight.shape[0] > MAX_COLUMNS:
        raise ValueError(f"a row must have at most {MAX_COLUMNS} numbers, got {weight.shape[0]}")
    check_rows("x", x, *x.shape[1:-1], weight.shape[0])
    if x.dim() not in (2, 3):
        raise ValueError(f"x must have two or three dimensions, got {tuple(x.shape)}")
    check_devices(x, weight=weight)


@torch_op(
    "rms_norm(Tensor x, Tensor(a!)? residual, Tensor weight, float eps, Tensor(b!) out) -> ()"
)
def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> None:
    num_columns = x.shape[-1]
    num_heads = x.shape[1] if x.dim() == 3 else 1
    num_rows = x.shape[0] * num_heads
    block_columns = triton.next_power_of_2(num_columns)
    block_rows = max(1, BLOCK_ITEMS // block_columns)
    rms_norm_kernel[(triton.cdiv(num_rows, block_rows),)](
        x,
        residual,
        weight,
        out,
        num_rows,
        num_heads,
        x.stride(0),
        x.stride(1) if x.dim() == 3 else 0,
        0 if residual is None else residual.stride(0),
        eps,
        NUM_COLUMNS=num_columns,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        num_warps=num_warps(block_rows * block_columns),
    )
