#include "arena.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr size_t kPage = size_t{2} << 20, kPiece = size_t{32} << 20, kLine = 64;

size_t round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

std::shared_ptr<uint8_t> new_piece(size_t num_bytes) {
    void* p = std::aligned_alloc(kPage, num_bytes);
    if (!p) throw std::bad_alloc();
#if defined(__linux__)
    madvise(p, num_bytes, MADV_HUGEPAGE);  // a wish: without huge pages all works the same
#endif
    return {static_cast<uint8_t*>(p), [](uint8_t* q) { std::free(q); }};
}

}  // namespace

std::shared_ptr<uint8_t> Arena::allocate(size_t num_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    num_bytes = round_up(std::max<size_t>(num_bytes, 1), kLine);
    if (used_ + num_bytes > size_) {
        // What is small waits for company; its piece takes memory only as far as it is written.
        size_ = round_up(std::max(num_bytes, kPiece), kPage);
        piece_ = new_piece(size_);
        used_ = 0;
    }
    std::shared_ptr<uint8_t> result(piece_, piece_.get() + used_);
    used_ += num_bytes;
    return result;
}
