"""One token from each row of logits, without sorting them.

It is the first one, in the order of ids, at which the sum of the weights that `filters` keeps,
w = exp((x - max) / temperature), exceeds u sum w.

A program owns a row and reads it three times, at greedy temperature twice, and as often more as
the filters need. A sum is fp32 within a chunk of BLOCK logits and fp64 across them.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode.kernels.filters import (
    INT32_MAX,
    filters,
    is_usable,
    kept_weight,
    lane_maxima,
    logits_chunk,
)
from parallel_decode.kernels.rows import check_rows, num_warps
from parallel_decode.kernels.torch_op import torch_op

MAX_BLOCK = 8192
"""As in `logit_stats`. The more lanes, the nearer their maxima bring top-k to its end."""


@triton.jit
def sample_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    temperature_ptr,  # [num_rows] fp32, as top_p and min_p
    top_k_ptr,  # [num_rows] int32
    top_p_ptr,
    min_p_ptr,
    uniform_ptr,  # [num_rows] fp64
    tokens_ptr,  # [num_rows] int64
    vocab_size,
    stride_row,
    BLOCK: tl.constexpr,
):
    """Grid: (num_rows,)."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride_row
    best = lane_maxima(logits_ptr, vocab_size, BLOCK)
    top_key = tl.max(best, 0)
    if not is_usable(top_key):
        tl.store(tokens_ptr + row, -1)
        return
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    top, cut, floor, scale, mass, last_chunk = filters(
        logits_ptr, vocab_size, best, temperature, top_k, top_p, min_p, BLOCK
    )
    # Greedy is u = 0 among the largest: what follows needs no sum of weights.
    target = tl.full([], 0.0, tl.float64)
    if temperature != 0:
        target = tl.load(uniform_ptr + row) * mass

    token = -1
    start = 0
    reached = tl.full([], 0.0, tl.float64)
    while (token < 0) & (start < vocab_size):
        x = logits_chunk(logits_ptr, start, vocab_size, BLOCK)
        kept = kept_weight(x, cut, floor, top, scale)
        before = reached
        reached += tl.sum(kept, 0).to(tl.float64)
        # In the last chunk rounding may leave u beyond the sum.
        if (reached > target) | (start == last_chunk):
            n = start + tl.arange(0, BLOCK)
            beyond = before + tl.cumsum(kept.to(tl.float64), 0) > target
            first = tl.min(tl.where(beyond & (kept > 0), n, INT32_MAX), 0)
            token = tl.minimum(first, tl.max(tl.where(kept > 0, n, -1), 0))
        start += BLOCK
    tl.store(tokens_ptr + row, token)


def sample(
    logits: Tensor,
    temperature: Tensor | NDArray[np.float32],
    top_k: Tensor | NDArray[np.int32],
    top_p: Tensor | NDArray[np.float32],
    min_p: Tensor | NDArray[np.float32],
    uniform: Tensor | NDArray[np.float64],
) -> Tensor:
    """See `reference.ReferenceOps.sample`. tokens: [num_rows] int64.

    Args:
        logits: [num_rows, vocab_size] fp32, fp16 or bf16, contiguous in the last dimension.
        temperature, top_k, top_p, min_p, uniform: [num_rows]; tensors on the device of the logits,
            or arrays, which are copied there.

    Raises:
        ValueError: a shape, stride or dtype does not fit.
    """
    check_rows("logits", logits, *logits.shape[-1:])
    columns = [
        parameter_column(name, values, dtype, logits)
        for name, values, dtype in (
            ("temperature", temperature, torch.float32),
            ("top_k", top_k, torch.int32),
            ("top_p", top_p, torch.float32),
            ("min_p", min_p, torch.float32),
            ("uniform", uniform, torch.float64),
        )
    ]
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    _launch(logits, *columns, tokens)
    return tokens


@torch_op(
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p,"
    " Tensor uniform, Tensor(a!) tokens) -> ()"
)
def _launch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    tokens: Tensor,
) -> None:
    num_rows, vocab_size = logits.shape
    block = min(MAX_BLOCK, triton.next_power_of_2(vocab_size))
    sample_kernel[(num_rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        uniform,
        tokens,
        vocab_size,
        logits.stride(0),
        BLOCK=block,
        num_warps=num_warps(block),
    )


def parameter_column(name: str, values: object, dtype: torch.dtype, logits: Tensor) -> Tensor:
    column = torch.as_tensor(values, dtype=dtype, device=logits.device).contiguous()
    if tuple(column.shape) != (len(logits),):
        raise ValueError(f"{len(logits)} rows of logits, {name} has shape {tuple(column.shape)}")
    return column
