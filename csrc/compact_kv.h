// Keys and values of accepted tokens, moved right behind their branch's prefix.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

// Part of a block's KV head: chunk i of the token in `lane` lies at offset + (i * kBlockSize +
// lane)
// * chunk_bytes.
struct TokenPart {
    int64_t offset;
    int num_chunks, chunk_bytes;
};

struct CompactArgs {
    char* storage;  // [num_layers, 2, num_blocks, num_kv_heads] of head_bytes
    int num_layers, num_blocks, num_kv_heads;
    int64_t head_bytes;
    std::array<std::vector<TokenPart>, 2> parts;  // of a token's keys, and of its values
    const int64_t *source, *target;  // [num_branches, max_moves] slots, negative where none is
    int num_branches, max_moves;
};

// All sources of a branch are read before a target is written. Throws std::invalid_argument where a
// slot does not exist.
void compact_kv(const CompactArgs& args);
