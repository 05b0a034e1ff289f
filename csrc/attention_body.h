// Branch attention: online softmax of a query row over the entries of its view, in their order.
//   s = q k^T log2(e) / sqrt(d);  p = 2^(s - m);  l = l + sum p;  acc = acc + p V
// and at the end out = acc / l. m follows the largest score lazily: it moves, and l and acc are
// scaled, only where a block exceeds it by kMaxLag, so that p stays below 2^kMaxLag (the idea is
// FlashAttention-4's). The state (m, l, acc) goes from a plan node to its children: a shared node
// is read once for all its rows, and each row still does the arithmetic that it would do alone.
#pragma once

#include "exp_body.h"
#include "kernel_table.h"

namespace {

constexpr int kScoreRows = 8;
constexpr float kMaxLag = 8.0f;
constexpr float kNoScore = -1e30f;  // finite: -inf - m must not become a NaN
constexpr uint32_t kAllKeys = 0xffffu;
constexpr float kLog2E = 1.44269504f;

// ---- a block of keys and values of one KV head, in each of its formats ----

struct FloatBlock {
    static constexpr bool narrow = false;
    const float* k;  // [head_dim][kBlockSize]
    const float* v;  // [kBlockSize][head_dim]
    int64_t head_dim;

    Vec16 key(int64_t d) const { return load(k + d * kBlockSize); }
    Vec16 value(int64_t t, int64_t d) const { return load(v + t * head_dim + d); }
};

struct HalfBlock {
    static constexpr bool narrow = true;
    const uint16_t* k;
    const uint16_t* v;
    int64_t head_dim;

    Vec16 key(int64_t d) const { return load_fp16(k + d * kBlockSize); }
    Vec16 value(int64_t t, int64_t d) const { return load_fp16(v + t * head_dim + d); }
};

// Keys have a scale for each token and kGroupSize dimensions, values one for each token.
struct Int8Block {
    static constexpr bool narrow = true;
    const int8_t *k, *v;
    int64_t head_dim;
    alignas(64) float k_scale[kMaxHeadDim / kGroupSize * kBlockSize];
    alignas(64) float v_scale[kBlockSize];

    Vec16 key(int64_t d) const {
        return mul(load_s8(k + d * kBlockSize), load(k_scale + d / kGroupSize * kBlockSize));
    }
    Vec16 value(int64_t t, int64_t d) const {
        return mul(load_s8(v + t * head_dim + d), broadcast(v_scale[t]));
    }
};

inline void open_block(const void* k, const void* v, int head_dim, FloatBlock* out) {
    *out = {static_cast<const float*>(k), static_cast<const float*>(v), head_dim};
}
inline void open_block(const void* k, const void* v, int head_dim, HalfBlock* out) {
    *out = {static_cast<const uint16_t*>(k), static_cast<const uint16_t*>(v), head_dim};
}
inline void open_block(const void* k, const void* v, int head_dim, Int8Block* out) {
    out->k = static_cast<const int8_t*>(k);
    out->v = static_cast<const int8_t*>(v);
    out->head_dim = head_dim;
    auto k_scale = reinterpret_cast<const uint16_t*>(out->k + kBlockSize * head_dim);
    auto v_scale = reinterpret_cast<const uint16_t*>(out->v + kBlockSize * head_dim);
    for (int i = 0; i * kGroupSize < head_dim; ++i)
        store(out->k_scale + i * kBlockSize, load_fp16(k_scale + i * kBlockSize));
    store(out->v_scale, load_fp16(v_scale));
}

template <class Block>
inline FloatBlock expand(const Block& block, float* scratch) {
    float* values = scratch + block.head_dim * kBlockSize;
    for (int d = 0; d < block.head_dim; ++d) store(scratch + d * kBlockSize, block.key(d));
    for (int t = 0; t < kBlockSize; ++t)
        for (int d = 0; d < block.head_dim; d += kLanes)
            store(values + t * block.head_dim + d, block.value(t, d));
    return {scratch, values, block.head_dim};
}

// ---- a tile of up to kScoreRows query rows against up to two blocks ----

struct SoftmaxState {
    float* accumulator;  // [rows, head_dim]
    float* maximum;      // [rows]
    float* sum;          // [rows, kLanes]: each lane sums its own keys
};

// Queries lie transposed, [head_dim][stride]: one load address serves all rows of a tile.
template <int Rows, int Blocks, class Block>
inline void scores_tile(const float* q, int64_t stride, const Block* blocks, int64_t head_dim,
                        Vec16 (*scores)[kScoreRows]) {
    Vec16 sum[Rows][Blocks];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) sum[r][b] = zero();
    for (int64_t d = 0; d < head_dim; ++d) {
        Vec16 k[Blocks];
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) k[b] = blocks[b].key(d);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            Vec16 of_row = broadcast(q[d * stride + r]);
#pragma GCC unroll 2
            for (int b = 0; b < Blocks; ++b) sum[r][b] = fma(of_row, k[b], sum[r][b]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) scores[b][r] = sum[r][b];
}

template <int Blocks, class Block>
inline void scores_rows(int rows, const float* q, int64_t stride, const Block* blocks,
                        int64_t head_dim, Vec16 (*scores)[kScoreRows]) {
    for (int r = 0; r < rows;) {
        int tile = rows - r < kScoreTile ? rows - r : kScoreTile;
        // Row r of block 0; block 1 follows kScoreRows later.
        auto target = reinterpret_cast<Vec16(*)[kScoreRows]>(&scores[0][r]);
        switch (tile) {
#define PD_ROWS(R)                                                                               \
    case R:                                                                                      \
        scores_tile<(R <= kScoreTile ? R : 1), Blocks>(q + r, stride, blocks, head_dim, target); \
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
template <int Blocks, class Block>
inline void attend(int rows, const float* q, int64_t stride, const Block* blocks, int64_t head_dim,
                   const uint32_t (*mask)[kScoreRows], SoftmaxState state) {
    Vec16 scores[Blocks][kScoreRows];
    alignas(64) float p[kScoreRows * kBlockSize];
    scores_rows<Blocks>(rows, q, stride, blocks, head_dim, scores);
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

// Keys of entry `e`, the first of which is number kv_index of the row's view, that the row sees.
inline uint32_t visible_keys(const AttentionArgs& a, int row, const ViewEntry& e, int kv_index) {
    int seen = a.num_visible[row] - kv_index;
    int stop = e.start + seen < e.stop ? e.start + seen : e.stop;
    uint32_t mask = stop <= e.start ? 0u : ((1u << stop) - 1u) & ~((1u << e.start) - 1u);
    if (a.sliding_window) {
        int oldest = a.positions[row] - a.sliding_window + 1 - e.position;
        if (oldest >= kBlockSize) return 0u;
        if (oldest > 0) mask &= ~0u << (e.start + oldest);
    }
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

struct AttentionScratch {
    AttentionScratch(float* p, int query_rows, int head_dim) {
        int64_t size = static_cast<int64_t>(query_rows) * head_dim;
        q = p;
        rotated = q + size;
        state.accumulator = rotated + size;
        expanded = state.accumulator + size;
        state.sum = expanded + 2 * kScoreBlocks * kBlockSize * head_dim;
        state.maximum = state.sum + query_rows * kLanes;
    }
    float *q, *rotated, *expanded;
    SoftmaxState state;
};

template <class Block>
struct AttentionLoop {
    const AttentionArgs& a;
    const AttentionTask& task;
    AttentionScratch scratch;
    int group, head_dim, query_rows;

    // Entries [e, e + Blocks) for query rows [begin, end).
    template <int Blocks>
    void entries(const ViewEntry* e, int kv_index, const float* q, int begin, int end,
                 bool all_visible) {
        Block blocks[Blocks];
        int kv[Blocks];
        int64_t bytes = kv_block_bytes(a.kv_type, head_dim);
        for (int b = 0; b < Blocks; ++b) {
            int64_t offset =
                (static_cast<int64_t>(e[b].block) * a.num_kv_heads + task.kv_head) * bytes;
            open_block(a.k_cache + offset, a.v_cache + offset, head_dim, &blocks[b]);
            kv[b] = kv_index;
            kv_index += e[b].stop - e[b].start;
        }
        // A narrow block is widened once where several tiles read it.
        if (Block::narrow && end - begin > kScoreRows) {
            FloatBlock expanded[Blocks];
            for (int b = 0; b < Blocks; ++b)
                expanded[b] = expand(blocks[b], scratch.expanded + 2 * b * kBlockSize * head_dim);
            tiles<Blocks>(e, kv, expanded, q, begin, end, all_visible);
        } else {
            tiles<Blocks>(e, kv, blocks, q, begin, end, all_visible);
        }
    }

    template <int Blocks, class Any>
    void tiles(const ViewEntry* e, const int* kv, const Any* blocks, const float* q, int begin,
               int end, bool all_visible) {
        for (int tile = begin; tile < end; tile += kScoreRows) {
            int rows = end - tile < kScoreRows ? end - tile : kScoreRows;
            uint32_t mask[Blocks][kScoreRows], seen = 0;
            for (int b = 0; b < Blocks; ++b)
                for (int i = 0; i < rows; ++i) {
                    bool same = i > 0 && (tile + i) % group != 0;
                    mask[b][i] =
                        all_visible ? ((1u << e[b].stop) - 1u) & ~((1u << e[b].start) - 1u)
                        : same ? mask[b][i - 1]
                               : visible_keys(a, task.row_begin + (tile + i) / group, e[b], kv[b]);
                    seen |= mask[b][i];
                }
            if (!seen) continue;
            attend<Blocks>(rows, q + tile, query_rows, blocks, head_dim, mask,
                           {scratch.state.accumulator + static_cast<int64_t>(tile) * head_dim,
                            scratch.state.maximum + tile, scratch.state.sum + tile * kLanes});
        }
    }

    const float* query(int rotation, int begin, int end, int& rotated_by) const {
        if (rotation == 0) return scratch.q;
        if (rotation != rotated_by)
            rotate_queries(scratch.q, query_rows, begin, end,
                           a.rotation_cos + static_cast<int64_t>(rotation) * (head_dim / 2),
                           a.rotation_sin + static_cast<int64_t>(rotation) * (head_dim / 2),
                           head_dim, scratch.rotated);
        rotated_by = rotation;
        return scratch.rotated;
    }

    void node(const PlanNode& node) {
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
        int kv_index = node.kv_begin, rotated_by = 0;
        for (int e = node.entry_begin; e < node.entry_end;) {
            const ViewEntry* entry = a.entries + e;
            const float* q = query(entry->rotation, begin, end, rotated_by);
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
    }

    void run() {
        float scale = a.softmax_scale * kLog2E;
        for (int i = 0; i < query_rows; ++i) {
            const float* source =
                a.q + (task.row_begin + i / group) * a.q_row_stride +
                (task.kv_head * group + i % group) * static_cast<int64_t>(head_dim);
            float* accumulator = scratch.state.accumulator + static_cast<int64_t>(i) * head_dim;
            for (int64_t d = 0; d < head_dim; ++d)
                scratch.q[d * query_rows + i] = source[d] * scale;
            for (int d = 0; d < head_dim; d += kLanes) store(accumulator + d, zero());
            store(scratch.state.sum + i * kLanes, zero());
            scratch.state.maximum[i] = kNoScore;
        }
        for (int n = 0; n < a.num_nodes; ++n) node(a.nodes[n]);
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

template <class Block>
void attention_typed(const AttentionArgs& a, const AttentionTask& task, float* scratch) {
    int group = a.num_heads / a.num_kv_heads;
    int query_rows = (task.row_end - task.row_begin) * group;
    AttentionLoop<Block>{a, task, {scratch, query_rows, a.head_dim}, group, a.head_dim, query_rows}
        .run();
}

void attention(const AttentionArgs& a, const AttentionTask& task, float* scratch) {
    switch (a.kv_type) {
        case KvType::float32:
            return attention_typed<FloatBlock>(a, task, scratch);
        case KvType::float16:
            return attention_typed<HalfBlock>(a, task, scratch);
        case KvType::int8:
            return attention_typed<Int8Block>(a, task, scratch);
    }
}

}  // namespace
