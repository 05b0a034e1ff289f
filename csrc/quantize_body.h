// Rounding to eight bits, a group of kGroupSize values at a time.
#pragma once

#include "kernel_table.h"

namespace {

// q = round(x / scale) of `n` <= kGroupSize values, with a scale that `round_scale` may adjust. A
// NaN or an infinity makes the scale a NaN.
struct QuantizedGroup {
    Vec16 values[2];
    float scale;
};

template <class RoundScale>
inline QuantizedGroup quantize_group(const float* x, int n, const RoundScale& round_scale) {
    Vec16 a = load_n(x, n < kLanes ? n : kLanes);
    Vec16 b = n > kLanes ? load_n(x + kLanes, n - kLanes) : zero();
    float poison = reduce_add(fma(a, zero(), mul(b, zero())));
    float scale = round_scale(reduce_max(max(abs(a), abs(b))) / 127.0f) + poison;
    Vec16 inverse = broadcast(scale > 1e-30f ? 1.0f / scale : 0.0f);
    // A scale that was rounded down may ask for 128.
    Vec16 top = broadcast(127.0f), bottom = broadcast(-127.0f);
    Vec16 low = max(bottom, round_even(mul(a, inverse)));
    Vec16 high = max(bottom, round_even(mul(b, inverse)));
    return {{min(top, low), min(top, high)}, scale};
}

// One row; a null scaled_sum is not written.
inline void quantize_row(const float* x, int num_columns, const QuantizedRows& out) {
    for (int begin = 0, g = 0; begin < num_columns; begin += kGroupSize, ++g) {
        int n = num_columns - begin < kGroupSize ? num_columns - begin : kGroupSize;
        QuantizedGroup group = quantize_group(x + begin, n, [](float scale) { return scale; });
        store_s8(out.values + begin, group.values[0]);
        store_s8(out.values + begin + kLanes, group.values[1]);
        // Whole numbers below 2^24: exact.
        float sum = reduce_add(add(group.values[0], group.values[1]));
        out.scale[g] = group.scale;
        if (out.scaled_sum) out.scaled_sum[g] = group.scale * sum;
        out.offset[g] = sum == sum ? -128 * static_cast<int32_t>(sum) : 0;
    }
}

}  // namespace
