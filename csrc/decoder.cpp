#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace {

constexpr int kRowsAtATime = 192;

void check_range(const char* name, int64_t value, int64_t end) {
    if (value < 0 || value >= end)
        throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(end) +
                                    "), got " + std::to_string(value));
}

void fit(std::vector<float>& v, int64_t size) {
    if (v.size() < static_cast<size_t>(size)) v.resize(size);
}

}  // namespace

void Decoder::linear(const float* x, const DecoderLinear& w, float* y, int rows) {
    ops_.linear(x, w.weight->in_features(), *w.weight, w.bias, y, w.weight->out_features(), rows);
}

void Decoder::embed(const int64_t* ids, const int32_t* positions, const float* features, int rows) {
    int64_t hidden = shape_.hidden_size;
    fit(residual_, rows * hidden);
    // A row of a pair is the feature and then the embedding.
    int64_t stride = has_fusion() ? 2 * hidden : hidden;
    if (has_fusion()) fit(pair_, rows * stride);
    float* embedded = has_fusion() ? pair_.data() + hidden : residual_.data();
    for (int r = 0; r < rows; ++r) {
        check_range("token ids", ids[r], embedding_->out_features());
        check_range("positions", positions[r], shape_.max_seq_len);
        embedding_->read_row(static_cast<int>(ids[r]), embedded + r * stride);
        if (has_fusion())
            std::memcpy(pair_.data() + r * stride, features + r * hidden, hidden * sizeof(float));
    }
    if (has_fusion()) linear(pair_.data(), fusion_, residual_.data(), rows);
}

void Decoder::project(const DecoderLayer& layer, const float* x, const int32_t* positions,
                      const int64_t* slots, int rows, const DecoderCache& cache) {
    const DecoderShape& s = shape_;
    int head_dim = s.head_dim, q_width = s.num_heads * head_dim;
    int64_t qkv_width = q_width + 2 * s.num_kv_heads * head_dim;
    fit(qkv_, rows * qkv_width);
    linear(x, layer.qkv, qkv_.data(), rows);
    float *q = qkv_.data(), *k = q + q_width, *v = k + s.num_kv_heads * head_dim;
    // A head norm's rows are the heads, which lie next to each other in each row only.
    for (int r = 0; layer.q_norm && r < rows; ++r) {
        float *of_q = q + r * qkv_width, *of_k = k + r * qkv_width;
        ops_.rms_norm(of_q, head_dim, nullptr, layer.q_norm, s.rms_norm_eps, of_q, s.num_heads,
                      head_dim);
        ops_.rms_norm(of_k, head_dim, nullptr, layer.k_norm, s.rms_norm_eps, of_k, s.num_kv_heads,
                      head_dim);
    }
    // Queries and keys are neighbours: one call turns both.
    ops_.rope({q, qkv_width, s.num_heads + s.num_kv_heads, head_dim, s.cosine, s.sine, positions},
              rows);
    char* k_cache = cache.storage + 2 * int64_t{layer.cache_layer} * cache.plane_bytes;
    char* v_cache = k_cache + cache.plane_bytes;
    ops_.kv_store(
        {k, v, qkv_width, qkv_width, k_cache, v_cache, cache.type, slots, s.num_kv_heads, head_dim},
        rows);
}

void Decoder::store(const int64_t* ids, const int32_t* positions, const int64_t* slots,
                    const float* features, int rows, const DecoderCache& cache) {
    int hidden = shape_.hidden_size;
    embed(ids, positions, features, rows);
    fit(narrow_, int64_t{rows} * hidden);
    ops_.rms_norm(residual_.data(), hidden, nullptr, first_norm_, shape_.rms_norm_eps,
                  narrow_.data(), rows, hidden);
    project(layers_.at(0), narrow_.data(), positions, slots, rows, cache);
}

void Decoder::forward(const int64_t* ids, const int32_t* positions, const int64_t* slots,
                      const float* features, const AttentionPlan& plan, const DecoderCache& cache,
                      float* out) {
    const DecoderShape& s = shape_;
    int rows = plan.num_rows(), hidden = s.hidden_size, head_dim = s.head_dim;
    int q_width = s.num_heads * head_dim;
    int64_t qkv_width = q_width + 2 * s.num_kv_heads * head_dim;
    int64_t widest = hidden, inner = 0;
    for (const DecoderLayer& layer : layers_) {
        widest = std::max<int64_t>(widest, layer.gate_up.weight->out_features());
        inner = std::max<int64_t>(inner, layer.down.weight->in_features());
    }
    // What follows attention is done some rows at a time: its widest rows then stay in the cache.
    int block = std::min(rows, kRowsAtATime);
    embed(ids, positions, features, rows);
    fit(attended_, static_cast<int64_t>(rows) * q_width);
    fit(wide_, block * widest);
    fit(narrow_, block * std::max<int64_t>(hidden, inner));
    float *residual = residual_.data(), *attended = attended_.data();
    float *wide = wide_.data(), *narrow = narrow_.data(), *x = out;

    ops_.rms_norm(residual, hidden, nullptr, first_norm_, s.rms_norm_eps, x, rows, hidden);
    for (const DecoderLayer& layer : layers_) {
        project(layer, x, positions, slots, rows, cache);
        char* k_cache = cache.storage + 2 * int64_t{layer.cache_layer} * cache.plane_bytes;
        char* v_cache = k_cache + cache.plane_bytes;
        AttentionArgs attention{};
        attention.q = qkv_.data();
        attention.q_row_stride = qkv_width;
        attention.k_cache = k_cache;
        attention.v_cache = v_cache;
        attention.kv_type = cache.type;
        attention.out = attended;
        attention.num_heads = s.num_heads;
        attention.num_kv_heads = s.num_kv_heads;
        attention.head_dim = head_dim;
        attention.softmax_scale = s.softmax_scale;
        attention.sliding_window = layer.sliding_window;
        ops_.attention(attention, plan);
        for (int begin = 0; begin < rows; begin += block) {
            int n = std::min(block, rows - begin);
            float* x_block = x + static_cast<int64_t>(begin) * hidden;
            float* residual_block = residual + static_cast<int64_t>(begin) * hidden;
            linear(attended + static_cast<int64_t>(begin) * q_width, layer.output, narrow, n);
            ops_.rms_norm(narrow, hidden, residual_block, layer.post_attention_norm, s.rms_norm_eps,
                          x_block, n, hidden);
            linear(x_block, layer.gate_up, wide, n);
            int columns = layer.down.weight->in_features();
            ops_.silu_mul(wide, 2 * static_cast<int64_t>(columns), narrow, n, columns);
            linear(narrow, layer.down, wide, n);
            ops_.rms_norm(wide, hidden, residual_block, layer.next_norm, s.rms_norm_eps, x_block, n,
                          hidden);
        }
    }
}
