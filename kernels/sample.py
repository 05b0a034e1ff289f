"""One token from each row of logits, without sorting them.

Filters keep the logits from some value up: top-k from the k-th largest, top-p from the largest x
with sum_{y >= x} p_y >= top_p sum p, min-p from max + temperature log(min_p). Such a value is found
by bisection over int32 keys in the order of the logits: a pass over the row counts, or weighs, what
lies at or above the middle of an interval, and draws both ends of the interval in to logits that
are there. It ends when one distinct value is left. The token is then the first one, in the order of
ids, at which the sum of the kept weights w = exp((x - max) / temperature) exceeds u sum w.

A program owns a row and reads it three times, at greedy temperature twice. Top-p reads it once more
for the sum, and each filter once a step of its bisection: 3 to 15 steps over 150,000 logits, fewer
where they are bf16 and so have fewer values. A sum is fp32 within a chunk of BLOCK logits and fp64
across them.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from parallel_decode.kernels.rows import check_rows, num_warps
from parallel_decode.kernels.torch_op import torch_op

LOG2_E = tl.constexpr(1.4426950408889634)

# Keys of the infinities, and what stands for any NaN.
LOWEST = tl.constexpr(-0x7F800001)
HIGHEST = tl.constexpr(0x7F800000)
NAN_KEY = tl.constexpr(0x7FFFFFFF)

INT32_MIN = tl.constexpr(-0x80000000)
INT32_MAX = tl.constexpr(0x7FFFFFFF)

MAX_SCALE = tl.constexpr(3e38)
"""Below infinity, which times the 0 of the largest logit would be no number."""

MAX_BLOCK = 8192
"""As in `logit_stats`. The more lanes, the nearer their maxima bring top-k to its end."""


@triton.jit
def _key(x):
    """int32 in the order of fp32; that of -0 is one below that of 0."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    """The fp32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _lowest_tie(key):
    """The lowest key of the same value: zeros of both signs are kept together."""
    return tl.where(key == 0, -1, key)


@triton.jit
def _middle(a, b):
    """(a + b) / 2, rounded up, without overflow."""
    return (a | b) - ((a ^ b) >> 1)


@triton.jit
def _logits(row_ptr, start, vocab_size, BLOCK: tl.constexpr):
    """A chunk in fp32, -inf beyond the last."""
    n = start + tl.arange(0, BLOCK)
    return tl.load(row_ptr + n, mask=n < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def _weight(x, top, scale):
    """exp((x - top) / temperature); scale: log2(e) / temperature."""
    return tl.exp2((x - top) * scale)


@triton.jit
def _kept_weight(x, cut, floor, top, scale):
    """cut: lowest key that top-k and top-p keep; floor: lowest x - top that min-p keeps."""
    return tl.where((_key(x) >= cut) & (x - top >= floor), _weight(x, top, scale), 0.0)


@triton.jit
def _kept_mass(row_ptr, vocab_size, cut, floor, top, scale, BLOCK: tl.constexpr):
    """The weight of what is kept, and the beginning of the last chunk that has some."""
    mass = tl.full([], 0.0, tl.float64)
    last_chunk = -1
    for start in range(0, vocab_size, BLOCK):
        x = _logits(row_ptr, start, vocab_size, BLOCK)
        part = tl.sum(_kept_weight(x, cut, floor, top, scale), 0)
        mass += part.to(tl.float64)
        last_chunk = tl.where(part > 0, start, last_chunk)
    return mass, last_chunk


@triton.jit
def _kth_largest(keys, k):
    """Of the keys in registers; LOWEST where there are fewer than k."""
    low = LOWEST
    high = tl.max(keys, 0)
    while low < high:
        middle = _middle(low, high)
        above = keys >= middle
        if tl.sum(above.to(tl.int32), 0) >= k:
            low = tl.min(tl.where(above, keys, INT32_MAX), 0)
        else:
            high = tl.max(tl.where(above, INT32_MIN, keys), 0)
    return low


@triton.jit
def _threshold(
    row_ptr,
    vocab_size,
    low,
    high,
    target,
    top,
    scale,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key in the row such that the logits at or above it count, or weigh, `target`.

    Those at or above `low` do, and `high` is the row's largest key.
    """
    while low < high:
        middle = _middle(low, high)
        reached = tl.full([], 0.0, tl.float64)
        lowest_above = tl.full([BLOCK], INT32_MAX, tl.int32)
        highest_below = tl.full([BLOCK], INT32_MIN, tl.int32)
        for start in range(0, vocab_size, BLOCK):
            x = _logits(row_ptr, start, vocab_size, BLOCK)
            key = _key(x)
            above = key >= middle
            weight = 1.0 if COUNT else _weight(x, top, scale)
            reached += tl.sum(tl.where(above, weight, 0.0), 0).to(tl.float64)
            lowest_above = tl.minimum(lowest_above, tl.where(above, key, INT32_MAX))
            highest_below = tl.maximum(highest_below, tl.where(above, INT32_MIN, key))
        if reached >= target:
            low = tl.min(lowest_above, 0)
        else:
            high = tl.max(highest_below, 0)
    return _lowest_tie(low)


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
    best = tl.full([BLOCK], LOWEST, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        x = _logits(logits_ptr, start, vocab_size, BLOCK)
        best = tl.maximum(best, tl.where(x == x, _key(x), NAN_KEY))
    top_key = tl.max(best, 0)
    if (top_key == LOWEST) | (top_key >= HIGHEST):
        tl.store(tokens_ptr + row, -1)
        return
    top = _value(top_key)
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)

    # Greedy is u = 0 among the largest: what follows needs no sum of weights.
    cut = _lowest_tie(top_key)
    floor = -float("inf")
    scale = 1.0
    target = tl.full([], 0.0, tl.float64)
    last_chunk = -1
    if temperature != 0:
        cut = LOWEST
        scale = tl.minimum(LOG2_E / temperature, MAX_SCALE)
        if (top_k > 0) & (top_k < vocab_size):
            # The k-th largest of the lanes' maxima is a lower bound, and mostly close.
            low = _kth_largest(best, top_k)
            cut = _threshold(logits_ptr, vocab_size, low, top_key, top_k, top, scale, True, BLOCK)
        if top_p < 1:
            mass, last_chunk = _kept_mass(logits_ptr, vocab_size, cut, floor, top, scale, BLOCK)
            # Logits with less than this share of the mass each hold less than 1 - top_p together.
            # Half of it, and a margin at `top`, make up for rounding.
            share = (mass * (1 - top_p) / vocab_size).to(tl.float32) * 0.5
            bound = top - tl.abs(top) * 1e-6 + temperature * tl.log(share)
            low = tl.maximum(cut, _key(bound))
            cut = _threshold(
                logits_ptr, vocab_size, low, top_key, mass * top_p, top, scale, False, BLOCK
            )
        if min_p > 0:
            floor = temperature * tl.log(min_p)
        mass, last_chunk = _kept_mass(logits_ptr, vocab_size, cut, floor, top, scale, BLOCK)
        target = tl.load(uniform_ptr + row) * mass

    token = -1
    start = 0
    reached = tl.full([], 0.0, tl.float64)
    while (token < 0) & (start < vocab_size):
        x = _logits(logits_ptr, start, vocab_size, BLOCK)
        kept = _kept_weight(x, cut, floor, top, scale)
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
        _column(name, values, dtype, logits)
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


def _column(name: str, values: object, dtype: torch.dtype, logits: Tensor) -> Tensor:
    column = torch.as_tensor(values, dtype=dtype, device=logits.device).contiguous()
    if tuple(column.shape) != (len(logits),):
        raise ValueError(f"{len(logits)} rows of logits, {name} has shape {tuple(column.shape)}")
    return column
