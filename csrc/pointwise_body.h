// Norms, activations and what prepares rows for integer products.
#pragma once

#include "exp_body.h"
#include "kernel_table.h"
#include "quantize_body.h"

namespace {

void rms_norm(const float* x, int64_t x_stride, float* residual, const float* weight, float eps,
              float* out, int num_columns, int row_begin, int row_end) {
    for (int r = row_begin; r < row_end; ++r) {
        const float* source = x + r * x_stride;
        if (residual) {
            float* sum = residual + static_cast<int64_t>(r) * num_columns;
            for (int c = 0; c < num_columns; c += kLanes) {
                int n = num_columns - c < kLanes ? num_columns - c : kLanes;
                store_n(sum + c, add(load_n(sum + c, n), load_n(source + c, n)), n);
            }
            source = sum;
        }
        Vec16 squares = zero();
        for (int c = 0; c < num_columns; c += kLanes) {
            Vec16 v = load_n(source + c, num_columns - c < kLanes ? num_columns - c : kLanes);
            squares = fma(v, v, squares);
        }
        float mean = reduce_add(squares) / static_cast<float>(num_columns);
        Vec16 inverse = broadcast(1.0f / __builtin_sqrtf(mean + eps));
        float* target = out + static_cast<int64_t>(r) * num_columns;
        for (int c = 0; c < num_columns; c += kLanes) {
            int n = num_columns - c < kLanes ? num_columns - c : kLanes;
            store_n(target + c, mul(mul(load_n(source + c, n), inverse), load_n(weight + c, n)), n);
        }
    }
}

void silu_mul(const float* x, int64_t x_stride, float* out, int num_columns, int row_begin,
              int row_end) {
    for (int r = row_begin; r < row_end; ++r) {
        const float* gate = x + r * x_stride;
        const float* up = gate + num_columns;
        float* target = out + static_cast<int64_t>(r) * num_columns;
        for (int c = 0; c < num_columns; c += kLanes) {
            int n = num_columns - c < kLanes ? num_columns - c : kLanes;
            Vec16 g = load_n(gate + c, n);
            Vec16 sigmoid = div(broadcast(1.0f), add(broadcast(1.0f), exp(sub(zero(), g))));
            store_n(target + c, mul(mul(g, sigmoid), load_n(up + c, n)), n);
        }
    }
}

void rope(const RopeArgs& a, int row_begin, int row_end) {
    int half = a.head_dim / 2;
    for (int r = row_begin; r < row_end; ++r) {
        const float* cosine = a.cosine + static_cast<int64_t>(a.positions[r]) * half;
        const float* sine = a.sine + static_cast<int64_t>(a.positions[r]) * half;
        for (int h = 0; h < a.num_heads; ++h) {
            float* x = a.x + r * a.row_stride + h * static_cast<int64_t>(a.head_dim);
            for (int i = 0; i < half; i += kLanes) {
                int n = half - i < kLanes ? half - i : kLanes;
                Vec16 c = load_n(cosine + i, n), s = load_n(sine + i, n);
                Vec16 first = load_n(x + i, n), second = load_n(x + half + i, n);
                store_n(x + i, sub(mul(first, c), mul(second, s)), n);
                store_n(x + half + i, add(mul(second, c), mul(first, s)), n);
            }
        }
    }
}

void quantize_rows(const float* x, int64_t x_stride, int num_columns, const QuantizedRows& out,
                   int row_begin, int row_end) {
    int64_t groups = (num_columns + kGroupSize - 1) / kGroupSize;
    for (int64_t r = row_begin; r < row_end; ++r)
        quantize_row(x + r * x_stride, num_columns,
                     {out.values + r * groups * kGroupSize, out.scale + r * groups,
                      out.scaled_sum + r * groups, out.offset + r * groups});
}

// ---- keys and values into their blocks ----

inline void store_token(const float* k, const float* v, int head_dim, int lane, float* k_block,
                        float* v_block) {
    for (int d = 0; d < head_dim; ++d) k_block[d * kBlockSize + lane] = k[d];
    for (int d = 0; d < head_dim; d += kLanes) store(v_block + lane * head_dim + d, load(v + d));
}

inline void store_token(const float* k, const float* v, int head_dim, int lane, uint16_t* k_block,
                        uint16_t* v_block) {
    for (int d = 0; d < head_dim; d += kLanes) {
        uint16_t half[kLanes];
        store_fp16(half, load(k + d));
        for (int i = 0; i < kLanes; ++i) k_block[(d + i) * kBlockSize + lane] = half[i];
        store_fp16(v_block + lane * head_dim + d, load(v + d));
    }
}

inline float through_fp16(float x, uint16_t* bits) {
    uint16_t half[kLanes];
    store_fp16(half, broadcast(x));
    *bits = half[0];
    float back[kLanes];
    store(back, load_fp16(half));
    return back[0];
}

inline void store_token(const float* k, const float* v, int head_dim, int lane, int8_t* k_block,
                        int8_t* v_block) {
    uint16_t* k_scale = reinterpret_cast<uint16_t*>(k_block + kBlockSize * head_dim);
    uint16_t* v_scale = reinterpret_cast<uint16_t*>(v_block + kBlockSize * head_dim);
    for (int begin = 0; begin < head_dim; begin += kGroupSize) {
        int n = head_dim - begin < kGroupSize ? head_dim - begin : kGroupSize;
        uint16_t* scale = k_scale + begin / kGroupSize * kBlockSize + lane;
        QuantizedGroup group =
            quantize_group(k + begin, n, [scale](float x) { return through_fp16(x, scale); });
        int8_t values[kGroupSize];
        store_s8(values, group.values[0]);
        store_s8(values + kLanes, group.values[1]);
        // The scale of what holds a NaN is stored as one.
        through_fp16(group.scale, scale);
        for (int i = 0; i < n; ++i) {
            int d = begin + i;
            k_block[(d / 4 * kBlockSize + lane) * 4 + d % 4] = values[i] ^ -128;
        }
    }
    Vec16 largest = zero(), poison = zero();
    for (int d = 0; d < head_dim; d += kLanes) {
        largest = max(largest, abs(load(v + d)));
        poison = fma(load(v + d), zero(), poison);
    }
    float scale = through_fp16(reduce_max(largest) / 127.0f, v_scale + lane);
    through_fp16(scale + reduce_add(poison), v_scale + lane);
    Vec16 inverse = broadcast(scale > 1e-30f ? 1.0f / scale : 0.0f);
    for (int d = 0; d < head_dim; d += kLanes) {
        Vec16 q = max(broadcast(-127.0f), round_even(mul(load(v + d), inverse)));
        store_s8(v_block + lane * head_dim + d, min(broadcast(127.0f), q));
    }
}

template <class T>
inline void kv_store_typed(const KvStoreArgs& a, int row_begin, int row_end) {
    int64_t bytes = kv_block_bytes(a.kv_type, a.head_dim);
    for (int r = row_begin; r < row_end; ++r) {
        int64_t block = a.slots[r] / kBlockSize;
        int lane = static_cast<int>(a.slots[r] % kBlockSize);
        for (int h = 0; h < a.num_kv_heads; ++h) {
            int64_t offset = (block * a.num_kv_heads + h) * bytes;
            int64_t column = h * static_cast<int64_t>(a.head_dim);
            store_token(a.k + r * a.k_stride + column, a.v + r * a.v_stride + column, a.head_dim,
                        lane, reinterpret_cast<T*>(a.k_cache + offset),
                        reinterpret_cast<T*>(a.v_cache + offset));
        }
    }
}

// Keys lie transposed in a block, [head_dim][kBlockSize], or in quads as weights do; values as they
// come. kernels/kv_format.py has the layouts.
void kv_store(const KvStoreArgs& a, int row_begin, int row_end) {
    switch (a.kv_type) {
        case KvType::float32:
            return kv_store_typed<float>(a, row_begin, row_end);
        case KvType::float16:
            return kv_store_typed<uint16_t>(a, row_begin, row_end);
        case KvType::int8:
            return kv_store_typed<int8_t>(a, row_begin, row_end);
    }
}

}  // namespace
