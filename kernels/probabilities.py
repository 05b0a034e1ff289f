"""The distributions that `sample` draws from: p = w / sum w of the weights that `filters` keeps.

A program owns a row: it reads it twice, and as often more as the filters need, and writes 4 bytes a
token.
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
from parallel_decode.kernels.sample import MAX_BLOCK, parameter_column
from parallel_decode.kernels.torch_op import torch_op


@triton.jit
def probabilities_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    temperature_ptr,  # [num_rows] fp32, as top_p and min_p
    top_k_ptr,  # [num_rows] int32
    top_p_ptr,
    min_p_ptr,
    p_ptr,  # [num_rows, vocab_size] fp32
    vocab_size,
    stride_row,
    BLOCK: tl.constexpr,
):
    """Grid: (num_rows,)."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride_row
    p_ptr += row.to(tl.int64) * vocab_size
    best = lane_maxima(logits_ptr, vocab_size, BLOCK)
    temperature = tl.load(temperature_ptr + row)
    factor = tl.full([], float("nan"), tl.float32)
    top, cut, floor, scale = 0.0, 0, 0.0, 1.0
    greedy_token = -1
    if is_usable(tl.max(best, 0)):
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        min_p = tl.load(min_p_ptr + row)
        top, cut, floor, scale, mass, _ = filters(
            logits_ptr, vocab_size, best, temperature, top_k, top_p, min_p, BLOCK
        )
        factor = (1 / tl.where(temperature == 0, 1.0, mass)).to(tl.float32)
        start = 0
        while (temperature == 0) & (greedy_token < 0):
            x = logits_chunk(logits_ptr, start, vocab_size, BLOCK)
            n = start + tl.arange(0, BLOCK)
            is_largest = kept_weight(x, cut, floor, top, scale) > 0
            first = tl.min(tl.where(is_largest, n, INT32_MAX), 0)
            greedy_token = tl.where(first < INT32_MAX, first, -1)
            start += BLOCK
    for start in range(0, vocab_size, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = logits_chunk(logits_ptr, start, vocab_size, BLOCK)
        w = kept_weight(x, cut, floor, top, scale)
        if greedy_token >= 0:
            # Of a tie only the lowest id.
            w = tl.where(n == greedy_token, 1.0, 0.0)
        tl.store(p_ptr + n, w * factor, mask=n < vocab_size)


def probabilities(
    logits: Tensor,
    temperature: Tensor | NDArray[np.float32],
    top_k: Tensor | NDArray[np.int32],
    top_p: Tensor | NDArray[np.float32],
    min_p: Tensor | NDArray[np.float32],
) -> Tensor:
    """See `reference.ReferenceOps.probabilities`. p: [num_rows, vocab_size] fp32.

    Args:
        logits, temperature, top_k, top_p, min_p: as in `sample.sample`.

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
        )
    ]
    p = torch.empty(logits.shape, device=logits.device)
    _launch(logits, *columns, p)
    return p


@torch_op(
    "probabilities(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p,"
    " Tensor(a!) p) -> ()"
)
def _launch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    p: Tensor,
) -> None:
    num_rows, vocab_size = logits.shape
    block = min(MAX_BLOCK, triton.next_power_of_2(vocab_size))
    probabilities_kernel[(num_rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        p,
        vocab_size,
        logits.stride(0),
        BLOCK=block,
        num_warps=num_warps(block),
    )
