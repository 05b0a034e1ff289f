#include "compact_kv.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "kernel_table.h"
#include "thread_pool.h"

namespace {

// Calls body(address, num_bytes) for each chunk of the token in `slot`.
template <class Body>
void for_chunks(const CompactArgs& a, int plane, int64_t slot, const Body& body) {
    int64_t block = static_cast<int64_t>(plane) * a.num_blocks + slot / kBlockSize;
    for (int head = 0; head < a.num_kv_heads; ++head) {
        char* base = a.storage + (block * a.num_kv_heads + head) * a.head_bytes;
        for (const TokenPart& part : a.parts[plane % 2])
            for (int i = 0; i < part.num_chunks; ++i)
                body(base + part.offset +
                         (static_cast<int64_t>(i) * kBlockSize + slot % kBlockSize) *
                             part.chunk_bytes,
                     part.chunk_bytes);
    }
}

void compact_branch(const CompactArgs& a, int plane, int branch, std::vector<char>& moved) {
    const int64_t* source = a.source + static_cast<int64_t>(branch) * a.max_moves;
    const int64_t* target = a.target + static_cast<int64_t>(branch) * a.max_moves;
    moved.clear();
    // What lies where it has to, as the beginning of many a path does, is no source of others.
    for (int i = 0; i < a.max_moves; ++i)
        if (source[i] >= 0 && source[i] != target[i])
            for_chunks(a, plane, source[i], [&](const char* chunk, int num_bytes) {
                moved.insert(moved.end(), chunk, chunk + num_bytes);
            });
    const char* next = moved.data();
    for (int i = 0; i < a.max_moves; ++i)
        if (source[i] >= 0 && source[i] != target[i])
            for_chunks(a, plane, target[i], [&](char* chunk, int num_bytes) {
                std::memcpy(chunk, next, num_bytes);
                next += num_bytes;
            });
}

}  // namespace

void compact_kv(const CompactArgs& a) {
    int64_t num_slots = static_cast<int64_t>(a.num_blocks) * kBlockSize;
    for (int64_t i = 0; i < static_cast<int64_t>(a.num_branches) * a.max_moves; ++i)
        if (a.source[i] >= 0 &&
            (a.source[i] >= num_slots || a.target[i] < 0 || a.target[i] >= num_slots))
            throw std::invalid_argument("compact_kv: there are " + std::to_string(num_slots) +
                                        " slots, a move is from " + std::to_string(a.source[i]) +
                                        " to " + std::to_string(a.target[i]));
    thread_pool().parallel_for(2 * a.num_layers, [&](int plane, int) {
        std::vector<char> moved;
        for (int branch = 0; branch < a.num_branches; ++branch)
            compact_branch(a, plane, branch, moved);
    });
}
