"""Which logits of a row top-k, top-p and min-p keep, without sorting them.

Filters keep the logits from some value up: top-k from the k-th largest, top-p from the largest x
with sum_{y >= x} p_y >= top_p sum p, min-p from max + temperature log(min_p). Such a value is found
by bisection over int32 keys in the order of the logits: a pass over the row counts, or weighs, what
lies at or above the middle of an interval, and draws both ends of the interval in to logits that
are there. It ends when one distinct value is left.

Top-p reads the row once for the sum, and each filter once a step of its bisection: 3 to 15 steps
over 150,000 logits, fewer where they are bf16 and so have fewer values.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

# Keys of the infinities, and what stands for any NaN.
LOWEST = tl.constexpr(-0x7F800001)
HIGHEST = tl.constexpr(0x7F800000)
NAN_KEY = tl.constexpr(0x7FFFFFFF)

INT32_MIN = tl.constexpr(-0x80000000)
INT32_MAX = tl.constexpr(0x7FFFFFFF)

MAX_SCALE = tl.constexpr(3e38)
"""Below infinity, which times the 0 of the largest logit would be no number."""


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
def logits_chunk(row_ptr, start, vocab_size, BLOCK: tl.constexpr):
    """A chunk in fp32, -inf beyond the last."""
    n = start + tl.arange(0, BLOCK)
    return tl.load(row_ptr + n, mask=n < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def _weight(x, top, scale):
    """exp((x - top) / temperature); scale: log2(e) / temperature."""
    return tl.exp2((x - top) * scale)


@triton.jit
def kept_weight(x, cut, floor, top, scale):
    """cut: lowest key that top-k and top-p keep; floor: lowest x - top that min-p keeps."""
    return tl.where((_key(x) >= cut) & (x - top >= floor), _weight(x, top, scale), 0.0)


@triton.jit
def _kept_mass(row_ptr, vocab_size, cut, floor, top, scale, BLOCK: tl.constexpr):
    """The weight of what is kept, and the beginning of the last chunk that has some."""
    mass = tl.full([], 0.0, tl.float64)
    last_chunk = -1
    for start in range(0, vocab_size, BLOCK):
        x = logits_chunk(row_ptr, start, vocab_size, BLOCK)
        part = tl.sum(kept_weight(x, cut, floor, top, scale), 0)
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
            x = logits_chunk(row_ptr, start, vocab_size, BLOCK)
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
def lane_maxima(row_ptr, vocab_size, BLOCK: tl.constexpr):
    """Keys of the largest logits at each place of a chunk; NAN_KEY where one is a NaN."""
    best = tl.full([BLOCK], LOWEST, tl.int32)
    for start in range(0, vocab_size, BLOCK):
        x = logits_chunk(row_ptr, start, vocab_size, BLOCK)
        best = tl.maximum(best, tl.where(x == x, _key(x), NAN_KEY))
    return best


@triton.jit
def is_usable(top_key):
    """Whether a row with this largest key has something to draw, and neither NaN nor infinity."""
    return (top_key != LOWEST) & (top_key < HIGHEST)


@triton.jit
def filters(row_ptr, vocab_size, best, temperature, top_k, top_p, min_p, BLOCK: tl.constexpr):
    """What `kept_weight` takes (top, cut, floor, scale), the sum of the kept weights, and the
    beginning of the last chunk that has some. Greedy keeps the largest logits, and sums up none.

    best: `lane_maxima` of the row.
    """
    top_key = tl.max(best, 0)
    top = _value(top_key)
    cut = _lowest_tie(top_key)
    floor = -float("inf")
    scale = 1.0
    mass = tl.full([], 0.0, tl.float64)
    last_chunk = -1
    if temperature != 0:
        cut = LOWEST
        # A tensor from the start: Triton 3.7's interpreter loses the type of number / tensor.
        scale = tl.minimum(tl.full([], LOG2_E, tl.float32) / temperature, MAX_SCALE)
        if (top_k > 0) & (top_k < vocab_size):
            # The k-th largest of the lanes' maxima is a lower bound, and mostly close.
            low = _kth_largest(best, top_k)
            cut = _threshold(row_ptr, vocab_size, low, top_key, top_k, top, scale, True, BLOCK)
        if top_p < 1:
            mass, last_chunk = _kept_mass(row_ptr, vocab_size, cut, floor, top, scale, BLOCK)
            # Logits with less than this share of the mass each hold less than 1 - top_p together.
            # Half of it, and a margin at `top`, make up for rounding.
            share = (mass * (1 - top_p) / vocab_size).to(tl.float32) * 0.5
            bound = top - tl.abs(top) * 1e-6 + temperature * tl.log(share)
            low = tl.maximum(cut, _key(bound))
            cut = _threshold(
                row_ptr, vocab_size, low, top_key, mass * top_p, top, scale, False, BLOCK
            )
        if min_p > 0:
            floor = temperature * tl.log(min_p)
        mass, last_chunk = _kept_mass(row_ptr, vocab_size, cut, floor, top, scale, BLOCK)
    return top, cut, floor, scale, mass, last_chunk
