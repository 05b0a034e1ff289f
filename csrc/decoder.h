// Layers of a transformer in one call: the operations of CpuOps, in the order in which
// Transformer.forward (Python) composes them.
#pragma once

#include <memory>
#include <vector>

#include "attention_plan.h"
#include "cpu_ops.h"
#include "packed_weight.h"

struct DecoderShape {
    int hidden_size, num_heads, num_kv_heads, head_dim, max_seq_len;
    float rms_norm_eps, softmax_scale;
    const float *cosine, *sine;  // [max_seq_len, head_dim / 2]
};

struct DecoderLinear {
    const PackedWeight* weight;
    const float* bias;  // or null
};

struct DecoderLayer {
    DecoderLinear qkv, output, gate_up, down;
    const float *q_norm, *k_norm;  // [head_dim], or null
    const float* post_attention_norm;
    const float* next_norm;
    int sliding_window;  // 0: none
    int cache_layer;     // of the cache, where its keys and values are
};

struct DecoderCache {
    KvType type;
    char* storage;        // [num_layers, 2, num_blocks, num_kv_heads] blocks
    int64_t plane_bytes;  // of the keys, or the values, of one layer
};

class Decoder {
  public:
    Decoder(CpuOps& ops, DecoderShape shape, const PackedWeight* embedding, const float* first_norm)
        : ops_(ops), shape_(shape), embedding_(embedding), first_norm_(first_norm) {}

    void add_layer(const DecoderLayer& layer);

    // weight: [hidden_size, 2 * hidden_size]. The layers then begin with
    //     fusion(feature of the token before, embedding of the token)
    // in place of the embedding.
    void set_fusion(const DecoderLinear& fusion) { fusion_ = fusion; }
    bool has_fusion() const { return fusion_.weight != nullptr; }

    // ids, positions, slots: one a row of the plan; features: [num_rows, hidden_size], read with a
    // fusion alone; out: [num_rows, hidden_size] after the last norm
    void forward(const int64_t* ids, const int32_t* positions, const int64_t* slots,
                 const float* features, const AttentionPlan& plan, const DecoderCache& cache,
                 float* out);

    // What `forward` would store of these rows in the first layer, and nothing else of it.
    void store(const int64_t* ids, const int32_t* positions, const int64_t* slots,
               const float* features, int rows, const DecoderCache& cache);

  private:
    // Of a step: what all of its rows have in common.
    struct Step {
        const int32_t* positions;
        const int64_t* slots;
        const AttentionPlan* plan;
        const DecoderCache* cache;
        float* x;  // [num_rows, hidden_size]: normalised, what the next layer reads
    };
    struct Rows {
        int begin, end;
        float *wide, *narrow;  // room for kRowsAtATime of them
    };

    void linear(const float* x, const DecoderLinear& w, float* y, int rows);
    // -> residual_ [rows, hidden_size]
    void embed(const int64_t* ids, const int32_t* positions, const float* features, int rows);
    // x -> qkv_; keys and values go to the cache
    void project(const DecoderLayer& layer, const Step& step, int begin, int end);
    void attend(const DecoderLayer& layer, const Step& step, int begin, int end);
    // attended_ -> residual_, and x for the next layer
    void finish(const DecoderLayer& layer, const Step& step, const Rows& rows);
    int num_parts(int rows) const;

    CpuOps& ops_;
    DecoderShape shape_;
    std::vector<DecoderLayer> layers_;
    int64_t num_bytes_ = 0, widest_ = 0, inner_ = 0;
    bool quantized_ = false;
    const PackedWeight* embedding_;
    const float* first_norm_;
    DecoderLinear fusion_{nullptr, nullptr};
    std::vector<float> residual_, pair_, qkv_, attended_, wide_, narrow_;
};
