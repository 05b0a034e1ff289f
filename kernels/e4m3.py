"""Eight-bit floats of the KV cache (OCP e4m3): sign, four bits of exponent, three of mantissa.

The bits of an e4m3 are those of an fp16 whose exponent begins one place further right, but for the
bias: shifted into place they are the number times 2^-8, subnormal numbers too. So any card reads
them, also one without conversions of its own, and the factor goes where scales go anyway.
"""

import triton
import triton.language as tl

E4M3_UNIT = tl.constexpr(256.0)
"""What numbers of `e4m3_to_float` have to be multiplied by."""

E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def e4m3_to_float(bits, dtype: tl.constexpr):
    """bits: uint8 -> fp16, bf16 or fp32, exact, NaN included; to be multiplied by E4M3_UNIT."""
    wide = bits.to(tl.uint16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    half = tl.where((wide & 0x7F) == 0x7F, 0x7E00, half)  # its only NaN
    return half.to(tl.float16, bitcast=True).to(dtype)


@triton.jit
def float_to_e4m3(x):
    """x: fp32 -> uint8, to nearest even; what lies beyond the largest number becomes that, NaN
    stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    magnitude = tl.minimum(tl.abs(x), E4M3_MAX)
    m = magnitude.to(tl.uint32, bitcast=True)
    # 20 bits of mantissa go; the exponent's bias falls from 127 to 7.
    normal = ((m + 0x7FFFF + ((m >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9, which is the last bit of a float near 2^14.
    subnormal = (magnitude + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0.015625, subnormal, normal)
    code = tl.where(x == x, code, 0x7F)
    return (sign | code).to(tl.uint8)
