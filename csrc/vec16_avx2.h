// Sixteen floats in two AVX2 registers. See vec16_scalar.h for what each function means.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Vec16 {
    __m256 lo, hi;
};

inline __m256i lanes_below(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec16 zero() {
    return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
inline Vec16 broadcast(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Vec16 load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline Vec16 load_n(const float* p, int n) {
    return {_mm256_maskload_ps(p, lanes_below(n)), _mm256_maskload_ps(p + 8, lanes_below(n - 8))};
}
inline void store(float* p, Vec16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline void store_n(float* p, Vec16 a, int n) {
    _mm256_maskstore_ps(p, lanes_below(n), a.lo);
    _mm256_maskstore_ps(p + 8, lanes_below(n - 8), a.hi);
}
inline __m256 widen_bf16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec16 load_bf16(const uint16_t* p) {
    return {widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline Vec16 load_fp16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store_int_n(int32_t* p, Vec16 a, int n) {
    _mm256_maskstore_epi32(p, lanes_below(n), _mm256_cvtps_epi32(a.lo));
    _mm256_maskstore_epi32(p + 8, lanes_below(n - 8), _mm256_cvtps_epi32(a.hi));
}
inline void store_fp16(uint16_t* p, Vec16 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, mode));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, mode));
}
inline Vec16 load_s8(const int8_t* p) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline void store_s8(int8_t* p, Vec16 a) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    words = _mm256_permute4x64_epi64(words, 0xd8);  // packs works on each half
    __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(low, high));
}
inline Vec16 add(Vec16 a, Vec16 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Vec16 sub(Vec16 a, Vec16 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline Vec16 mul(Vec16 a, Vec16 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Vec16 div(Vec16 a, Vec16 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline Vec16 fma(Vec16 a, Vec16 b, Vec16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec16 max(Vec16 a, Vec16 b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline Vec16 min(Vec16 a, Vec16 b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline Vec16 round_even(Vec16 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline __m256 exp2_whole8(__m256 n) {
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vec16 scale_exp2(Vec16 p, Vec16 n) {
    return {_mm256_mul_ps(p.lo, exp2_whole8(n.lo)), _mm256_mul_ps(p.hi, exp2_whole8(n.hi))};
}
inline Vec16 select_less(Vec16 x, Vec16 limit, Vec16 a, Vec16 b) {
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_LT_OQ))};
}
inline __m256i lanes_in(uint32_t mask, __m256i bits) {
    __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits);
    return _mm256_cmpeq_epi32(set, bits);
}
inline Vec16 select_lanes(uint32_t mask, Vec16 a, Vec16 b) {
    __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i low = lanes_in(mask, bits), high = lanes_in(mask, _mm256_slli_epi32(bits, 8));
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(low)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(high))};
}
inline Vec16 abs(Vec16 a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline bool any_greater(Vec16 a, Vec16 b) {
    __m256 low = _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ),
           high = _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
}
inline float reduce_add8(__m256 a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    x = _mm_add_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}
inline float reduce_max8(__m256 a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    x = _mm_max_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}
inline float reduce_add(Vec16 a) {
    return reduce_add8(_mm256_add_ps(a.lo, a.hi));
}
inline float reduce_max(Vec16 a) {
    return reduce_max8(_mm256_max_ps(a.lo, a.hi));
}
inline Vec16 reduce_max_each(const Vec16* a) {
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = reduce_max(a[i]);
    return load(lanes);
}
inline Vec16 reduce_add_each(const Vec16* a) {
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = reduce_add(a[i]);
    return load(lanes);
}
inline float fma1(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

inline int store_not_less(float* p, Vec16 a, Vec16 limit) {
    unsigned low =
        static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, limit.lo, _CMP_GE_OQ)));
    unsigned high =
        static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, limit.hi, _CMP_GE_OQ)));
    unsigned kept = low | high << 8;
    if (!kept) return 0;
    float lanes[16];
    _mm256_storeu_ps(lanes, a.lo);
    _mm256_storeu_ps(lanes + 8, a.hi);
    int count = 0;
    for (; kept; kept &= kept - 1) p[count++] = lanes[__builtin_ctz(kept)];
    return count;
}

}  // namespace
