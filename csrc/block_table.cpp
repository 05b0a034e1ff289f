#include "block_table.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

BlockPool::BlockPool(int num_blocks) {
    if (num_blocks <= 0)
        throw std::invalid_argument("num_blocks must be positive, got " +
                                    std::to_string(num_blocks));
    ref_count_.assign(num_blocks, 0);
    cached_.assign(num_blocks, false);
    free_.reserve(num_blocks);
    for (int block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

void BlockPool::add_reference(int block) {
    if (ref_count_.at(block) == 0)
        throw std::logic_error("block " + std::to_string(block) + " is free and can't be shared");
    num_idle_ -= idle(block);
    ++ref_count_[block];
}

void BlockPool::drop_reference(int block) {
    if (ref_count_.at(block) == 0)
        throw std::logic_error("block " + std::to_string(block) + " is already free");
    num_idle_ -= idle(block);
    if (--ref_count_[block] == 0) free_.push_back(block);
    num_idle_ += idle(block);
}

int BlockPool::allocate() {
    if (free_.empty()) throw std::length_error("no free block in the pool");
    int block = free_.back();
    free_.pop_back();
    ref_count_[block] = 1;
    return block;
}

void BlockPool::set_cached(int block, bool cached) {
    cached_.at(block);  // throws before anything is counted
    num_idle_ -= idle(block);
    cached_.at(block) = cached;
    num_idle_ += idle(block);
}

BlockTable::BlockTable(const BlockTable& other)
    : pool_(other.pool_), entries_(other.entries_), num_tokens_(other.num_tokens_) {
    for (const ViewEntry& entry : entries_) pool_->add_reference(entry.block);
    // A last block that is not full may still grow, and then is no longer the same entry.
    int settled = static_cast<int>(entries_.size());
    if (settled > 0 && entries_.back().stop < kBlockSize) --settled;
    if (settled > 0 && (other.marks_.empty() || other.marks_.back().num_entries < settled))
        other.marks_.push_back({pool_->next_fork(), settled});
    marks_ = other.marks_;
}

void BlockTable::entries_changed_from(size_t first_entry) {
    ++version_;
    while (!marks_.empty() && marks_.back().num_entries > static_cast<int>(first_entry))
        marks_.pop_back();
}

int BlockTable::common_entries(const BlockTable& other) const {
    size_t n = 0;
    for (size_t i = 0; i < marks_.size() && i < other.marks_.size(); ++i) {
        if (marks_[i].id != other.marks_[i].id) break;
        n = marks_[i].num_entries;
    }
    size_t end = std::min(entries_.size(), other.entries_.size());
    while (n < end && std::memcmp(&entries_[n], &other.entries_[n], sizeof(ViewEntry)) == 0) ++n;
    return static_cast<int>(n);
}

int BlockTable::position_of(int token) const {
    int end = num_tokens_;
    if (token >= 0 && token < end)
        for (size_t i = entries_.size(); i-- > 0;) {
            int begin = end - (entries_[i].stop - entries_[i].start);
            if (token >= begin) return entries_[i].position + token - begin;
            end = begin;
        }
    throw std::out_of_range("token " + std::to_string(token) + " of a table of " +
                            std::to_string(num_tokens_));
}

bool BlockTable::room_in_last(int position) const {
    if (entries_.empty()) return false;
    const ViewEntry& last = entries_.back();
    return last.stop < kBlockSize && last.rotation == 0 &&
           last.position + (last.stop - last.start) == position;
}

int BlockTable::blocks_needed(int count, int position) const {
    if (count <= 0) return 0;
    int needed = 0;
    if (room_in_last(position)) {
        if (pool_->ref_count(entries_.back().block) > 1) ++needed;
        count -= kBlockSize - entries_.back().stop;
    }
    return count > 0 ? needed + (count + kBlockSize - 1) / kBlockSize : needed;
}

void BlockTable::append(int count, int position, int64_t* slots,
                        std::vector<std::pair<int, int>>& copies) {
    if (blocks_needed(count, position) > pool_->num_free())
        throw std::length_error("the KV pool has " + std::to_string(pool_->num_free()) +
                                " free blocks, " + std::to_string(blocks_needed(count, position)) +
                                " are needed");
    if (count > 0 && room_in_last(position) && pool_->ref_count(entries_.back().block) > 1) {
        int copy = pool_->allocate();
        copies.emplace_back(entries_.back().block, copy);
        pool_->drop_reference(entries_.back().block);
        entries_.back().block = copy;
        entries_changed_from(entries_.size() - 1);
    }
    for (int i = 0; i < count; ++i, ++position) {
        if (!room_in_last(position)) entries_.push_back({pool_->allocate(), 0, 0, 0, position});
        ViewEntry& last = entries_.back();
        slots[i] = static_cast<int64_t>(last.block) * kBlockSize + last.stop;
        ++last.stop;
        ++num_tokens_;
    }
}

void BlockTable::truncate(int num_tokens) {
    if (num_tokens >= num_tokens_) return;
    while (!entries_.empty() && num_tokens_ > num_tokens) {
        ViewEntry& last = entries_.back();
        int held = last.stop - last.start, surplus = num_tokens_ - num_tokens;
        if (held > surplus) {
            last.stop -= surplus;
            num_tokens_ -= surplus;
            entries_changed_from(entries_.size() - 1);
            return;
        }
        pool_->drop_reference(last.block);
        num_tokens_ -= held;
        entries_.pop_back();
    }
    entries_changed_from(entries_.size());
}

void BlockTable::append_full_block(int block, int position) {
    pool_->add_reference(block);
    entries_.push_back({block, 0, kBlockSize, 0, position});
    num_tokens_ += kBlockSize;
    ++version_;
}

std::vector<int> BlockTable::append_copies(const std::vector<ViewEntry>& entries) {
    if (static_cast<int>(entries.size()) > pool_->num_free())
        throw std::length_error("the KV pool has " + std::to_string(pool_->num_free()) +
                                " free blocks, " + std::to_string(entries.size()) + " are needed");
    std::vector<int> blocks;
    for (ViewEntry entry : entries) {
        entry.block = pool_->allocate();
        blocks.push_back(entry.block);
        entries_.push_back(entry);
        num_tokens_ += entry.stop - entry.start;
    }
    ++version_;
    return blocks;
}

void BlockTable::append_view(const BlockTable& other, int begin, int end, int offset) {
    if (other.pool_ != pool_) throw std::invalid_argument("a view of another pool's blocks");
    int index = 0;
    size_t count = other.entries_.size();  // `other` may be this table
    for (size_t i = 0; i < count; ++i) {
        ViewEntry entry = other.entries_[i];
        int held = entry.stop - entry.start;
        int from = begin > index ? begin - index : 0;
        int to = end < index + held ? end - index : held;
        index += held;
        if (from >= to) continue;
        entry.stop = entry.start + to;
        entry.start += from;
        entry.position += from + offset;
        entry.rotation += offset;
        pool_->add_reference(entry.block);
        entries_.push_back(entry);
        num_tokens_ += to - from;
    }
    ++version_;
}

std::vector<std::pair<int, int>> BlockTable::make_private(int first_entry) {
    std::vector<std::pair<int, int>> copies;
    int needed = 0;
    for (size_t i = first_entry; i < entries_.size(); ++i)
        needed += pool_->ref_count(entries_[i].block) > 1;
    if (needed > pool_->num_free())
        throw std::length_error("the KV pool has " + std::to_string(pool_->num_free()) +
                                " free blocks, " + std::to_string(needed) + " are needed");
    for (size_t i = first_entry; i < entries_.size(); ++i) {
        if (pool_->ref_count(entries_[i].block) == 1) continue;
        int copy = pool_->allocate();
        copies.emplace_back(entries_[i].block, copy);
        pool_->drop_reference(entries_[i].block);
        entries_[i].block = copy;
    }
    if (!copies.empty()) entries_changed_from(first_entry);
    return copies;
}
