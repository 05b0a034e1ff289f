"""Philox4x32-10 (Salmon et al., SC 2011) in Triton, bit for bit the numbers of csrc/philox.h."""

import triton
import triton.language as tl


@triton.jit
def philox_uniform(key, index, stream):
    """Number `index` of stream `stream` of `key`: fp64 in [0, 1) with 53 bits.

    key: int64, the bits of a uint64; index: int64; stream: int32.
    """
    high, low, _, _ = tl.philox(key, index.to(tl.uint32), (index >> 32).to(tl.uint32), stream, 0)
    bits = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    return (bits >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
