// What sampling needs of a row of logits.
#pragma once

#include "exp_body.h"
#include "kernel_table.h"

namespace {

inline uint32_t first_lanes(int n) {
    return n >= kLanes ? 0xffffu : (1u << n) - 1u;
}

float row_max(const float* x, int n) {
    Vec16 best = broadcast(kMinusInfinity);
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) best = max(best, load(x + i));
    if (i < n) best = max(best, select_lanes(first_lanes(n - i), load_n(x + i, n - i), best));
    return reduce_max(best);
}

// Exactly 1 where x = shift, so that the most likely token passes every filter.
float exp_shifted(const float* x, int n, float scale, float shift, float* e) {
    Vec16 sum = zero();
    for (int i = 0; i < n; i += kLanes) {
        int m = n - i < kLanes ? n - i : kLanes;
        Vec16 v = exp(mul(sub(load_n(x + i, m), broadcast(shift)), broadcast(scale)));
        v = select_lanes(first_lanes(m), v, zero());
        store_n(e + i, v, m);
        sum = add(sum, v);
    }
    return reduce_add(sum);
}

// The sum of what is at least `cut`.
float kept_mass(const float* e, int n, float cut) {
    Vec16 sum = zero(), limit = broadcast(cut);
    for (int i = 0; i < n; i += kLanes) {
        Vec16 v = load_n(e + i, n - i < kLanes ? n - i : kLanes);
        sum = add(sum, select_less(v, limit, zero(), v));
    }
    return reduce_add(sum);
}

// Copies what is at least `cut`, which is above 0, in order; returns how many these are. `out` has
// room for n + kLanes.
int keep(const float* e, int n, float cut, float* out) {
    int count = 0;
    for (int i = 0; i < n; i += kLanes) {
        Vec16 v = load_n(e + i, n - i < kLanes ? n - i : kLanes);
        count += store_not_less(out + count, v, broadcast(cut));
    }
    return count;
}

// What is at least `cut`, times `factor`, and 0 for the rest.
void scale_kept(const float* e, int n, float cut, float factor, float* out) {
    Vec16 limit = broadcast(cut), f = broadcast(factor);
    for (int i = 0; i < n; i += kLanes) {
        int m = n - i < kLanes ? n - i : kLanes;
        Vec16 v = load_n(e + i, m);
        store_n(out + i, select_less(v, limit, zero(), mul(v, f)), m);
    }
}

// lse = m + log S, H = lse - sum p x and the mean of x, with S = sum exp(x - m).
void logit_stats(const LogitStatsArgs& a, int row) {
    const float* x = a.logits + row * a.logits_stride;
    float m = row_max(x, a.vocab_size);
    Vec16 sum = zero(), weighted = zero(), plain = zero();
    for (int i = 0; i < a.vocab_size; i += kLanes) {
        int n = a.vocab_size - i < kLanes ? a.vocab_size - i : kLanes;
        Vec16 shifted = sub(load_n(x + i, n), broadcast(m));
        plain = add(plain, select_lanes(first_lanes(n), shifted, zero()));
        Vec16 e = select_lanes(first_lanes(n), exp(shifted), zero());
        sum = add(sum, e);
        // exp(-inf) * -inf would be a NaN: a forbidden token adds nothing.
        Vec16 term = mul(e, shifted);
        term = select_less(shifted, broadcast(-87.0f), zero(), term);
        weighted = add(weighted, select_lanes(first_lanes(n), term, zero()));
    }
    float total = reduce_add(sum);
    float log_total = __builtin_logf(total);
    a.lse[row] = m + log_total;
    a.entropy[row] = log_total - reduce_add(weighted) / total;
    a.mean[row] = m + reduce_add(plain) / static_cast<float>(a.vocab_size);
}

// No branch on the bits: half of a vocabulary is allowed in no order, and each guess would be wrong
// every other time.
void mask_logits(const MaskLogitsArgs& a, int row) {
    constexpr int kWordBits = 32;
    int64_t num_words = (a.vocab_size + kWordBits - 1) / kWordBits;
    const float* x = a.logits + row * a.logits_stride;
    const int32_t* words = a.words + row * num_words;
    float* out = a.out + static_cast<int64_t>(row) * a.vocab_size;
    Vec16 banned = broadcast(kMinusInfinity);
    for (int i = 0; i < a.vocab_size; i += kLanes) {
        int n = a.vocab_size - i < kLanes ? a.vocab_size - i : kLanes;
        uint32_t word = static_cast<uint32_t>(words[i / kWordBits]);
        store_n(out + i, select_lanes(word >> i % kWordBits & 0xffffu, load_n(x + i, n), banned),
                n);
    }
}

}  // namespace
