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

// The first n lanes, which are whole numbers, as integers; of a NaN only that nothing bad happens.
inline void store_int_n(int32_t* p, Vec16 a, int n) {
    for (int i = 0; i < n; ++i) p[i] = a.lane[i] == a.lane[i] ? static_cast<int32_t>(a.lane[i]) : 0;
}
// Rounds to nearest even; too large a value becomes an infinity.
inline void store_fp16(uint16_t* p, Vec16 a) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_fp16(a.lane[i]);
}
inline Vec16 load_s8(const int8_t* p) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(p[i]);
    return r;
}
// Whole numbers in [-127, 127]; of others only that nothing bad happens.
inline void store_s8(int8_t* p, Vec16 a) {
    for (int i = 0; i < 16; ++i)
        p[i] = fabsf(a.lane[i]) <= 127.0f ? static_cast<int8_t>(a.lane[i]) : int8_t{-128};
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
inline Vec16 min(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
inline Vec16 round_even(Vec16 a) {
    for (int i = 0; i < 16; ++i) a.lane[i] = nearbyintf(a.lane[i]);
    return a;
}
// p 2^n for whole n in [-126, 127]; of a NaN only that nothing bad happens.
inline Vec16 scale_exp2(Vec16 p, Vec16 n) {
    for (int i = 0; i < 16; ++i) {
        int exponent = n.lane[i] >= -126.0f ? static_cast<int>(n.lane[i]) : -127;
        uint32_t word = static_cast<uint32_t>(exponent + 127) << 23;
        float power;
        memcpy(&power, &word, sizeof word);
        p.lane[i] *= power;
    }
    return p;
}
// a where x < limit, else b.
inline Vec16 select_less(Vec16 x, Vec16 limit, Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) b.lane[i] = x.lane[i] < limit.lane[i] ? a.lane[i] : b.lane[i];
    return b;
}
// a in the lanes whose bit is set, b elsewhere.
inline Vec16 select_lanes(uint32_t mask, Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) b.lane[i] = mask >> i & 1u ? a.lane[i] : b.lane[i];
    return b;
}
inline Vec16 abs(Vec16 a) {
    for (int i = 0; i < 16; ++i) a.lane[i] = fabsf(a.lane[i]);
    return a;
}
// Whether a > b in any lane.
inline bool any_greater(Vec16 a, Vec16 b) {
    bool any = false;
    for (int i = 0; i < 16; ++i) any = any || a.lane[i] > b.lane[i];
    return any;
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
// Lane i of the result: the largest, or the sum, of the lanes of a[i].
inline Vec16 reduce_max_each(const Vec16* a) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = reduce_max(a[i]);
    return r;
}
inline Vec16 reduce_add_each(const Vec16* a) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = reduce_add(a[i]);
    return r;
}
inline float fma1(float a, float b, float c) {
    return fmaf(a, b, c);
}

// Stores the lanes that are not below `limit` next to each other; returns how many these are. All
// sixteen places may be written.
inline int store_not_less(float* p, Vec16 a, Vec16 limit) {
    int count = 0;
    for (int i = 0; i < 16; ++i)
        if (a.lane[i] >= limit.lane[i]) p[count++] = a.lane[i];
    return count;
}

// ---- exact integer products: 16 lanes of 32 bits, four bytes a lane ----

struct IntVec16 {
    int32_t lane[16];
};
struct Quads {
    uint8_t byte[64];
};

inline Quads load_quads(const uint8_t* p) {
    Quads r;
    memcpy(r.byte, p, sizeof r.byte);
    return r;
}
inline Vec16 to_float(IntVec16 a) {
    Vec16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(a.lane[i]);
    return r;
}

// Weights are stored as w + 128, so that an instruction which wants unsigned bytes can take them.
// dot_s8 then adds sum((w + 128) x) to an accumulator that dot_start set to -128 sum(x), or
// sum(w x) to one that it set to 0.
inline IntVec16 dot_start(int32_t) {
    return {};
}
inline Quads load_s8_quads(const uint8_t* p) {
    return load_quads(p);
}
inline Quads broadcast_quad(const int8_t* p) {
    Quads r;
    for (int i = 0; i < 64; ++i) r.byte[i] = static_cast<uint8_t>(p[i % 4]);
    return r;
}
inline IntVec16 dot_s8(IntVec16 acc, Quads w, Quads x) {
    for (int i = 0; i < 64; ++i)
        acc.lane[i / 4] += (w.byte[i] - 128) * static_cast<int8_t>(x.byte[i]);
    return acc;
}

// Weights of 4 bits, 0 to 15; at most eight products fit an accumulator.
using NibbleSum = IntVec16;
struct NibbleQuads {
    Quads low, high;
};
inline NibbleSum nibble_start() {
    return {};
}
inline NibbleQuads load_nibbles(const uint8_t* p) {
    NibbleQuads r;
    for (int i = 0; i < 64; ++i) {
        r.low.byte[i] = p[i] & 15;
        r.high.byte[i] = p[i] >> 4;
    }
    return r;
}
inline NibbleSum dot_u4(NibbleSum acc, Quads w, Quads x) {
    for (int i = 0; i < 64; ++i) acc.lane[i / 4] += w.byte[i] * static_cast<int8_t>(x.byte[i]);
    return acc;
}
inline IntVec16 nibble_finish(NibbleSum acc) {
    return acc;
}

}  // namespace
