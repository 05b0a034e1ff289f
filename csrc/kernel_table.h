// The CPU kernels as a table of function pointers, one table for each instruction set.
// The argument structs hold raw pointers and strides; kernels/cpu.py checks them beforehand.
#pragma once

#include <stdint.h>

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2, avx512_vnni = 3 };

// int8 is w = d q with q in [-127, 127]; int4_bytes is w = d q + b; int4 is that with q in [0,
// 15]. d and b are fp16, one for each output and group of inputs.
enum class WeightType {
    float32 = 0,
    bfloat16 = 1,
    float16 = 2,
    int8 = 3,
    int4_bytes = 4,
    int4 = 5
};
enum class KvType { float32 = 0, float16 = 1, int8 = 2 };

constexpr int kLanes = 16;      // floats in a Vec16, columns of a weight panel
constexpr int kBlockSize = 16;  // tokens of a KV block: one lane of a score vector a token
constexpr int kPanels = 2;      // weight panels of one product task
constexpr int kChunkK = 128;    // float products are summed in chunks of this many terms
constexpr int kRowBlock = 96;   // rows of one product task
constexpr int kGroupSize = 32;  // inputs that share a scale in quantised weights and activations

constexpr int kMaxHeadDim = 256;

struct LinearShape {
    int num_rows, in_features, out_features;

    int row_blocks() const { return (num_rows + kRowBlock - 1) / kRowBlock; }
    int column_blocks() const { return (out_features + kLanes * kPanels - 1) / (kLanes * kPanels); }
    int num_tasks() const { return row_blocks() * column_blocks(); }
    int num_groups() const { return (in_features + kGroupSize - 1) / kGroupSize; }
};

// y[m, n] = sum_k x[m, k] * w[n, k] + bias[n], with w packed in panels [ceil(N / 16)][K][16].
struct LinearArgs : LinearShape {
    const float* x;
    int64_t x_stride;
    const void* weight;
    WeightType weight_type;
    const float* bias;  // [N] or null
    float* y;
    int64_t y_stride;
};

// Rows of activations, in groups of kGroupSize; the last group of a row is padded with zeros.
struct QuantizedRows {
    int8_t* values;     // [rows][groups * kGroupSize]
    float* scale;       // [rows][groups]
    float* scaled_sum;  // [rows][groups]: scale * sum of the values
    int32_t* offset;    // [rows][groups]: -128 * sum of the values
};

// Panels of 16 outputs: [groups][kGroupSize / 4][16][4] bytes, of q + 128 for int8 and of q for
// int4_bytes; for int4 [groups][kGroupSize / 8][16][4] bytes that hold quad j in their low and quad
// j + 4 in their high halves. Then d as [groups][16] fp16; then, but for int8, b in the same shape.
struct QuantizedLinearArgs : LinearShape {
    QuantizedRows x;
    const uint8_t* weight;
    WeightType weight_type;
    const float* bias;  // [N] or null
    float* y;
    int64_t y_stride;
};

constexpr bool is_quantized(WeightType type) {
    return type >= WeightType::int8;
}
constexpr int quantized_group_bytes(WeightType type) {
    return kGroupSize * kLanes / (type == WeightType::int4 ? 2 : 1);
}
constexpr int64_t quantized_panel_bytes(WeightType type, int groups) {
    int scale_bytes = kLanes * 2 * (type == WeightType::int8 ? 1 : 2);
    int64_t bytes = static_cast<int64_t>(groups) * (quantized_group_bytes(type) + scale_bytes);
    return (bytes + 63) / 64 * 64;
}

// Keys or values of one KV head in one block. For int8 the scales, fp16, follow the values.
constexpr int64_t kv_block_bytes(KvType type, int head_dim) {
    int64_t values = static_cast<int64_t>(head_dim) * kBlockSize;
    int64_t scales = static_cast<int64_t>((head_dim + kGroupSize - 1) / kGroupSize) * kBlockSize;
    return type == KvType::float32   ? 4 * values
           : type == KvType::float16 ? 2 * values
                                     : values + 2 * scales;
}

// One entry of a branch's view: keys [start, stop) of a block.
struct ViewEntry {
    int32_t block, start, stop;
    int32_t rotation;  // row of the rotation tables that the query is turned by first; 0: none
    int32_t position;  // position of key `start`, for the sliding window
};

// Rows [row_begin, row_end) all read entries [entry_begin, entry_end), the first key of which is
// number kv_begin of each row's view.
struct PlanNode {
    int32_t row_begin, row_end, entry_begin, entry_end, kv_begin;
};

struct AttentionArgs {
    const float* q;  // [num_rows, num_heads, head_dim]
    int64_t q_row_stride;
    const char*
        k_cache;  // [num_blocks, num_kv_heads] of [head_dim, kBlockSize], see kv_block_bytes
    const char* v_cache;  // [num_blocks, num_kv_heads] of [kBlockSize, head_dim]
    KvType kv_type;
    float* out;  // [num_rows, num_heads, head_dim], contiguous
    int num_heads, num_kv_heads, head_dim;
    float softmax_scale;
    int sliding_window;  // 0: none
    const ViewEntry* entries;
    const PlanNode* nodes;  // parents before children
    int num_nodes;
    const int32_t*
        num_visible;  // [num_rows] keys that the row may see, counted from its view's start
    const int32_t* positions;  // [num_rows]
    // Null where no row is a draft. Otherwise bit j of draft_mask[row] tells whether the row sees
    // key draft_begin[row] + j of its view; earlier keys are seen by all rows of a sequence.
    const uint64_t* draft_mask;
    const int32_t* draft_begin;
    const float* rotation_cos;  // [num_rotations, head_dim / 2]
    const float* rotation_sin;
};

// Rows [row_begin, row_end) of one KV head; `scratch` holds attention_scratch_floats() floats.
struct AttentionTask {
    int kv_head, row_begin, row_end;
};

struct KvStoreArgs {
    const float *k, *v;  // [num_rows, num_kv_heads, head_dim], row-strided
    int64_t k_stride, v_stride;
    char *k_cache, *v_cache;
    KvType kv_type;
    const int64_t* slots;  // [num_rows]: block * kBlockSize + offset
    int num_kv_heads, head_dim;
};

struct RopeArgs {
    float* x;  // [num_rows, num_heads, head_dim], in place
    int64_t row_stride;
    int num_heads, head_dim;
    const float *cosine, *sine;  // [max_seq_len, head_dim / 2]
    const int32_t* positions;    // [num_rows]
};

struct FilterArgs {
    const float* logits;  // [num_rows, vocab_size], row-strided
    int64_t logits_stride;
    int vocab_size;
    const float* temperature;  // [num_rows]; 0 is greedy
    const int32_t* top_k;      // [num_rows]; 0 is off
    const float* top_p;        // [num_rows]; 1 is off
    const float* min_p;        // [num_rows]; 0 is off
};

struct SampleArgs : FilterArgs {
    const double* uniform;  // [num_rows] in [0, 1)
    int64_t* token;         // [num_rows]; -1 where the row holds a NaN or no finite value
};

struct ProbabilityArgs : FilterArgs {
    float* p;  // [num_rows, vocab_size]; NaN where the row holds a NaN or no finite value
};

// Of each row: log(sum exp), the entropy in nats, and the mean logit.
struct LogitStatsArgs {
    const float* logits;
    int64_t logits_stride;
    int vocab_size;
    float* lse;      // [num_rows]
    float* entropy;  // [num_rows]
    float* mean;     // [num_rows]
};

// Which tokens of each row are allowed: bits in words, the lowest bit first.
struct MaskLogitsArgs {
    const float* logits;  // [num_rows, vocab_size], row-strided
    int64_t logits_stride;
    int vocab_size;
    const int32_t* words;  // [num_rows, ceil(vocab_size / 32)]
    float* out;            // [num_rows, vocab_size]; -inf where the bit is 0
};

struct TopLogitsArgs {
    const float* logits;
    int64_t stride;
    int vocab_size, k;  // k is at most vocab_size
    float* values;      // [num_rows, k], the highest first
    int64_t* tokens;    // of equal values the lowest first
};

struct KernelTable {
    void (*linear)(const LinearArgs&, int task);
    void (*quantized_linear)(const QuantizedLinearArgs&, int task);
    void (*attention)(const AttentionArgs&, const AttentionTask&, float* scratch);
    // Row by row: scale = max |x| / 127 of each group, q = round(x / scale).
    void (*quantize_rows)(const float* x, int64_t x_stride, int num_columns,
                          const QuantizedRows& out, int row_begin, int row_end);
    // out[r, :] = x[r, :] / rms(x[r, :]) * weight; with residual: residual += x first, in place.
    void (*rms_norm)(const float* x, int64_t x_stride, float* residual, const float* weight,
                     float eps, float* out, int num_columns, int row_begin, int row_end);
    // out[r, i] = silu(x[r, i]) * x[r, n + i]
    void (*silu_mul)(const float* x, int64_t x_stride, float* out, int num_columns, int row_begin,
                     int row_end);
    // Half-split: (a, b) -> (a cos - b sin, b cos + a sin).
    void (*rope)(const RopeArgs&, int row_begin, int row_end);
    void (*kv_store)(const KvStoreArgs&, int row_begin, int row_end);
    // e[i] = exp((x[i] - shift) * scale); returns the sum in the fixed order of reduce_add.
    float (*exp_shifted)(const float* x, int n, float scale, float shift, float* e);
    float (*row_max)(const float* x, int n);
    float (*kept_mass)(const float* e, int n, float cut);
    int (*keep)(const float* e, int n, float cut, float* out);
    // out[i] = e[i] * factor where e[i] is at least `cut`, else 0
    void (*scale_kept)(const float* e, int n, float cut, float factor, float* out);
    // sum_i max(scale p[i] - c q[i], 0) in fp64, in a fixed order; a NaN stays one. q is not read
    // where c is 0.
    double (*residual_mass)(const float* p, const float* q, double scale, double c, int n);
    void (*logit_stats)(const LogitStatsArgs&, int row);
    void (*mask_logits)(const MaskLogitsArgs&, int row);
    // Arithmetic at its fastest; returns the operations done.
    double (*float_roofline)(int repeats, float* sink);
    double (*int8_roofline)(int repeats, float* sink);
};

inline int64_t attention_scratch_floats(int query_rows, int head_dim) {
    int64_t groups = (head_dim + kGroupSize - 1) / kGroupSize;
    // The state (acc, l and m), plain and turned queries with their rounded forms, and two widened
    // blocks.
    return query_rows * (head_dim + kLanes + 1 + 2 * (head_dim + groups * (2 + kGroupSize / 4))) +
           4 * kBlockSize * head_dim;
}

const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();         // null where not compiled
const KernelTable* avx512_kernels();       // null where not compiled
const KernelTable* avx512_vnni_kernels();  // null where not compiled
