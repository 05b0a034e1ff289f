#include "decoder.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace {

void check_range(const char* name, int64_t value, int64_t end) {
    if (value < 0 || value >= end)
        throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(end) +
                                    "), got " + std::to_string(value));
}

}  // namespace

void Decoder::linear(const float* x, const DecoderLinear& w, float* y, int rows) {
    ops_.linear(x, w.weight->in_features(), *w.weight, w.bias, y, w.weight->out_features(), rows);
}

void Decoder::forward(const int64_t* ids, const int32_t* positions, const int64_t* slots,
                      const AttentionPlan& plan, const DecoderCache& cache, float* out) {
    const DecoderShape& s = shape_;
    int rows = plan.num_rows(), hidden = s.hidden_size, head_dim = s.head_dim;
    int q_width = s.num_heads * head_dim, kv_width = s.num_kv_heads * head_dim;
    int64_t qkv_width = q_width + 2 * kv_width;
    int64_t widest = qkv_width, inner = 0;
    for (const DecoderLayer& layer : layers_) {
        widest = std::max<int64_t>(widest, layer.gate_up.weight->out_features());
        inner = std::max<int64_t>(inner, layer.down.weight->in_features());
    }
    auto fit = [rows](std::vector<float>& v, int64_t width) {
        if (v.size() < static_cast<size_t>(rows * width)) v.resize(rows * width);
    };
    fit(residual_, hidden);
    fit(wide_, widest);
    fit(narrow_, std::max<int64_t>(hidden, inner));
    fit(attended_, q_width);
    float *residual = residual_.data(), *wide = wide_.data(), *narrow = narrow_.data();
    float *attended = attended_.data(), *x = out;

    for (int r = 0; r < rows; ++r) {
        check_range("token ids", ids[r], embedding_->out_features());
        check_range("positions", positions[r], s.max_seq_len);
        embedding_->read_row(static_cast<int>(ids[r]), residual + static_cast<int64_t>(r) * hidden);
    }
    ops_.rms_norm(residual, hidden, nullptr, first_norm_, s.rms_norm_eps, x, rows, hidden);
    for (size_t i = 0; i < layers_.size(); ++i) {
        const DecoderLayer& layer = layers_[i];
        linear(x, layer.qkv, wide, rows);
        float *q = wide, *k = wide + q_width, *v = k + kv_width;
        // A head norm's rows are the heads, which lie next to each other in each row only.
        for (int r = 0; layer.q_norm && r < rows; ++r) {
            float *of_q = q + r * qkv_width, *of_k = k + r * qkv_width;
            ops_.rms_norm(of_q, head_dim, nullptr, layer.q_norm, s.rms_norm_eps, of_q, s.num_heads,
                          head_dim);
            ops_.rms_norm(of_k, head_dim, nullptr, layer.k_norm, s.rms_norm_eps, of_k,
                          s.num_kv_heads, head_dim);
        }
        // Queries and keys are neighbours: one call turns both.
        ops_.rope(
            {q, qkv_width, s.num_heads + s.num_kv_heads, head_dim, s.cosine, s.sine, positions},
            rows);
        char* k_cache = cache.storage + 2 * i * cache.plane_bytes;
        char* v_cache = k_cache + cache.plane_bytes;
        ops_.kv_store({k, v, qkv_width, qkv_width, k_cache, v_cache, cache.type, slots,
                       s.num_kv_heads, head_dim},
                      rows);
        AttentionArgs attention{};
        attention.q = q;
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
        linear(attended, layer.output, narrow, rows);
        ops_.rms_norm(narrow, hidden, residual, layer.post_attention_norm, s.rms_norm_eps, x, rows,
                      hidden);
        linear(x, layer.gate_up, wide, rows);
        int columns = layer.down.weight->in_features();
        ops_.silu_mul(wide, 2 * static_cast<int64_t>(columns), narrow, rows, columns);
        // The products of a layer are done with `wide` before it is written again.
        linear(narrow, layer.down, wide, rows);
        ops_.rms_norm(wide, hidden, residual, layer.next_norm, s.rms_norm_eps, x, rows, hidden);
    }
}
