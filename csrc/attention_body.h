// Branch attention: online softmax of a query row over the entries of its view, in their order.
//   s = q k^T log2(e) / sqrt(d);  p = 2^(s - m);  l = l + sum p;  acc = acc + p V
// and at the end out = acc / l. m follows the largest score lazily: it moves, and l and acc are
// scaled, only where a block exceeds it by kMaxLag, so that p stays below 2^kMaxLag (the idea is
// FlashAttention-4's). The state (m, l, acc) goes from a plan node to its children: a shared node
// is read once for all its rows, and each row still does the arithmetic that it would do alone.
#pragma once

#include <cstring>

#include "exp_body.h"
#include "kernel_table.h"
#include "quantize_body.h"

namespace {

constexpr float kMaxLag = 8.0f;
constexpr float kNoScore = -1e30f;  // finite: -inf - m must not become a NaN
constexpr uint32_t kAllKeys = 0xffffu;
constexpr int kMaxDraft = 64;  // bits of a mask
constexpr float kLog2E = 1.44269504f;

// ---- a block of keys and values of one KV head, in each of its formats ----

struct FloatBlock {
    const float* k;  // [head_dim][kBlockSize]
    const float* v;  // [kBlockSize][head_dim]
    int64_t head_dim;

    FloatBlock() = default;
    FloatBlock(const char* k_block, const char* v_block, int head_dim)
        : k(reinterpret_cast<const float*>(k_block)),
          v(reinterpret_cast<const float*>(v_block)),
          head_dim(head_dim) {}
    Vec16 key(int64_t d) const { return load(k + d * kBlockSize); }
    Vec16 value(int64_t t, int64_t d) const { return load(v + t * head_dim + d); }
};

struct HalfBlock {
    const uint16_t* k;
    const uint16_t* v;
    int64_t head_dim;

    HalfBlock() = default;
    HalfBlock(const char* k_block, const char* v_block, int head_dim)
        : k(reinterpret_cast<const uint16_t*>(k_block)),
          v(reinterpret_cast<const uint16_t*>(v_block)),
          head_dim(head_dim) {}
    Vec16 key(int64_t d) const { return load_fp16(k + d * kBlockSize); }
    Vec16 value(int64_t t, int64_t d) const { return load_fp16(v + t * head_dim + d); }
};

// Keys have a scale for each token and kGroupSize dimensions, values one for each token.
struct Int8Block {
    const uint8_t* k;  // [head_dim / 4][kBlockSize][4]: q + 128
    const int8_t* v;   // [kBlockSize][head_dim]
    int64_t head_dim;
    alignas(64) float k_scale[kMaxHeadDim / kGroupSize * kBlockSize];
    alignas(64) float v_scale[kBlockSize];

    Int8Block() = default;
    Int8Block(const char* k_block, const char* v_block, int head_dim)
        : k(reinterpret_cast<const uint8_t*>(k_block)),
          v(reinterpret_cast<const int8_t*>(v_block)),
          head_dim(head_dim) {
        auto k_half = reinterpret_cast<const uint16_t*>(k_block + kBlockSize * head_dim);
        auto v_half = reinterpret_cast<const uint16_t*>(v_block + kBlockSize * head_dim);
        for (int i = 0; i * kGroupSize < head_dim; ++i)
            store(k_scale + i * kBlockSize, load_fp16(k_half + i * kBlockSize));
        store(v_scale, load_fp16(v_half));
    }
    Vec16 value(int64_t t, int64_t d) const {
        return mul(load_s8(v + t * head_dim + d), broadcast(v_scale[t]));
    }
};

// An Int8Block whose values were widened.
struct WideInt8Block {
    const uint8_t* k;
    const float* v;
    int64_t head_dim;
    const float* k_scale;

    Vec16 value(int64_t t, int64_t d) const { return load(v + t * head_dim + d); }
};

template <class Block>
inline void widen_values(const Block& block, float* out) {
    for (int64_t t = 0; t < kBlockSize; ++t)
        for (int64_t d = 0; d < block.head_dim; d += kLanes)
            store(out + t * block.head_dim + d, block.value(t, d));
}

// Where several tiles read a block it is worth widening once; `scratch` holds both planes.
template <class Block>
struct Widened;
template <>
struct Widened<FloatBlock> {
    static constexpr bool pays = false;
    using Type = FloatBlock;
    static Type of(const FloatBlock& block, float*) { return block; }
};
template <>
struct Widened<HalfBlock> {
    static constexpr bool pays = true;
    using Type = FloatBlock;
    static Type of(const HalfBlock& block, float* scratch) {
        for (int64_t d = 0; d < block.head_dim; ++d) store(scratch + d * kBlockSize, block.key(d));
        FloatBlock wide;
        wide.k = scratch;
        wide.v = scratch + block.head_dim * kBlockSize;
        wide.head_dim = block.head_dim;
        widen_values(block, scratch + block.head_dim * kBlockSize);
        return wide;
    }
};
template <>
struct Widened<Int8Block> {
    static constexpr bool pays = true;
    using Type = WideInt8Block;
    static Type of(const Int8Block& block, float* scratch) {
        widen_values(block, scratch);
        return {block.k, scratch, block.head_dim, block.k_scale};
    }
};

// ---- a tile of up to kScoreRows query rows against up to two blocks ----

struct SoftmaxState {
    float* accumulator;  // [rows, head_dim]
    float* maximum;      // [rows]
    float* sum;          // [rows, kLanes]: each lane sums its own keys
};

// Queries of a task, scaled by log2(e) / sqrt(d). They lie transposed, [head_dim][stride]: one load
// address serves all rows of a tile.
struct FloatQueries {
    const float* values;
    int64_t stride;

    FloatQueries from(int row) const { return {values + row, stride}; }
};

// The same, rounded as kernels/group_quantized.py has it: [rows][groups][kGroupSize].
struct Int8Queries {
    const int8_t* values;
    const float* scale;     // [rows][groups]
    const int32_t* offset;  // [rows][groups]: -128 sum of the values
    int64_t groups;

    Int8Queries from(int row) const {
        return {values + row * groups * kGroupSize, scale + row * groups, offset + row * groups,
                groups};
    }
};

template <int Rows, int Blocks, class Block>
inline void scores_tile(FloatQueries q, const Block* blocks, Vec16 (*scores)[kScoreRows]) {
    Vec16 sum[Rows][Blocks];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) sum[r][b] = zero();
    int64_t head_dim = blocks[0].head_dim;
    for (int64_t d = 0; d < head_dim; ++d) {
        Vec16 k[Blocks];
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) k[b] = blocks[b].key(d);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            Vec16 of_row = broadcast(q.values[d * q.stride + r]);
#pragma GCC unroll 2
            for (int b = 0; b < Blocks; ++b) sum[r][b] = fma(of_row, k[b], sum[r][b]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) scores[b][r] = sum[r][b];
}

// s = sum_g scale_q[g] (scale_k[g] sum_d q k): the inner sums are exact.
template <int Rows, int Blocks, class Block>
inline void scores_tile(Int8Queries q, const Block* blocks, Vec16 (*scores)[kScoreRows]) {
    constexpr int64_t quads = kGroupSize / 4;
    Vec16 sum[Rows][Blocks];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) sum[r][b] = zero();
    int64_t all_quads = blocks[0].head_dim / 4;
    for (int64_t g = 0; g < q.groups; ++g) {
        IntVec16 dot[Rows][Blocks];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int b = 0; b < Blocks; ++b) dot[r][b] = dot_start(q.offset[r * q.groups + g]);
        int64_t end = g * quads + quads < all_quads ? g * quads + quads : all_quads;
        for (int64_t j = g * quads; j < end; ++j) {
            Quads k[Blocks];
#pragma GCC unroll 2
            for (int b = 0; b < Blocks; ++b) k[b] = load_s8_quads(blocks[b].k + j * 64);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
                auto four = broadcast_quad(q.values + r * q.groups * kGroupSize + 4 * j);
#pragma GCC unroll 2
                for (int b = 0; b < Blocks; ++b) dot[r][b] = dot_s8(dot[r][b], k[b], four);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            Vec16 scale = broadcast(q.scale[r * q.groups + g]);
#pragma GCC unroll 2
            for (int b = 0; b < Blocks; ++b)
                sum[r][b] = fma(mul(to_float(dot[r][b]), load(blocks[b].k_scale + g * kBlockSize)),
                                scale, sum[r][b]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) scores[b][r] = sum[r][b];
}

inline int score_tile(FloatQueries) {
    return kScoreTile;
}
inline int score_tile(Int8Queries) {
    return kIntScoreTile;
}

template <int Blocks, class Queries, class Block>
inline void scores_rows(int rows, Queries q, const Block* blocks, Vec16 (*scores)[kScoreRows]) {
    for (int r = 0; r < rows;) {
        int tile = rows - r < score_tile(q) ? rows - r : score_tile(q);
        // Row r of block 0; block 1 follows kScoreRows later.
        auto target = reinterpret_cast<Vec16(*)[kScoreRows]>(&scores[0][r]);
        switch (tile) {
#define PD_ROWS(R)                                                                 \
    case R:                                                                        \
        scores_tile<(R <= kScoreTile ? R : 1), Blocks>(q.from(r), blocks, target); \
        break;
            PD_ROWS(1)
            PD_ROWS(2)
            PD_ROWS(3)
            PD_ROWS(4)
            PD_ROWS(5)
            PD_ROWS(6)
            PD_ROWS(7)
            PD_ROWS(8)
#undef PD_ROWS
        }
        r += tile;
    }
}

// acc += p[t] V[t] over the keys of `mask`, `Vectors` vectors of head_dim at a time.
template <int Rows, int Vectors, bool All, class Block>
inline void values_tile(const float* p, const Block& block, uint32_t mask, int64_t d,
                        int64_t head_dim, float* accumulator) {
    Vec16 sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < Vectors; ++i)
            sum[r][i] = load(accumulator + r * head_dim + d + i * kLanes);
    for (int64_t t = 0; t < kBlockSize; ++t) {
        if (!All && !(mask >> t & 1u)) continue;
        Vec16 v[Vectors];
#pragma GCC unroll 4
        for (int i = 0; i < Vectors; ++i) v[i] = block.value(t, d + i * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            Vec16 weight = broadcast(p[r * kBlockSize + t]);
#pragma GCC unroll 4
            for (int i = 0; i < Vectors; ++i) sum[r][i] = fma(weight, v[i], sum[r][i]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < Vectors; ++i)
            store(accumulator + r * head_dim + d + i * kLanes, sum[r][i]);
}

template <int Rows, bool All, class Block>
inline void values_all(const float* p, const Block& block, uint32_t mask, int64_t head_dim,
                       float* accumulator) {
    int64_t d = 0;
    for (; d + kValueVectors * kLanes <= head_dim; d += kValueVectors * kLanes)
        values_tile<Rows, kValueVectors, All>(p, block, mask, d, head_dim, accumulator);
    for (; d < head_dim; d += kLanes)
        values_tile<Rows, 1, All>(p, block, mask, d, head_dim, accumulator);
}

// Runs of rows that see the same keys go together.
template <class Block>
inline void values_rows(int rows, const float* p, const Block& block, const uint32_t* mask,
                        int64_t head_dim, float* accumulator) {
    for (int r = 0; r < rows;) {
        int tile = 1;
        while (r + tile < rows && tile < kValueRows && mask[r + tile] == mask[r]) ++tile;
        const float* weights = p + r * kBlockSize;
        float* target = accumulator + r * head_dim;
        if (mask[r]) switch (2 * tile + (mask[r] == kAllKeys)) {
#define PD_ROWS(R)                                                                               \
    case 2 * R:                                                                                  \
        values_all<(R <= kValueRows ? R : 1), false>(weights, block, mask[r], head_dim, target); \
        break;                                                                                   \
    case 2 * R + 1:                                                                              \
        values_all<(R <= kValueRows ? R : 1), true>(weights, block, mask[r], head_dim, target);  \
        break;
                PD_ROWS(1)
                PD_ROWS(2)
                PD_ROWS(3)
                PD_ROWS(4)
#undef PD_ROWS
            }
        r += tile;
    }
}

inline void scale_row(float* row, Vec16 factor, int64_t n) {
    for (int64_t d = 0; d < n; d += kLanes) store(row + d, mul(load(row + d), factor));
}

// Row r sees the keys of mask[b][r] of block b.
template <int Blocks, class Queries, class Block>
inline void attend(int rows, Queries q, const Block* blocks, const uint32_t (*mask)[kScoreRows],
                   SoftmaxState state) {
    int64_t head_dim = blocks[0].head_dim;
    Vec16 scores[Blocks][kScoreRows];
    alignas(64) float p[kScoreRows * kBlockSize];
    scores_rows<Blocks>(rows, q, blocks, scores);
    for (int b = 0; b < Blocks; ++b) {
        for (int r = 0; r < rows; ++r) {
            Vec16 s = scores[b][r];
            if (mask[b][r] != kAllKeys) {
                if (!mask[b][r]) continue;
                s = select_lanes(mask[b][r], s, broadcast(kMinusInfinity));
            }
            float* sum = state.sum + r * kLanes;
            Vec16 lag = sub(s, broadcast(state.maximum[r]));
            if (any_greater(lag, broadcast(kMaxLag))) {
                float maximum = reduce_max(s);
                Vec16 factor = exp2(broadcast(state.maximum[r] - maximum));
                scale_row(sum, factor, kLanes);
                scale_row(state.accumulator + r * head_dim, factor, head_dim);
                state.maximum[r] = maximum;
                lag = sub(s, broadcast(maximum));
            }
            Vec16 weights = exp2(lag);
            store(sum, add(load(sum), weights));
            store(p + r * kBlockSize, weights);
        }
        values_rows(rows, p, blocks[b], mask[b], head_dim, state.accumulator);
    }
}

// RoPE by -offset: a key stored at position p is read as if it stood at p + offset. Columns
// [begin, end) of q and out, [head_dim][stride].
inline void rotate_queries(const float* q, int64_t stride, int begin, int end, const float* cosine,
                           const float* sine, int head_dim, float* out) {
    int half = head_dim / 2;
    for (int i = 0; i < half; ++i) {
        const float *first = q + i * stride, *second = q + (i + half) * stride;
        float *out_first = out + i * stride, *out_second = out + (i + half) * stride;
        for (int r = begin; r < end; ++r) {
            float a = first[r], b = second[r];
            out_first[r] = fma1(a, cosine[i], b * sine[i]);
            out_second[r] = fma1(b, cosine[i], -(a * sine[i]));
        }
    }
}

// ---- one task: some rows of one KV head ----

// Whether the row sees draft tokens that do not stand one behind the other. In its branch, once
// they are accepted, they will: from draft_begin on it reads them as if they did already, so that
// its sums have the same terms in the same order.
inline bool is_scattered(const AttentionArgs& a, int row) {
    return a.draft_mask && (a.draft_mask[row] & (a.draft_mask[row] + 1)) != 0;
}

// Copies the keys and values of one token, from lane to lane of two blocks.
inline void copy_token(KvType type, int head_dim, const char* k_from, const char* v_from, int from,
                       char* k_to, char* v_to, int to) {
    auto copy = [&](const char* source, char* target, int num_chunks, int bytes) {
        for (int i = 0; i < num_chunks; ++i)
            std::memcpy(target + (i * kBlockSize + to) * bytes,
                        source + (i * kBlockSize + from) * bytes, bytes);
    };
    if (type != KvType::int8) {
        int bytes = type == KvType::float32 ? 4 : 2;
        copy(k_from, k_to, head_dim, bytes);
        copy(v_from, v_to, 1, head_dim * bytes);
        return;
    }
    int scales = head_dim * kBlockSize;
    copy(k_from, k_to, head_dim / 4, 4);
    copy(k_from + scales, k_to + scales, (head_dim + kGroupSize - 1) / kGroupSize, 2);
    copy(v_from, v_to, 1, head_dim);
    copy(v_from + scales, v_to + scales, 1, 2);
}

// Lanes [start, stop) of an entry that the sliding window has not left behind.
inline uint32_t lanes_in_window(const AttentionArgs& a, int row, const ViewEntry& e, int stop) {
    uint32_t mask = stop <= e.start ? 0u : ((1u << stop) - 1u) & ~((1u << e.start) - 1u);
    if (a.sliding_window) {
        int oldest = a.positions[row] - a.sliding_window + 1 - e.position;
        if (oldest >= kBlockSize) return 0u;
        if (oldest > 0) mask &= ~0u << (e.start + oldest);
    }
    return mask;
}

// Keys of entry `e`, the first of which is number kv_index of the row's view, that the row sees.
inline uint32_t visible_keys(const AttentionArgs& a, int row, const ViewEntry& e, int kv_index) {
    if (is_scattered(a, row) && kv_index + e.stop - e.start > a.draft_begin[row]) return 0u;
    int seen = a.num_visible[row] - kv_index;
    int stop = e.start + seen < e.stop ? e.start + seen : e.stop;
    uint32_t mask = lanes_in_window(a, row, e, stop);
    if (a.draft_mask) {
        // Bit j of a row's draft mask is key draft_begin + j; keys before are not masked.
        int first = kv_index - a.draft_begin[row];  // number of key e.start among the draft's
        uint64_t bits = a.draft_mask[row];
        uint32_t allowed = first >= 64  ? 0u
                           : first >= 0 ? static_cast<uint32_t>(bits >> first)
                           : first > -kBlockSize
                               ? static_cast<uint32_t>(bits << -first) | ((1u << -first) - 1u)
                               : ~0u;
        mask &= allowed << e.start | ((1u << e.start) - 1u);
    }
    return mask;
}

inline int64_t padded(int head_dim) {
    return (head_dim + kGroupSize - 1) / kGroupSize * kGroupSize;
}

// Queries [head_dim][query_rows], turned or not, and room for their rounded form.
struct QueryScratch {
    float *values, *scale;
    int32_t* offset;
    int8_t* rounded;
};

struct AttentionScratch {
    AttentionScratch(float* p, int query_rows, int head_dim) {
        auto take = [&p](int64_t floats) {
            float* taken = p;
            p += floats;
            return taken;
        };
        int64_t groups = padded(head_dim) / kGroupSize;
        state.accumulator = take(static_cast<int64_t>(query_rows) * head_dim);
        state.sum = take(query_rows * kLanes);
        state.maximum = take(query_rows);
        widened = take(2 * kScoreBlocks * kBlockSize * head_dim);
        QueryScratch* both[] = {&plain, &turned};
        for (QueryScratch* q : both) {
            q->values = take(static_cast<int64_t>(query_rows) * head_dim);
            q->scale = take(query_rows * groups);
            q->offset = reinterpret_cast<int32_t*>(take(query_rows * groups));
            q->rounded = reinterpret_cast<int8_t*>(take(query_rows * padded(head_dim) / 4));
        }
    }
    SoftmaxState state;
    float* widened;
    QueryScratch plain, turned;
};

inline void open_queries(const QueryScratch& q, int query_rows, int, int, int, FloatQueries* out) {
    *out = {q.values, query_rows};
}

// Rounds rows [begin, end).
inline void open_queries(const QueryScratch& q, int query_rows, int head_dim, int begin, int end,
                         Int8Queries* out) {
    int64_t width = padded(head_dim), groups = width / kGroupSize;
    float row[kMaxHeadDim];
    for (int i = begin; i < end; ++i) {
        for (int64_t d = 0; d < head_dim; ++d) row[d] = q.values[d * query_rows + i];
        QuantizedRows rounded{q.rounded + i * width, q.scale + i * groups, nullptr,
                              q.offset + i * groups};
        quantize_row(row, head_dim, rounded);
    }
    *out = {q.rounded, q.scale, q.offset, groups};
}

template <class Block, class Queries>
struct AttentionLoop {
    const AttentionArgs& a;
    const AttentionTask& task;
    AttentionScratch scratch;
    int group, head_dim, query_rows;

    // Entries [e, e + Blocks) for query rows [begin, end).
    template <int Blocks>
    void entries(const ViewEntry* e, int kv_index, Queries q, int begin, int end,
                 bool all_visible) {
        Block blocks[Blocks];
        int kv[Blocks];
        int64_t bytes = kv_block_bytes(a.kv_type, head_dim);
        for (int b = 0; b < Blocks; ++b) {
            int64_t offset =
                (static_cast<int64_t>(e[b].block) * a.num_kv_heads + task.kv_head) * bytes;
            blocks[b] = Block(a.k_cache + offset, a.v_cache + offset, head_dim);
            kv[b] = kv_index;
            kv_index += e[b].stop - e[b].start;
        }
        if (Widened<Block>::pays && end - begin > kScoreRows) {
            typename Widened<Block>::Type wide[Blocks];
            for (int b = 0; b < Blocks; ++b)
                wide[b] =
                    Widened<Block>::of(blocks[b], scratch.widened + 2 * b * kBlockSize * head_dim);
            tiles<Blocks>(e, kv, wide, q, begin, end, all_visible);
        } else {
            tiles<Blocks>(e, kv, blocks, q, begin, end, all_visible);
        }
    }

    template <int Blocks, class Any>
    void tiles(const ViewEntry* e, const int* kv, const Any* blocks, Queries q, int begin, int end,
               bool all_visible) {
        uint32_t mask[Blocks][kScoreRows];
        for (int b = 0; b < Blocks; ++b)
            for (int i = 0; i < kScoreRows; ++i)
                mask[b][i] = ((1u << e[b].stop) - 1u) & ~((1u << e[b].start) - 1u);
        for (int tile = begin; tile < end; tile += kScoreRows) {
            int rows = end - tile < kScoreRows ? end - tile : kScoreRows;
            if (!all_visible && !see<Blocks>(e, kv, tile, rows, mask)) continue;
            attend<Blocks>(rows, q.from(tile), blocks, mask,
                           {scratch.state.accumulator + static_cast<int64_t>(tile) * head_dim,
                            scratch.state.maximum + tile, scratch.state.sum + tile * kLanes});
        }
    }

    // Writes what each query row of a tile sees of each block; whether that is anything at all.
    template <int Blocks>
    bool see(const ViewEntry* e, const int* kv, int tile, int rows,
             uint32_t (*mask)[kScoreRows]) const {
        uint32_t seen = 0;
        int row = task.row_begin + tile / group, head = tile % group;
        for (int i = 0; i < rows; ++i) {
            for (int b = 0; b < Blocks; ++b) {
                bool same = i > 0 && head > 0;  // heads of one token
                mask[b][i] = same ? mask[b][i - 1] : visible_keys(a, row, e[b], kv[b]);
                seen |= mask[b][i];
            }
            if (++head == group) {
                head = 0;
                ++row;
            }
        }
        return seen != 0;
    }

    // Queries for keys that are read `rotation` positions further on.
    Queries turned(int rotation, int begin, int end) const {
        rotate_queries(scratch.plain.values, query_rows, begin, end,
                       a.rotation_cos + static_cast<int64_t>(rotation) * (head_dim / 2),
                       a.rotation_sin + static_cast<int64_t>(rotation) * (head_dim / 2), head_dim,
                       scratch.turned.values);
        Queries queries;
        open_queries(scratch.turned, query_rows, head_dim, begin, end, &queries);
        return queries;
    }

    void node(const PlanNode& node, Queries plain) {
        int first = node.row_begin > task.row_begin ? node.row_begin : task.row_begin;
        int last = node.row_end < task.row_end ? node.row_end : task.row_end;
        if (first >= last) return;
        int begin = (first - task.row_begin) * group, end = (last - task.row_begin) * group;
        // Keys that every row sees, whatever its mask.
        int common = a.sliding_window ? 0 : a.num_visible[first];
        for (int row = first; row < last && common; ++row) {
            if (a.num_visible[row] < common) common = a.num_visible[row];
            if (a.draft_mask && a.draft_begin[row] < common) common = a.draft_begin[row];
        }
        int kv_index = node.kv_begin, rotation = 0;
        Queries q = plain;
        for (int e = node.entry_begin; e < node.entry_end;) {
            const ViewEntry* entry = a.entries + e;
            if (entry->rotation != rotation) {
                rotation = entry->rotation;
                q = rotation == 0 ? plain : turned(rotation, begin, end);
            }
            int count = entry->stop - entry->start;
            if (kScoreBlocks == 2 && e + 1 < node.entry_end &&
                entry[1].rotation == entry->rotation) {
                count += entry[1].stop - entry[1].start;
                entries<kScoreBlocks>(entry, kv_index, q, begin, end, kv_index + count <= common);
                e += 2;
            } else {
                entries<1>(entry, kv_index, q, begin, end, kv_index + count <= common);
                e += 1;
            }
            kv_index += count;
        }
        for (int row = first; row < last; ++row)
            if (is_scattered(a, row) && a.draft_begin[row] < kv_index) gathered(node, row, plain);
    }

    // Entries of the row's draft, and the one that it begins in, for a scattered row.
    void gathered(const PlanNode& node, int row, Queries q) {
        struct Place {
            const ViewEntry* entry;
            int kv_index;
        };
        Place places[kMaxDraft + 2];
        int num_places = 0, kv_index = node.kv_begin, draft = a.draft_begin[row];
        for (int e = node.entry_begin; e < node.entry_end; ++e) {
            int count = a.entries[e].stop - a.entries[e].start;
            if (kv_index + count > draft) places[num_places++] = {a.entries + e, kv_index};
            kv_index += count;
        }
        int64_t bytes = kv_block_bytes(a.kv_type, head_dim);
        auto offset_of = [&](const ViewEntry& e) {
            return (static_cast<int64_t>(e.block) * a.num_kv_heads + task.kv_head) * bytes;
        };
        char* k = reinterpret_cast<char*>(scratch.widened);
        char* v = reinterpret_cast<char*>(scratch.widened + kBlockSize * head_dim);
        uint64_t left = a.draft_mask[row];
        for (int p = 0; p < num_places && left; ++p) {
            const ViewEntry& to = *places[p].entry;
            std::memcpy(k, a.k_cache + offset_of(to), bytes);
            std::memcpy(v, a.v_cache + offset_of(to), bytes);
            int lane = to.start + (draft > places[p].kv_index ? draft - places[p].kv_index : 0);
            for (int from = 0; lane < to.stop && left; ++lane, left &= left - 1) {
                int number = draft + __builtin_ctzll(left);
                while (number >=
                       places[from].kv_index + places[from].entry->stop - places[from].entry->start)
                    ++from;
                const ViewEntry& e = *places[from].entry;
                copy_token(a.kv_type, head_dim, a.k_cache + offset_of(e), a.v_cache + offset_of(e),
                           e.start + number - places[from].kv_index, k, v, lane);
            }
            Block block(k, v, head_dim);
            uint32_t seen = lanes_in_window(a, row, to, lane);
            uint32_t mask[1][kScoreRows];
            for (uint32_t& m : mask[0]) m = seen;
            int begin = (row - task.row_begin) * group;
            for (int tile = begin; seen && tile < begin + group; tile += kScoreRows) {
                int rows = begin + group - tile < kScoreRows ? begin + group - tile : kScoreRows;
                attend<1>(rows, q.from(tile), &block, mask,
                          {scratch.state.accumulator + static_cast<int64_t>(tile) * head_dim,
                           scratch.state.maximum + tile, scratch.state.sum + tile * kLanes});
            }
        }
    }

    void run() {
        float scale = a.softmax_scale * kLog2E;
        for (int i = 0; i < query_rows; ++i) {
            const float* source =
                a.q + (task.row_begin + i / group) * a.q_row_stride +
                (task.kv_head * group + i % group) * static_cast<int64_t>(head_dim);
            float* accumulator = scratch.state.accumulator + static_cast<int64_t>(i) * head_dim;
            for (int64_t d = 0; d < head_dim; ++d)
                scratch.plain.values[d * query_rows + i] = source[d] * scale;
            for (int d = 0; d < head_dim; d += kLanes) store(accumulator + d, zero());
            store(scratch.state.sum + i * kLanes, zero());
            scratch.state.maximum[i] = kNoScore;
        }
        Queries plain;
        open_queries(scratch.plain, query_rows, head_dim, 0, query_rows, &plain);
        for (int n = 0; n < a.num_nodes; ++n) node(a.nodes[n], plain);
        for (int i = 0; i < query_rows; ++i) {
            float sum = reduce_add(load(scratch.state.sum + i * kLanes));
            // A row that saw no key gives zero.
            Vec16 inverse = broadcast(sum == 0.0f ? 0.0f : 1.0f / sum);
            const float* source = scratch.state.accumulator + static_cast<int64_t>(i) * head_dim;
            float* target =
                a.out + (static_cast<int64_t>(task.row_begin + i / group) * a.num_heads +
                         task.kv_head * group + i % group) *
                            head_dim;
            for (int d = 0; d < head_dim; d += kLanes)
                store(target + d, mul(load(source + d), inverse));
        }
    }
};

template <class Block, class Queries>
void attention_typed(const AttentionArgs& a, const AttentionTask& task, float* scratch) {
    int group = a.num_heads / a.num_kv_heads;
    int query_rows = (task.row_end - task.row_begin) * group;
    AttentionScratch parts(scratch, query_rows, a.head_dim);
    AttentionLoop<Block, Queries>{a, task, parts, group, a.head_dim, query_rows}.run();
}

void attention(const AttentionArgs& a, const AttentionTask& task, float* scratch) {
    switch (a.kv_type) {
        case KvType::float32:
            return attention_typed<FloatBlock, FloatQueries>(a, task, scratch);
        case KvType::float16:
            return attention_typed<HalfBlock, FloatQueries>(a, task, scratch);
        case KvType::int8:
            return attention_typed<Int8Block, Int8Queries>(a, task, scratch);
    }
}

}  // namespace
