// SplitMix64 (Steele, Lea, Flood 2014): a number whose bits all depend on all bits of x.
#pragma once

#include <cstdint>

inline uint64_t split_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}
