"""The gate of a feed-forward layer:

    y = silu(gate) * up = gate / (1 + exp(-gate)) * up

in fp32. It reads 2 n numbers a row and writes n. A program makes BLOCK neighbours of one row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel_decode.kernels.rows import check_rows, num_warps
from parallel_decode.kernels.torch_op import torch_op

MAX_BLOCK = 1024
"""Many small programs: they have nothing to share, and one row is spread over the card."""


@triton.jit
def silu_mul_kernel(
    gate_up_ptr,  # [num_rows, 2 * num_columns]
    out_ptr,  # [num_rows, num_columns], contiguous
    num_columns,
    stride_row,
    BLOCK: tl.constexpr,
):
    """Grid: (num_rows, cdiv(num_columns, BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < num_columns
    gate_up_ptr += row * stride_row
    gate = tl.load(gate_up_ptr + column, mask=mask, other=0).to(tl.float32)
    up = tl.load(gate_up_ptr + num_columns + column, mask=mask, other=0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * num_columns + column, y.to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `reference.ReferenceOps.silu_mul`.

    Args:
        gate_up: [num_rows, 2 * n] fp32, fp16 or bf16, contiguous in the last dimension.

    Raises:
        ValueError: a shape, stride or dtype does not fit.
    """
    check_rows("gate_up", gate_up, *gate_up.shape[-1:])
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must have an even number of columns, got {gate_up.shape[1]}")
    num_rows, num_columns = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(num_rows, num_columns, dtype=gate_up.dtype, device=gate_up.device)
    _launch(gate_up, out)
    return out


@torch_op("silu_mul(Tensor gate_up, Tensor(a!) out) -> ()")
def _launch(gate_up: Tensor, out: Tensor) -> None:
    num_rows, num_columns = out.shape
    block = min(MAX_BLOCK, triton.next_power_of_2(num_columns))
    silu_mul_kernel[(num_rows, triton.cdiv(num_columns, block))](
        gate_up, out, num_columns, gate_up.stride(0), BLOCK=block, num_warps=num_warps(block)
    )
