// Exact integer products with AVX-512 VNNI: vpdpbusd takes unsigned by signed bytes. See
// vec16_scalar.h for what each function means.
#pragma once

#include "vec16_avx512.h"

namespace {

struct IntVec16 {
    __m512i v;
};
struct Quads {
    __m512i v;
};

inline Quads load_quads(const uint8_t* p) {
    return {_mm512_loadu_si512(p)};
}
inline Vec16 to_float(IntVec16 a) {
    return {_mm512_cvtepi32_ps(a.v)};
}
inline IntVec16 dot_start(int32_t offset) {
    return {_mm512_set1_epi32(offset)};
}
inline Quads load_s8_quads(const uint8_t* p) {
    return load_quads(p);
}
inline Quads broadcast_quad(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return {_mm512_set1_epi32(four)};
}
inline IntVec16 dot_s8(IntVec16 acc, Quads w, Quads x) {
    return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)};
}

using NibbleSum = IntVec16;
struct NibbleQuads {
    Quads low, high;
};
inline NibbleSum nibble_start() {
    return {_mm512_setzero_si512()};
}
inline NibbleQuads load_nibbles(const uint8_t* p) {
    __m512i mask = _mm512_set1_epi8(15), bytes = _mm512_loadu_si512(p);
    return {{_mm512_and_si512(bytes, mask)}, {_mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask)}};
}
inline NibbleSum dot_u4(NibbleSum acc, Quads w, Quads x) {
    return dot_s8(acc, w, x);
}
inline IntVec16 nibble_finish(NibbleSum acc) {
    return acc;
}

}  // namespace
