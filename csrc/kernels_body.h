// The kernels, written once over Vec16 and compiled for each instruction set.
//
// Each output row is computed by a sequence of operations that depends on that row alone: lanes are
// output columns or keys, sums run over k (or over keys) in a fixed order with fused multiply-adds,
// and how many rows a tile holds changes nothing. So a row has the same bits alone, in any batch,
// on any number of threads and in any instruction set.
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
    return select_less(x, limit, zero(), mul(p, exp2_whole(n)));
}

// ---- products ----

inline Vec16 load_weight(const float* p) {
    return load(p);
}

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
inline Vec16 load_weight(const Bfloat16* p) {
    return load_bf16(&p->bits);
}
inline Vec16 load_weight(const Float16* p) {
    return load_fp16(&p->bits);
}

// A tile of `Rows` rows by `Panels` panels over k in [k_begin, k_end). The partial sum of a chunk
// starts at zero and is added to the total in y: shorter chains of rounding, at fixed boundaries.
template <int Rows, int Panels, class W>
inline void linear_tile(const float* x, int64_t x_stride, const W* const* panels, int k_begin,
                        int k_end, float* y, int64_t y_stride, int num_columns) {
    Vec16 sum[Rows][Panels];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) sum[r][p] = zero();
    for (int k = k_begin; k < k_end; ++k) {
        Vec16 w[Panels];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p)
            w[p] = load_weight(panels[p] + static_cast<int64_t>(k) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            Vec16 a = broadcast(x[r * x_stride + k]);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p) sum[r][p] = fma(a, w[p], sum[r][p]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) {
            int n = num_columns - p * kLanes;
            if (n <= 0) continue;
            float* out = y + r * y_stride + p * kLanes;
            if (n >= kLanes) {
                store(out, k_begin == 0 ? sum[r][p] : add(load(out), sum[r][p]));
            } else {
                store_n(out, k_begin == 0 ? sum[r][p] : add(load_n(out, n), sum[r][p]), n);
            }
        }
}

template <int Panels, class W>
inline void linear_rows(int rows, const float* x, int64_t x_stride, const W* const* panels,
                        int k_begin, int k_end, float* y, int64_t y_stride, int num_columns) {
    while (rows > 0) {
        int tile = rows < kTileRows ? rows : kTileRows;
        switch (tile) {
#define PD_ROWS(R)                                                                                \
    case R:                                                                                       \
        if (R <= kTileRows)                                                                       \
            linear_tile<(R <= kTileRows ? R : 1), Panels>(x, x_stride, panels, k_begin, k_end, y, \
                                                          y_stride, num_columns);                 \
        break;
            PD_ROWS(1)
            PD_ROWS(2)
            PD_ROWS(3)
            PD_ROWS(4)
            PD_ROWS(5)
            PD_ROWS(6)
            PD_ROWS(7)
            PD_ROWS(8)
            PD_ROWS(9)
            PD_ROWS(10)
            PD_ROWS(11)
            PD_ROWS(12)
#undef PD_ROWS
        }
        x += tile * x_stride;
        y += tile * y_stride;
        rows -= tile;
    }
}

template <class W>
void linear_typed(const LinearArgs& a, int task) {
    int row_begin = task / a.column_blocks() * kRowBlock;
    int column_begin = task % a.column_blocks() * kLanes * kPanels;
    int rows = a.num_rows - row_begin < kRowBlock ? a.num_rows - row_begin : kRowBlock;
    int columns = a.out_features - column_begin;
    const float* x = a.x + row_begin * a.x_stride;
    float* y = a.y + row_begin * a.y_stride + column_begin;
    const W* panels[kPanels];
    int64_t panel_size = static_cast<int64_t>(a.in_features) * kLanes;
    for (int p = 0; p < kPanels; ++p)
        panels[p] = static_cast<const W*>(a.weight) + (column_begin / kLanes + p) * panel_size;
    int live_panels = (columns + kLanes - 1) / kLanes;
    for (int k = 0; k < a.in_features; k += kChunkK) {
        int k_end = k + kChunkK < a.in_features ? k + kChunkK : a.in_features;
        if (kTilePanels == kPanels && live_panels >= kPanels) {
            linear_rows<kTilePanels>(rows, x, a.x_stride, panels, k, k_end, y, a.y_stride, columns);
        } else {
            for (int p = 0; p < kPanels && p < live_panels; ++p)
                linear_rows<1>(rows, x, a.x_stride, panels + p, k, k_end, y + p * kLanes,
                               a.y_stride, columns - p * kLanes);
        }
    }
    if (!a.bias) return;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns && c < kLanes * kPanels; c += kLanes) {
            int n = columns - c < kLanes ? columns - c : kLanes;
            float* out = y + r * a.y_stride + c;
            store_n(out, add(load_n(out, n), load_n(a.bias + column_begin + c, n)), n);
        }
}

void linear(const LinearArgs& a, int task) {
    switch (a.weight_type) {
        case WeightType::float32:
            return linear_typed<float>(a, task);
        case WeightType::bfloat16:
            return linear_typed<Bfloat16>(a, task);
        case WeightType::float16:
            return linear_typed<Float16>(a, task);
    }
}

// ---- branch attention ----
//
// Online softmax of a query row over the entries of its view, in their order:
//   s = q k^T / sqrt(d);  m' = max(m, max s);  p = exp(s - m');  c = exp(m - m')
//   l = c l + sum p;  acc = c acc + p V;  at the end out = acc / l
// The state (m, l, acc) is carried from a plan node to its children, so a shared node is read once
// for all its rows and each row still does the arithmetic it would do alone.

constexpr int kScoreRows = 8;

struct SoftmaxState {
    float* accumulator;  // [rows, head_dim]
    float* maximum;      // [rows]
    float* sum;          // [rows]
};

template <int Rows>
inline void scores_tile(const float* q, const float* k_block, int head_dim, Vec16* scores) {
    Vec16 sum[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sum[r] = zero();
    for (int d = 0; d < head_dim; ++d) {
        Vec16 k = load(k_block + d * kBlockSize);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sum[r] = fma(broadcast(q[r * head_dim + d]), k, sum[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) scores[r] = sum[r];
}

inline void scores_rows(int rows, const float* q, const float* k_block, int head_dim,
                        Vec16* scores) {
    int r = 0;
    for (; r + kScoreTile <= rows; r += kScoreTile)
        scores_tile<kScoreTile>(q + r * head_dim, k_block, head_dim, scores + r);
    for (; r + 2 <= rows; r += 2) scores_tile<2>(q + r * head_dim, k_block, head_dim, scores + r);
    for (; r < rows; ++r) scores_tile<1>(q + r * head_dim, k_block, head_dim, scores + r);
}

// acc += p[lo..hi) V[lo..hi) for one row, `Vectors` vectors of head_dim at a time.
template <int Rows, int Vectors>
inline void values_tile(const float* p, const float* v_block, int head_dim, int lo, int hi,
                        float* accumulator) {
    Vec16 sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < Vectors; ++i) sum[r][i] = load(accumulator + r * head_dim + i * kLanes);
    for (int t = lo; t < hi; ++t) {
        Vec16 v[Vectors];
#pragma GCC unroll 8
        for (int i = 0; i < Vectors; ++i)
            v[i] = load(v_block + static_cast<int64_t>(t) * head_dim + i * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            Vec16 weight = broadcast(p[r * kBlockSize + t]);
#pragma GCC unroll 8
            for (int i = 0; i < Vectors; ++i) sum[r][i] = fma(weight, v[i], sum[r][i]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < Vectors; ++i) store(accumulator + r * head_dim + i * kLanes, sum[r][i]);
}

template <int Rows>
inline void values_rows(const float* p, const float* v_block, int head_dim, int lo, int hi,
                        float* accumulator) {
    int d = 0;
    for (; d + kValueVectors * kLanes <= head_dim; d += kValueVectors * kLanes)
        values_tile<Rows, kValueVectors>(p, v_block + d, head_dim, lo, hi, accumulator + d);
    for (; d < head_dim; d += kLanes)
        values_tile<Rows, 1>(p, v_block + d, head_dim, lo, hi, accumulator + d);
}

inline void scale_row(float* row, float factor, int n) {
    for (int d = 0; d < n; d += kLanes) store(row + d, mul(load(row + d), broadcast(factor)));
}

// One block for up to kScoreRows query rows that see keys [lo[r], hi[r]) of it.
inline void attend_block(int rows, const float* q, const float* k_block, const float* v_block,
                         int head_dim, const int* lo, const int* hi, SoftmaxState state) {
    Vec16 scores[kScoreRows];
    alignas(64) float p[kScoreRows][kBlockSize];
    scores_rows(rows, q, k_block, head_dim, scores);
    bool same_keys = true;
    for (int r = 0; r < rows; ++r) {
        same_keys = same_keys && lo[r] == lo[0] && hi[r] == hi[0];
        if (lo[r] >= hi[r]) continue;
        Vec16 s = select_range(lo[r], hi[r], scores[r], broadcast(kMinusInfinity));
        float old_max = state.maximum[r];
        float block_max = reduce_max(s);
        float new_max = old_max > block_max ? old_max : block_max;
        Vec16 weights = exp(sub(s, broadcast(new_max)));
        // A row whose scores are all -inf so far has no weight yet; inf - inf would make a NaN.
        if (new_max == kMinusInfinity) weights = zero();
        if (new_max != old_max) {
            alignas(64) float factor[kLanes];
            store(factor, exp(broadcast(old_max - new_max)));
            state.sum[r] *= factor[0];
            scale_row(state.accumulator + static_cast<int64_t>(r) * head_dim, factor[0], head_dim);
            state.maximum[r] = new_max;
        }
        state.sum[r] += reduce_add(weights);
        store(p[r], weights);
    }
    int r = 0;
    if (same_keys && lo[0] < hi[0])
        for (; r + kValueRows <= rows; r += kValueRows)
            values_rows<kValueRows>(p[r], v_block, head_dim, lo[0], hi[0],
                                    state.accumulator + static_cast<int64_t>(r) * head_dim);
    for (; r < rows; ++r)
        if (lo[r] < hi[r])
            values_rows<1>(p[r], v_block, head_dim, lo[r], hi[r],
                           state.accumulator + static_cast<int64_t>(r) * head_dim);
}

// RoPE by -offset: a key stored at position p is read as if it stood at p + offset.
inline void rotate_query(const float* q, const float* cosine, const float* sine, int head_dim,
                         float* out) {
    int half = head_dim / 2;
    for (int i = 0; i < half; ++i) {
        float a = q[i], b = q[i + half];
        out[i] = fma1(a, cosine[i], b * sine[i]);
        out[i + half] = fma1(b, cosine[i], -(a * sine[i]));
    }
}

void attention(const AttentionArgs& a, const AttentionTask& task, float* scratch) {
    int group = a.num_heads / a.num_kv_heads, head_dim = a.head_dim;
    int rows = task.row_end - task.row_begin, query_rows = rows * group;
    int64_t state_size = static_cast<int64_t>(query_rows) * head_dim;
    float* q = scratch;
    float* rotated = q + state_size;
    SoftmaxState state{rotated + state_size, rotated + 2 * state_size,
                       rotated + 2 * state_size + query_rows};
    Vec16 scale = broadcast(a.softmax_scale);
    for (int r = 0; r < rows; ++r)
        for (int g = 0; g < group; ++g) {
            const float* source = a.q + (task.row_begin + r) * a.q_row_stride +
                                  (task.kv_head * group + g) * static_cast<int64_t>(head_dim);
            float* target = q + static_cast<int64_t>(r * group + g) * head_dim;
            for (int d = 0; d < head_dim; d += kLanes)
                store(target + d, mul(load(source + d), scale));
        }
    for (int64_t i = 0; i < state_size; ++i) state.accumulator[i] = 0.0f;
    for (int i = 0; i < query_rows; ++i) {
        state.maximum[i] = kMinusInfinity;
        state.sum[i] = 0.0f;
    }
    int64_t block_floats = static_cast<int64_t>(kBlockSize) * head_dim;

    for (int n = 0; n < a.num_nodes; ++n) {
        const PlanNode& node = a.nodes[n];
        int first = node.row_begin > task.row_begin ? node.row_begin : task.row_begin;
        int last = node.row_end < task.row_end ? node.row_end : task.row_end;
        if (first >= last) continue;
        int begin = (first - task.row_begin) * group, end = (last - task.row_begin) * group;
        int kv_index = node.kv_begin, rotation = -1;
        const float* node_q = q;
        for (int e = node.entry_begin; e < node.entry_end; ++e) {
            const ViewEntry& entry = a.entries[e];
            if (entry.rotation == 0) {
                node_q = q;
            } else if (entry.rotation != rotation) {
                rotation = entry.rotation;
                for (int i = begin; i < end; ++i)
                    rotate_query(q + static_cast<int64_t>(i) * head_dim,
                                 a.rotation_cos + static_cast<int64_t>(rotation) * (head_dim / 2),
                                 a.rotation_sin + static_cast<int64_t>(rotation) * (head_dim / 2),
                                 head_dim, rotated + static_cast<int64_t>(i) * head_dim);
                node_q = rotated;
            } else {
                node_q = rotated;
            }
            int64_t block = static_cast<int64_t>(entry.block) * a.num_kv_heads + task.kv_head;
            const float* k_block = a.k_cache + block * block_floats;
            const float* v_block = a.v_cache + block * block_floats;
            for (int tile = begin; tile < end; tile += kScoreRows) {
                int tile_rows = end - tile < kScoreRows ? end - tile : kScoreRows;
                int lo[kScoreRows], hi[kScoreRows];
                bool any = false;
                for (int i = 0; i < tile_rows; ++i) {
                    int row = task.row_begin + (tile + i) / group;
                    int seen = a.num_visible[row] - kv_index;
                    lo[i] = entry.start;
                    hi[i] = entry.start + seen < entry.stop ? entry.start + seen : entry.stop;
                    if (a.sliding_window) {
                        int oldest = a.positions[row] - a.sliding_window + 1 - entry.position;
                        if (oldest > 0) lo[i] = entry.start + oldest;
                    }
                    any = any || lo[i] < hi[i];
                }
                if (!any) continue;
                SoftmaxState tile_state{state.accumulator + static_cast<int64_t>(tile) * head_dim,
                                        state.maximum + tile, state.sum + tile};
                attend_block(tile_rows, node_q + static_cast<int64_t>(tile) * head_dim, k_block,
                             v_block, head_dim, lo, hi, tile_state);
            }
            kv_index += entry.stop - entry.start;
        }
    }
    for (int i = 0; i < query_rows; ++i) {
        // A row that saw no key gives zero.
        float inverse = state.sum[i] == 0.0f ? 0.0f : 1.0f / state.sum[i];
        float* target = a.out + (static_cast<int64_t>(task.row_begin + i / group) * a.num_heads +
                                 task.kv_head * group + i % group) *
                                    head_dim;
        for (int d = 0; d < head_dim; d += kLanes)
            store(target + d, mul(load(state.accumulator + static_cast<int64_t>(i) * head_dim + d),
                                  broadcast(inverse)));
    }
}

// ---- pointwise ----

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

// ---- logits ----

float row_max(const float* x, int n) {
    Vec16 best = broadcast(kMinusInfinity);
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) best = max(best, load(x + i));
    if (i < n) best = max(best, select_range(0, n - i, load_n(x + i, n - i), best));
    return reduce_max(best);
}

// Exactly 1 where x = shift, so that the most likely token passes every filter.
float exp_shifted(const float* x, int n, float scale, float shift, float* e) {
    Vec16 sum = zero();
    for (int i = 0; i < n; i += kLanes) {
        int m = n - i < kLanes ? n - i : kLanes;
        Vec16 v = exp(mul(sub(load_n(x + i, m), broadcast(shift)), broadcast(scale)));
        v = select_range(0, m, v, zero());
        store_n(e + i, v, m);
        sum = add(sum, v);
    }
    return reduce_add(sum);
}

// lse = m + log S, H = lse - sum p x and the mean of x, with S = sum exp(x - m).
void logit_stats(const LogitStatsArgs& a, int row) {
    const float* x = a.logits + row * a.logits_stride;
    float m = row_max(x, a.vocab_size);
    Vec16 sum = zero(), weighted = zero(), plain = zero();
    for (int i = 0; i < a.vocab_size; i += kLanes) {
        int n = a.vocab_size - i < kLanes ? a.vocab_size - i : kLanes;
        Vec16 shifted = sub(load_n(x + i, n), broadcast(m));
        plain = add(plain, select_range(0, n, shifted, zero()));
        Vec16 e = select_range(0, n, exp(shifted), zero());
        sum = add(sum, e);
        // exp(-inf) * -inf would be a NaN: a forbidden token adds nothing.
        Vec16 term = mul(e, shifted);
        term = select_less(shifted, broadcast(-87.0f), zero(), term);
        weighted = add(weighted, select_range(0, n, term, zero()));
    }
    float total = reduce_add(sum);
    float log_total = __builtin_logf(total);
    a.lse[row] = m + log_total;
    a.entropy[row] = log_total - reduce_add(weighted) / total;
    a.mean[row] = m + reduce_add(plain) / static_cast<float>(a.vocab_size);
}

}  // namespace
