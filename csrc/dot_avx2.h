// Exact integer products with AVX2. See vec16_scalar.h for what each function means.
#pragma once

#if defined(__AVX512F__)
#include "vec16_avx512.h"
#else
#include "vec16_avx2.h"
#endif

namespace {

struct IntVec16 {
    __m256i lo, hi;
};
struct Quads {
    __m256i lo, hi;
};

inline Quads load_quads(const uint8_t* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline IntVec16 dot_start(int32_t) {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
inline Quads load_s8_quads(const uint8_t* p) {
    __m256i flip = _mm256_set1_epi8(-128);
    Quads w = load_quads(p);
    return {_mm256_xor_si256(w.lo, flip), _mm256_xor_si256(w.hi, flip)};
}
inline __m256i broadcast_quad(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}
// vpmaddubsw saturates at 16 bits: |x| times w with the sign of x keeps both factors within 7 bits.
inline __m256i dot_s8_half(__m256i acc, __m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline IntVec16 dot_s8(IntVec16 acc, Quads w, __m256i x) {
    return {dot_s8_half(acc.lo, w.lo, x), dot_s8_half(acc.hi, w.hi, x)};
}

// Pairs of products stay below 2 * 15 * 127: eight of them fit 16 bits.
struct NibbleSum {
    __m256i lo, hi;
};
struct NibbleQuads {
    Quads low, high;
};
inline NibbleSum nibble_start() {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
inline NibbleQuads load_nibbles(const uint8_t* p) {
    __m256i mask = _mm256_set1_epi8(15);
    Quads w = load_quads(p);
    return {{_mm256_and_si256(w.lo, mask), _mm256_and_si256(w.hi, mask)},
            {_mm256_and_si256(_mm256_srli_epi16(w.lo, 4), mask),
             _mm256_and_si256(_mm256_srli_epi16(w.hi, 4), mask)}};
}
inline NibbleSum dot_u4(NibbleSum acc, Quads w, __m256i x) {
    return {_mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(w.lo, x)),
            _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(w.hi, x))};
}
inline IntVec16 nibble_finish(NibbleSum acc) {
    __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(acc.lo, ones), _mm256_madd_epi16(acc.hi, ones)};
}

#if defined(__AVX512F__)
inline Vec16 to_float(IntVec16 a) {
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(a.lo), a.hi, 1);
    return {_mm512_cvtepi32_ps(both)};
}
#else
inline Vec16 to_float(IntVec16 a) {
    return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
#endif

}  // namespace
