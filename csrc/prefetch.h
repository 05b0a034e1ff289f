// Asking for weights before their turn. A product of few rows waits for memory, and its several
// short streams are more than the processor foresees by itself.
#pragma once

#include <cstdint>

namespace {

constexpr int kFewRows = 3;  // more rows have enough to do meanwhile
constexpr uintptr_t kBytesAhead = 4096;
constexpr int kCacheLine = 64;

// What lies kBytesAhead behind p need not be there.
inline void prefetch_ahead(const void* p) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kBytesAhead));
}

}  // namespace
