// Philox4x32-10 (Salmon et al., SC 2011): random numbers as a function of key and counter, so that
// a branch's draws depend on its own key and position and on nothing that runs beside it.
#pragma once

#include <array>
#include <cstdint>

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        uint64_t a = 0xD2511F53ull * counter[0], b = 0xCD9E8D57ull * counter[2];
        counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}

// Uniform in [0, 1) with 53 bits, number `index` of the stream `stream` of `key`.
inline double philox_uniform(uint64_t key, uint64_t index, uint32_t stream) {
    std::array<uint32_t, 4> words =
        philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), stream, 0u},
                   {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
    uint64_t bits = (static_cast<uint64_t>(words[0]) << 32) | words[1];
    return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

// The key of child number `child` of the branch whose key is `key`.
inline uint64_t philox_child_key(uint64_t key, uint64_t child) {
    std::array<uint32_t, 4> words =
        philox4x32({static_cast<uint32_t>(child), static_cast<uint32_t>(child >> 32), 0u, 1u},
                   {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
    return (static_cast<uint64_t>(words[0]) << 32) | words[1];
}
