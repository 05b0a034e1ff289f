#include "attention_plan.h"

#include <algorithm>
#include <cmath>

namespace {

// Sequences [first, last) agree on their entries before `depth`; adds the nodes for what follows.
struct ForestBuilder {
    const std::vector<const BlockTable*>& tables;
    const std::vector<int32_t>& row_start;  // [num_sequences + 1]
    AttentionPlan& plan;
    std::vector<int> shared;  // [i]: entries that sequence i shares with sequence i - 1

    int append_entries(const BlockTable& table, int begin, int end) {
        int tokens = 0;
        const ViewEntry* from = table.entries().data();
        size_t first = plan.entries.size();
        plan.entries.insert(plan.entries.end(), from + begin, from + end);
        for (size_t i = first; i < plan.entries.size(); ++i) {
            ViewEntry& entry = plan.entries[i];
            tokens += entry.stop - entry.start;
            if (entry.rotation != 0) entry.rotation = rotation_of(entry.rotation);
        }
        return tokens;
    }

    int rotation_of(int offset) {
        for (size_t i = 0; i < plan.offsets.size(); ++i)
            if (plan.offsets[i] == offset) return static_cast<int>(i);
        plan.offsets.push_back(offset);
        return static_cast<int>(plan.offsets.size()) - 1;
    }

    void build(int first, int last, int depth, int kv_begin) {
        while (first < last) {
            int size = static_cast<int>(tables[first]->entries().size());
            if (size == depth) {  // no entries of its own
                ++first;
                continue;
            }
            // The run of sequences that also share the entry at `depth`, and how far they all
            // agree.
            int run_end = first + 1, common = size;
            while (run_end < last && shared[run_end] > depth) {
                if (shared[run_end] < common) common = shared[run_end];
                ++run_end;
            }
            int entry_begin = static_cast<int>(plan.entries.size());
            int tokens = append_entries(*tables[first], depth, common);
            plan.nodes.push_back({row_start[first], row_start[run_end], entry_begin,
                                  static_cast<int32_t>(plan.entries.size()), kv_begin});
            plan.tokens_stored += tokens;
            if (run_end - first > 1) build(first, run_end, common, kv_begin + tokens);
            first = run_end;
        }
    }
};

}  // namespace

int AttentionPlan::widest_node() const {
    int widest = 0;
    for (const PlanNode& node : nodes) widest = std::max(widest, node.row_end - node.row_begin);
    return widest;
}

AttentionPlan make_plan(const std::vector<const BlockTable*>& tables,
                        const int32_t* rows_per_sequence, const int32_t* positions,
                        const float* inverse_frequencies, int half_head_dim,
                        const uint64_t* draft_masks, bool share) {
    AttentionPlan plan;
    plan.tables = tables;
    plan.offsets.push_back(0);
    size_t num_entries = 0;
    int num_sequences = static_cast<int>(tables.size());
    std::vector<int32_t> row_start{0};
    std::vector<int> shared(num_sequences, 0);
    row_start.reserve(num_sequences + 1);
    for (int i = 0; i < num_sequences; ++i) {
        int rows = rows_per_sequence[i], tokens = tables[i]->num_tokens();
        row_start.push_back(row_start.back() + rows);
        plan.tokens_logical += tokens;
        plan.one_row_each &= rows == 1;
        for (int r = 0; r < rows; ++r) {
            uint64_t mask = draft_masks ? draft_masks[row_start[i] + r] : 0;
            if (draft_masks) {
                plan.draft_mask.push_back(mask ? mask : ~uint64_t{0});
                plan.draft_begin.push_back(mask ? tokens - rows : tokens);
            }
            plan.num_visible.push_back(mask ? tokens : tokens - (rows - 1 - r));
        }
        if (i > 0 && share) shared[i] = tables[i - 1]->common_entries(*tables[i]);
        num_entries += tables[i]->entries().size() - shared[i];
    }
    plan.entries.reserve(num_entries);
    plan.positions.assign(positions, positions + row_start.back());
    ForestBuilder{tables, row_start, plan, shared}.build(0, num_sequences, 0, 0);
    for (int32_t offset : plan.offsets)
        for (int i = 0; i < half_head_dim; ++i) {
            double angle = static_cast<double>(offset) * inverse_frequencies[i];
            plan.rotation_cos.push_back(static_cast<float>(std::cos(angle)));
            plan.rotation_sin.push_back(static_cast<float>(std::sin(angle)));
        }
    return plan;
}
