// 16-bit floats to 32-bit ones, exactly. No library templates: files of every instruction set
// include this.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

inline float bf16_to_float(uint16_t bits) {
    uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}
inline float fp16_to_float(uint16_t bits) {
    uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 1023u;
    if (exponent == 0) {
        float x = ldexpf(static_cast<float>(fraction), -24);
        return sign ? -x : x;
    }
    uint32_t word = exponent == 31 ? (sign | 0x7f800000u | (fraction << 13))
                                   : (sign | ((exponent + 112) << 23) | (fraction << 13));
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

// To nearest even, as F16C does it; a NaN stays one.
inline uint16_t float_to_fp16(float x) {
    uint32_t word;
    memcpy(&word, &x, sizeof word);
    uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u)  // NaN: the upper bits of its payload, quiet
        return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {  // a subnormal: whole multiples of 2^-24
        float scaled = ldexpf(fabsf(x), 24);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(nearbyintf(scaled)));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

}  // namespace
