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

}  // namespace
