// Exponentials of sixteen floats.
#pragma once

#include "kernel_table.h"

namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// exp(x) to about 1 ulp: x = n ln 2 + r, a polynomial of degree 6 in r, then 2^n. 0 below -87.
inline Vec16 exp(Vec16 x) {
    Vec16 limit = broadcast(-87.0f);
    Vec16 y = max(limit, x);
    Vec16 n = round_even(mul(y, broadcast(1.44269504f)));
    Vec16 r = fma(n, broadcast(-0.693359375f), y);
    r = fma(n, broadcast(2.12194440e-4f), r);
    Vec16 p = broadcast(1.3888889e-3f);
    p = fma(p, r, broadcast(8.3333333e-3f));
    p = fma(p, r, broadcast(4.1666668e-2f));
    p = fma(p, r, broadcast(1.6666667e-1f));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    return select_less(x, limit, zero(), scale_exp2(p, n));
}

// 2^x to about 1 ulp for x below 127: x = n + r, a polynomial of degree 6 in r (interpolated at
// the Chebyshev nodes of [-1/2, 1/2]), then 2^n. All below -126 gives 2^-126.
inline Vec16 exp2(Vec16 x) {
    Vec16 y = max(broadcast(-126.0f), x);
    Vec16 n = round_even(y);
    Vec16 r = sub(y, n);
    Vec16 p = broadcast(1.5461445e-4f);
    p = fma(p, r, broadcast(1.3400428e-3f));
    p = fma(p, r, broadcast(9.6180569e-3f));
    p = fma(p, r, broadcast(5.5503272e-2f));
    p = fma(p, r, broadcast(2.4022651e-1f));
    p = fma(p, r, broadcast(6.9314718e-1f));
    p = fma(p, r, broadcast(1.0f));
    return scale_exp2(p, n);
}

}  // namespace
