// Paged KV memory: a pool of reference-counted blocks, and the tables that are the branches' views.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernel_table.h"

class BlockPool {
  public:
    explicit BlockPool(int num_blocks);

    int num_blocks() const { return static_cast<int>(ref_count_.size()); }
    int num_free() const { return static_cast<int>(free_.size()); }
    int ref_count(int block) const { return ref_count_.at(block); }
    void add_reference(int block);
    void drop_reference(int block);
    int allocate();  // throws std::length_error where none is free

    // Marks a block as kept by the prefix tree, which holds one reference to it.
    void set_cached(int block, bool cached);
    int num_idle() const { return num_idle_; }  // blocks that only the prefix tree holds

    int64_t next_fork() { return ++num_forks_; }

  private:
    bool idle(int block) const { return cached_[block] && ref_count_[block] == 1; }

    std::vector<int> free_;
    std::vector<int32_t> ref_count_;
    std::vector<bool> cached_;
    int num_idle_ = 0;
    int64_t num_forks_ = 0;
};

// Left in a table and its copy when they part: tables with the same mark agree on their first
// `num_entries` entries.
struct ForkMark {
    int64_t id;
    int num_entries;
};

// A branch's view: entries in reading order, each a run of keys in one block. In a table's entries
// `rotation` holds the offset in positions by which the keys are moved (0: read as stored).
class BlockTable {
  public:
    explicit BlockTable(BlockPool& pool) : pool_(&pool) {}
    BlockTable(const BlockTable& other);
    BlockTable& operator=(const BlockTable&) = delete;
    ~BlockTable() { truncate(0); }

    const std::vector<ViewEntry>& entries() const { return entries_; }
    int num_tokens() const { return num_tokens_; }
    int position_of(int token) const;  // at which its key is read
    BlockPool& pool() const { return *pool_; }

    // Changes whenever something else happens to the entries than growth of the last one and new
    // blocks behind it.
    int64_t version() const { return version_; }

    // How many entries both tables begin with. Forks know it without looking at them.
    int common_entries(const BlockTable& other) const;

    // Blocks that append(count, position) would take from the pool.
    int blocks_needed(int count, int position) const;

    // Room for `count` more tokens at consecutive positions. Writes their slots (block * kBlockSize
    // + offset); where the last block is shared, its replacement goes to `copies` as (from, to) and
    // the caller copies the contents. Throws before any change where the pool is too small.
    void append(int count, int position, int64_t* slots, std::vector<std::pair<int, int>>& copies);

    // Keeps the first `num_tokens` tokens.
    void truncate(int num_tokens);

    // Adds a reference to a block that is full of keys at positions from `position` on.
    void append_full_block(int block, int position);

    // Adds entries like these, each in a new block; the caller fills the blocks, in this order.
    // Throws before any change where the pool is too small.
    std::vector<int> append_copies(const std::vector<ViewEntry>& entries);

    // Sees tokens [begin, end) of another table of the same pool, moved by `offset` positions.
    void append_view(const BlockTable& other, int begin, int end, int offset);

    // Replaces shared blocks of entries from `first_entry` on by blocks of its own; the caller
    // copies
    // the contents (from, to). Throws before any change where the pool is too small.
    std::vector<std::pair<int, int>> make_private(int first_entry);

  private:
    bool room_in_last(int position) const;
    void entries_changed_from(size_t first_entry);

    BlockPool* pool_;
    std::vector<ViewEntry> entries_;
    int num_tokens_ = 0;
    int64_t version_ = 0;
    mutable std::vector<ForkMark> marks_;  // num_entries rises
};
