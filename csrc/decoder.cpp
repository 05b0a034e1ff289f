#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "thread_pool.h"

namespace {

constexpr int kRowsAtATime = 192;
// Weights that a core reads again and again from near by, and rows that are worth a thread's doing
// all products of a layer for them: threads that share each product wait for each other after it.
constexpr int64_t kNearBytes = 8 << 20;
constexpr int kRowsOfAPart = 4;

void check_range(const char* name, int64_t value, int64_t end) {
    if (value < 0 || value >= end)
        throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(end) +
                                    "), got " + std::to_string(value));
}

void fit(std::vector<float>& v, int64_t size) {
    if (v.size() < static_cast<size_t>(size)) v.resize(size);
}

}  // namespace

void Decoder::add_layer(const DecoderLayer& layer) {
    layers_.push_back(layer);
    for (const DecoderLinear* w : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
        num_bytes_ += w->weight->num_bytes();
        quantized_ |= is_quantized(w->weight->type());
    }
    widest_ =
        std::max<int64_t>({widest_, shape_.hidden_size, layer.gate_up.weight->out_features()});
    inner_ = std::max<int64_t>({inner_, shape_.hidden_size, layer.down.weight->in_features()});
}

// Of rows that a thread each takes through a layer; 0: all threads share each product.
int Decoder::num_parts(int rows) const {
    // Quantised products have one scratch for all threads.
    if (num_bytes_ > kNearBytes || quantized_) return 0;
    return std::clamp(rows / kRowsOfAPart, 1, thread_pool().num_threads());
}

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

void Decoder::project(const DecoderLayer& layer, const Step& step, int begin, int end) {
    const DecoderShape& s = shape_;
    int head_dim = s.head_dim, q_width = s.num_heads * head_dim, rows = end - begin;
    int64_t qkv_width = q_width + 2 * s.num_kv_heads * head_dim;
    float *q = qkv_.data() + begin * qkv_width, *k = q + q_width,
          *v = k + s.num_kv_heads * head_dim;
    linear(step.x + int64_t{begin} * s.hidden_size, layer.qkv, q, rows);
    // A head norm's rows are the heads, which lie next to each other in each row only.
    for (int r = 0; layer.q_norm && r < rows; ++r) {
        float *of_q = q + r * qkv_width, *of_k = k + r * qkv_width;
        ops_.rms_norm(of_q, head_dim, nullptr, layer.q_norm, s.rms_norm_eps, of_q, s.num_heads,
                      head_dim);
        ops_.rms_norm(of_k, head_dim, nullptr, layer.k_norm, s.rms_norm_eps, of_k, s.num_kv_heads,
                      head_dim);
    }
    // Queries and keys are neighbours: one call turns both.
    ops_.rope({q, qkv_width, s.num_heads + s.num_kv_heads, head_dim, s.cosine, s.sine,
               step.positions + begin},
              rows);
    const DecoderCache& cache = *step.cache;
    char* k_cache = cache.storage + 2 * int64_t{layer.cache_layer} * cache.plane_bytes;
    ops_.kv_store({k, v, qkv_width, qkv_width, k_cache, k_cache + cache.plane_bytes, cache.type,
                   step.slots + begin, s.num_kv_heads, head_dim},
                  rows);
}

void Decoder::attend(const DecoderLayer& layer, const Step& step, int begin, int end) {
    const DecoderShape& s = shape_;
    const DecoderCache& cache = *step.cache;
    AttentionArgs args{};
    args.q = qkv_.data();
    args.q_row_stride = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim;
    args.k_cache = cache.storage + 2 * int64_t{layer.cache_layer} * cache.plane_bytes;
    args.v_cache = args.k_cache + cache.plane_bytes;
    args.kv_type = cache.type;
    args.out = attended_.data();
    args.num_heads = s.num_heads;
    args.num_kv_heads = s.num_kv_heads;
    args.head_dim = s.head_dim;
    args.softmax_scale = s.softmax_scale;
    args.sliding_window = layer.sliding_window;
    ops_.attention(args, *step.plan, begin, end);
}

void Decoder::finish(const DecoderLayer& layer, const Step& step, const Rows& rows) {
    int64_t hidden = shape_.hidden_size, q_width = int64_t{shape_.num_heads} * shape_.head_dim;
    float eps = shape_.rms_norm_eps;
    // Some rows at a time: the widest of what is between then stays in the cache.
    for (int begin = rows.begin; begin < rows.end; begin += kRowsAtATime) {
        int n = std::min(kRowsAtATime, rows.end - begin);
        float *x = step.x + begin * hidden, *residual = residual_.data() + begin * hidden;
        linear(attended_.data() + begin * q_width, layer.output, rows.narrow, n);
        ops_.rms_norm(rows.narrow, hidden, residual, layer.post_attention_norm, eps, x, n, hidden);
        linear(x, layer.gate_up, rows.wide, n);
        int columns = layer.down.weight->in_features();
        ops_.silu_mul(rows.wide, 2 * int64_t{columns}, rows.narrow, n, columns);
        linear(rows.narrow, layer.down, rows.wide, n);
        ops_.rms_norm(rows.wide, hidden, residual, layer.next_norm, eps, x, n, hidden);
    }
}

void Decoder::store(const int64_t* ids, const int32_t* positions, const int64_t* slots,
                    const float* features, int rows, const DecoderCache& cache) {
    int hidden = shape_.hidden_size;
    embed(ids, positions, features, rows);
    fit(narrow_, int64_t{rows} * hidden);
    fit(qkv_, int64_t{rows} * (shape_.num_heads + 2 * shape_.num_kv_heads) * shape_.head_dim);
    ops_.rms_norm(residual_.data(), hidden, nullptr, first_norm_, shape_.rms_norm_eps,
                  narrow_.data(), rows, hidden);
    project(layers_.at(0), {positions, slots, nullptr, &cache, narrow_.data()}, 0, rows);
}

void Decoder::forward(const int64_t* ids, const int32_t* positions, const int64_t* slots,
                      const float* features, const AttentionPlan& plan, const DecoderCache& cache,
                      float* out) {
    const DecoderShape& s = shape_;
    int rows = plan.num_rows(), parts = num_parts(rows);
    int of_part = parts == 0 ? rows : (rows + parts - 1) / parts;
    int64_t room = std::min(of_part, kRowsAtATime);
    embed(ids, positions, features, rows);
    fit(qkv_, int64_t{rows} * (s.num_heads + 2 * s.num_kv_heads) * s.head_dim);
    fit(attended_, int64_t{rows} * s.num_heads * s.head_dim);
    fit(wide_, std::max(1, parts) * room * widest_);
    fit(narrow_, std::max(1, parts) * room * inner_);
    Step step{positions, slots, &plan, &cache, out};

    auto for_parts = [&](auto body) {
        auto part = [&](int number, int) {
            int begin = std::min(rows, number * of_part);
            body(Rows{begin, std::min(rows, begin + of_part),
                      wide_.data() + number * room * widest_,
                      narrow_.data() + number * room * inner_});
        };
        if (parts == 0)
            part(0, 0);
        else
            thread_pool().parallel_for(parts, part);
    };
    ops_.rms_norm(residual_.data(), s.hidden_size, nullptr, first_norm_, s.rms_norm_eps, out, rows,
                  s.hidden_size);
    if (layers_.empty()) return;
    for_parts([&](const Rows& r) { project(layers_[0], step, r.begin, r.end); });
    for (size_t i = 0; i < layers_.size(); ++i)
        for_parts([&](const Rows& r) {
            attend(layers_[i], step, r.begin, r.end);
            finish(layers_[i], step, r);
            // The next layer has planes of its own: others may still read this one's.
            if (i + 1 < layers_.size()) project(layers_[i + 1], step, r.begin, r.end);
        });
}
