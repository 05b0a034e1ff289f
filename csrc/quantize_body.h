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

// One row; a null scaled_sum is not written. Sixteen groups at a time: their maxima and their sums,
// which are whole numbers below 2^24 and so exact, are reduced together.
inline void quantize_row(const float* x, int num_columns, const QuantizedRows& out) {
    int groups = (num_columns + kGroupSize - 1) / kGroupSize;
    auto half = [&](int group, int second) {
        int begin = group * kGroupSize + second * kLanes, n = num_columns - begin;
        return n >= kLanes ? load(x + begin) : n > 0 ? load_n(x + begin, n) : zero();
    };
    for (int first = 0; first < groups; first += kLanes) {
        int count = groups - first < kLanes ? groups - first : kLanes;
        Vec16 part[kLanes];
        for (int i = 0; i < count; ++i)
            part[i] = max(abs(half(first + i, 0)), abs(half(first + i, 1)));
        for (int i = count; i < kLanes; ++i) part[i] = zero();
        Vec16 scale = div(reduce_max_each(part), broadcast(127.0f));
        alignas(64) float inverse[kLanes];
        store(inverse, select_less(broadcast(1e-30f), scale, div(broadcast(1.0f), scale), zero()));
        for (int i = 0; i < count; ++i) {
            Vec16 factor = broadcast(inverse[i]);
            Vec16 low = round_even(mul(half(first + i, 0), factor));
            Vec16 high = round_even(mul(half(first + i, 1), factor));
            int8_t* values = out.values + (first + i) * kGroupSize;
            store_s8(values, low);
            store_s8(values + kLanes, high);
            part[i] = add(low, high);
        }
        Vec16 sum = reduce_add_each(part);
        scale = fma(sum, zero(), scale);  // a NaN or an infinity makes the scale a NaN
        store_n(out.scale + first, scale, count);
        if (out.scaled_sum) store_n(out.scaled_sum + first, mul(scale, sum), count);
        store_int_n(out.offset + first, mul(sum, broadcast(-128.0f)), count);
    }
}

}  // namespace
