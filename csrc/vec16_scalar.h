// Sixteen floats, one lane a float: the portable form of Vec16, and the definition of its results.
// Every other form gives the same bits: the same operations, in the same order, with fused
// multiply-adds where `fma` stands.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"

namespace {

struct Vec16 {
    float lane[16];
};

inline Vec16 zero() {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = 0.0f;
    return r;
}
inline Vec16 broadcast(float x) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = x;
    return r;
}
inline Vec16 load(const float* p) {
    Vec16 r;
    memcpy(r.lane, p, sizeof r.lane);
    return r;
}
inline Vec16 load_n(const float* p, int n) {
    Vec16 r = zero();
    memcpy(r.lane, p, sizeof(float) * n);
    return r;
}
inline void store(float* p, Vec16 a) {
    memcpy(p, a.lane, sizeof a.lane);
}
inline void store_n(float* p, Vec16 a, int n) {
    memcpy(p, a.lane, sizeof(float) * n);
}

inline Vec16 load_bf16(const uint16_t* p) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = bf16_to_float(p[i]);
    return r;
}
inline Vec16 load_fp16(const uint16_t* p) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = fp16_to_float(p[i]);
    return r;
}

inline Vec16 add(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
}
inline Vec16 sub(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
    return a;
}
inline Vec16 mul(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
    return a;
}
inline Vec16 div(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] /= b.lane[i];
    return a;
}
inline Vec16 fma(Vec16 a, Vec16 b, Vec16 c) {
    for (int i = 0; i < 16; ++i) c.lane[i] = fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return c;
}
// The second operand where either is NaN, as maxps has it: `max(limit, x)` lets a NaN in x through.
inline Vec16 max(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
inline Vec16 round_even(Vec16 a) {
    for (int i = 0; i < 16; ++i) a.lane[i] = nearbyintf(a.lane[i]);
    return a;
}
// 2^n for whole n in [-126, 127].
inline Vec16 exp2_whole(Vec16 n) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) {
        uint32_t word = static_cast<uint32_t>(static_cast<int>(n.lane[i]) + 127) << 23;
        memcpy(&r.lane[i], &word, sizeof word);
    }
    return r;
}
// a where x < limit, else b.
inline Vec16 select_less(Vec16 x, Vec16 limit, Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) b.lane[i] = x.lane[i] < limit.lane[i] ? a.lane[i] : b.lane[i];
    return b;
}
// a in lanes [lo, hi), b elsewhere.
inline Vec16 select_range(int lo, int hi, Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) b.lane[i] = i >= lo && i < hi ? a.lane[i] : b.lane[i];
    return b;
}
inline float reduce_add(Vec16 a) {
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a.lane[i] += a.lane[i + width];
    return a.lane[0];
}
inline float reduce_max(Vec16 a) {
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i)
            a.lane[i] = a.lane[i] > a.lane[i + width] ? a.lane[i] : a.lane[i + width];
    return a.lane[0];
}
inline float fma1(float a, float b, float c) {
    return fmaf(a, b, c);
}

}  // namespace
