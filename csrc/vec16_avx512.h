// Sixteen floats in one AVX-512 register. See vec16_scalar.h for what each function means.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Vec16 {
    __m512 v;
};

inline __mmask16 lanes_below(int n) {
    return static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u);
}

inline Vec16 zero() {
    return {_mm512_setzero_ps()};
}
inline Vec16 broadcast(float x) {
    return {_mm512_set1_ps(x)};
}
inline Vec16 load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
inline Vec16 load_n(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(lanes_below(n), p)};
}
inline void store(float* p, Vec16 a) {
    _mm512_storeu_ps(p, a.v);
}
inline void store_n(float* p, Vec16 a, int n) {
    _mm512_mask_storeu_ps(p, lanes_below(n), a.v);
}
inline Vec16 load_bf16(const uint16_t* p) {
    __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Vec16 load_fp16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_int_n(int32_t* p, Vec16 a, int n) {
    _mm512_mask_storeu_epi32(p, lanes_below(n), _mm512_cvtps_epi32(a.v));
}
inline void store_fp16(uint16_t* p, Vec16 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, mode));
}
inline Vec16 load_s8(const int8_t* p) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
inline void store_s8(int8_t* p, Vec16 a) {
    __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline Vec16 add(Vec16 a, Vec16 b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline Vec16 sub(Vec16 a, Vec16 b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
inline Vec16 mul(Vec16 a, Vec16 b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec16 div(Vec16 a, Vec16 b) {
    return {_mm512_div_ps(a.v, b.v)};
}
inline Vec16 fma(Vec16 a, Vec16 b, Vec16 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec16 max(Vec16 a, Vec16 b) {
    return {_mm512_max_ps(a.v, b.v)};
}
inline Vec16 min(Vec16 a, Vec16 b) {
    return {_mm512_min_ps(a.v, b.v)};
}
inline Vec16 round_even(Vec16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec16 scale_exp2(Vec16 p, Vec16 n) {
    return {_mm512_scalef_ps(p.v, n.v)};
}
inline Vec16 select_less(Vec16 x, Vec16 limit, Vec16 a, Vec16 b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_LT_OQ), b.v, a.v)};
}
inline Vec16 select_lanes(uint32_t mask, Vec16 a, Vec16 b) {
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), b.v, a.v)};
}
inline Vec16 abs(Vec16 a) {
    return {_mm512_abs_ps(a.v)};
}
inline bool any_greater(Vec16 a, Vec16 b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0;
}
inline __m256 upper_half(__m512 a) {
    return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(a), 1));
}
inline float reduce_add(Vec16 a) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    x = _mm_add_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}
inline float reduce_max(Vec16 a) {
    __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    x = _mm_max_ss(x, _mm_movehdup_ps(x));
    return _mm_cvtss_f32(x);
}
// Folds sixteen vectors into one in four steps: within a 128-bit part two vectors, then four, and
// then the parts.
template <class Fold>
inline Vec16 reduce_each(const Vec16* a, const Fold& fold) {
    __m512 fours[4];
    for (int i = 0; i < 4; ++i) {
        const Vec16* v = a + 4 * i;
        __m512 x = fold(_mm512_unpacklo_ps(v[0].v, v[1].v), _mm512_unpackhi_ps(v[0].v, v[1].v));
        __m512 y = fold(_mm512_unpacklo_ps(v[2].v, v[3].v), _mm512_unpackhi_ps(v[2].v, v[3].v));
        __m512d xd = _mm512_castps_pd(x), yd = _mm512_castps_pd(y);
        fours[i] = fold(_mm512_castpd_ps(_mm512_unpacklo_pd(xd, yd)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(xd, yd)));
    }
    auto halves = [&](__m512 x, __m512 y) {
        return fold(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    };
    return {halves(halves(fours[0], fours[1]), halves(fours[2], fours[3]))};
}
inline Vec16 reduce_max_each(const Vec16* a) {
    return reduce_each(a, [](__m512 x, __m512 y) { return _mm512_max_ps(x, y); });
}
// In another order than reduce_add: for sums that are exact in any.
inline Vec16 reduce_add_each(const Vec16* a) {
    return reduce_each(a, [](__m512 x, __m512 y) { return _mm512_add_ps(x, y); });
}
inline float fma1(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

inline int store_not_less(float* p, Vec16 a, Vec16 limit) {
    __mmask16 kept = _mm512_cmp_ps_mask(a.v, limit.v, _CMP_GE_OQ);
    // Not a compressing store, which some processors execute in microcode.
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(kept, a.v));
    return __builtin_popcount(kept);
}

}  // namespace
