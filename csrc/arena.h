// Memory for what is read in long streams: in large pieces, on huge pages where the system has
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

class Arena {
  public:
    // `num_bytes` that begin on a cache line; a piece is freed with the last that lies in it.
    std::shared_ptr<uint8_t> allocate(size_t num_bytes);

  private:
    std::mutex mutex_;
    std::shared_ptr<uint8_t> piece_;
    size_t used_ = 0, size_ = 0;
};
