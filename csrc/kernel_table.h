// The CPU kernels as a table of function pointers, one table for each instruction set.
// The argument structs hold raw pointers and strides; kernels/cpu.py checks them beforehand.
#pragma once

#include <stdint.h>

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };
enum class WeightType { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int kLanes = 16;      // floats in a Vec16, columns of a weight panel
constexpr int kBlockSize = 16;  // tokens of a KV block: one lane of a score vector a token
constexpr int kPanels = 2;      // weight panels of one product task
constexpr int kChunkK =
    128;  // products are summed in chunks of this many terms (see linear_body.h)
constexpr int kRowBlock = 96;  // rows of one product task

// y[m, n] = sum_k x[m, k] * w[n, k] + bias[n], with w packed in panels [ceil(N / 16)][K][16].
struct LinearArgs {
    const float* x;
    int64_t x_stride;
    const void* weight;
    WeightType weight_type;
    const float* bias;  // [N] or null
    float* y;
    int64_t y_stride;
    int num_rows, in_features, out_features;

    int row_blocks() const { return (num_rows + kRowBlock - 1) / kRowBlock; }
    int column_blocks() const { return (out_features + kLanes * kPanels - 1) / (kLanes * kPanels); }
    int num_tasks() const { return row_blocks() * column_blocks(); }
};

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
    const float* k_cache;  // [num_blocks, num_kv_heads, head_dim, kBlockSize]
    const float* v_cache;  // [num_blocks, num_kv_heads, kBlockSize, head_dim]
    float* out;            // [num_rows, num_heads, head_dim], contiguous
    int num_heads, num_kv_heads, head_dim;
    float softmax_scale;
    int sliding_window;  // 0: none
    const ViewEntry* entries;
    const PlanNode* nodes;  // parents before children
    int num_nodes;
    const int32_t*
        num_visible;  // [num_rows] keys that the row may see, counted from its view's start
    const int32_t* positions;   // [num_rows]
    const float* rotation_cos;  // [num_rotations, head_dim / 2]
    const float* rotation_sin;
};

// Rows [row_begin, row_end) of one KV head; `scratch` holds attention_scratch_floats() floats.
struct AttentionTask {
    int kv_head, row_begin, row_end;
};

struct SampleArgs {
    const float* logits;  // [num_rows, vocab_size], row-strided
    int64_t logits_stride;
    int vocab_size;
    const float* temperature;  // [num_rows]; 0 is greedy
    const int32_t* top_k;      // [num_rows]; 0 is off
    const float* top_p;        // [num_rows]; 1 is off
    const float* min_p;        // [num_rows]; 0 is off
    const double* uniform;     // [num_rows] in [0, 1)
    int64_t* token;            // [num_rows]; -1 where the row holds a NaN or no finite value
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

struct KernelTable {
    void (*linear)(const LinearArgs&, int task);
    void (*attention)(const AttentionArgs&, const AttentionTask&, float* scratch);
    // out[r, :] = x[r, :] / rms(x[r, :]) * weight; with residual: residual += x first, in place.
    void (*rms_norm)(const float* x, int64_t x_stride, float* residual, const float* weight,
                     float eps, float* out, int num_columns, int row_begin, int row_end);
    // out[r, i] = silu(x[r, i]) * x[r, n + i]
    void (*silu_mul)(const float* x, int64_t x_stride, float* out, int num_columns, int row_begin,
                     int row_end);
    // e[i] = exp((x[i] - shift) * scale); returns the sum in the fixed order of reduce_add.
    float (*exp_shifted)(const float* x, int n, float scale, float shift, float* e);
    float (*row_max)(const float* x, int n);
    void (*logit_stats)(const LogitStatsArgs&, int row);
};

inline int64_t attention_scratch_floats(int rows, int group, int head_dim) {
    // queries, one rotated query tile, accumulators, then m and l of each query row
    return static_cast<int64_t>(rows) * group * (2 * head_dim + 2) +
           static_cast<int64_t>(rows) * group * head_dim + 64;
}

const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();    // null where not compiled
const KernelTable* avx512_kernels();  // null where not compiled
