// Which block is read for which rows: made once a step from the block tables, used by every layer.
#pragma once

#include <cstdint>
#include <vector>

#include "block_table.h"
#include "kernel_table.h"

struct AttentionPlan {
    std::vector<const BlockTable*> tables;  // that it was made from, not kept alive
    std::vector<ViewEntry> entries;         // `rotation` is a row of the rotation tables here
    std::vector<PlanNode> nodes;
    std::vector<int32_t> num_visible, positions;  // one a row
    std::vector<uint64_t> draft_mask;             // one a row, or none at all
    std::vector<int32_t> draft_begin;
    std::vector<int32_t> offsets;  // [num_rotations], the first is 0
    std::vector<float> rotation_cos, rotation_sin;
    bool one_row_each = true;    // of every sequence
    int64_t tokens_stored = 0;   // keys that the plan reads, each counted once
    int64_t tokens_logical = 0;  // keys that its sequences see

    int num_rows() const { return static_cast<int>(num_visible.size()); }
    int widest_node() const;  // rows that one node's read serves, at most
};

// Sequence i has rows_per_sequence[i] rows, the last tokens of tables[i]. Neighbours in the list
// that begin with the same entries share the nodes of those entries: keep siblings next to each
// other. Where draft_masks[row] is not 0, its bit j tells whether the row sees token j of the last
// rows_per_sequence[i] <= 64 tokens of its sequence; other rows, and all if it is null, see every
// token up to themselves.
// share: false gives every sequence nodes of its own, to measure what sharing is worth.
AttentionPlan make_plan(const std::vector<const BlockTable*>& tables,
                        const int32_t* rows_per_sequence, const int32_t* positions,
                        const float* inverse_frequencies, int half_head_dim,
                        const uint64_t* draft_masks, bool share);
