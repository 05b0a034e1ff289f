#include "work_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace {

constexpr int kGrowthPages = 4;  // room behind each table's end, for `advance`
constexpr int kCostClasses = 256;
constexpr int kNotYetKnown = -2;  // item of a leaf

// Ideal shares of a program in all work, times which an item may last at most.
constexpr double kItemShares[] = {2, 1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625};

int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

}  // namespace

class WorkBuilder {
  public:
    WorkBuilder(const AttentionPlan& forest, const WorkCosts& costs, WorkPlan& plan)
        : forest_(forest), costs_(costs), plan_(plan) {}

    void build() {
        find_subtrees();
        int num_nodes = static_cast<int>(forest_.nodes.size());
        for (int node = 0; node < num_nodes; node = subtree_end_[node]) place(node, 0);
        choose_item_length();
        number_partials();
        emit_items();
    }

  private:
    // Pages that some rows read, all at one rotation.
    struct Strip {
        int row_begin, row_end, page_begin, page_end;
        int rotation;
        int kv_begin;      // of the first token in the rows' views
        int first_ragged;  // page from which on pages are not full
        int tile_begin, tile_end;
    };

    // Rows of a strip that share a program, and the pages that they see.
    struct Tile {
        int row_begin, num_rows, page_begin, full_end, page_end;
        int wide, beside, num_items, partial_begin;
    };

    struct Part {
        int row_begin, row_end, node;  // -1: rows whose view ends here
    };

    // ---- which nodes are read together ----

    void find_subtrees() {
        int num_nodes = static_cast<int>(forest_.nodes.size());
        subtree_end_.assign(num_nodes, num_nodes);
        std::vector<int> open;
        for (int j = 0; j < num_nodes; ++j) {
            while (!open.empty() &&
                   forest_.nodes[j].row_begin >= forest_.nodes[open.back()].row_end) {
                subtree_end_[open.back()] = j;
                open.pop_back();
            }
            open.push_back(j);
        }
    }

    int node_pages(int node) const {
        return forest_.nodes[node].entry_end - forest_.nodes[node].entry_begin;
    }

    // Wide tiles for all but a rest that fits a narrow one.
    double page_cost(int rows) const {
        const double* page = rows > costs_.tile_rows[1] ? costs_.page_beside : costs_.page;
        int rest = rows % costs_.tile_rows[1];
        double cost = rows / costs_.tile_rows[1] * page[1];
        return rest == 0 ? cost : cost + page[rest > costs_.tile_rows[0]];
    }

    double read_cost(int rows, int pages) const {
        return page_cost(rows) * pages + ceil_div(rows, costs_.tile_rows[1]) * costs_.start;
    }

    // Rows of `node` read it after the nodes of chain_, `chain_pages` together.
    void place(int node, int chain_pages) {
        const PlanNode& n = forest_.nodes[node];
        if (n.row_begin == n.row_end) return;
        chain_.push_back(node);
        int pages = chain_pages + node_pages(node);
        size_t first_part = parts_.size();
        split_rows(node);
        size_t num_parts = parts_.size() - first_part;
        if (num_parts == 1 && parts_[first_part].node < 0) {
            add_strips(n.row_begin, n.row_end);
        } else {
            choose_joined(first_part, pages);
            place_parts(first_part, first_part + num_parts, pages);
        }
        parts_.resize(first_part);
        joined_.resize(first_part);
        chain_.pop_back();
    }

    void split_rows(int node) {
        int row = forest_.nodes[node].row_begin;
        auto add_gap = [&](int end) {
            if (row < end) parts_.push_back({row, end, -1});
        };
        for (int child = node + 1; child < subtree_end_[node]; child = subtree_end_[child]) {
            const PlanNode& c = forest_.nodes[child];
            if (c.row_begin == c.row_end) continue;
            add_gap(c.row_begin);
            parts_.push_back({c.row_begin, c.row_end, child});
            row = c.row_end;
        }
        add_gap(forest_.nodes[node].row_end);
        joined_.resize(parts_.size(), false);
    }

    // Which parts read the node in front of what is theirs: none, all, or those that fill tiles of
    // their own so well that leaving the common read saves more than it costs.
    void choose_joined(size_t first, int pages) {
        size_t last = parts_.size();
        int budget = costs_.joined_pages - pages_joined_;
        auto rows = [&](size_t i) { return parts_[i].row_end - parts_[i].row_begin; };
        auto fill = [&](bool value) {
            std::fill(joined_.begin() + first, joined_.begin() + last, value);
        };
        auto copies = [&] {
            return std::count(joined_.begin() + first, joined_.begin() + last, true) * pages;
        };
        fill(false);
        double best = joined_cost(first, last, pages);
        fill(true);
        double all = joined_cost(first, last, pages);
        if (copies() <= budget && all <= best) {
            pages_joined_ += static_cast<int>(copies());
            return;
        }
        int total = 0;
        for (size_t i = first; i < last; ++i) total += rows(i);
        bool some = false;
        for (size_t i = first; i < last; ++i) {
            double added = page_cost(rows(i)) - (page_cost(total) - page_cost(total - rows(i)));
            joined_[i] = added * pages < costs_.partial * rows(i);
            some |= joined_[i];
        }
        if (some && copies() <= budget && joined_cost(first, last, pages) < best)
            pages_joined_ += static_cast<int>(copies());
        else
            fill(false);
    }

    double joined_cost(size_t first, size_t last, int pages) const {
        double cost = 0;
        for (size_t i = first; i < last;) {
            int row_begin = parts_[i].row_begin;
            if (joined_[i]) {
                int rows = parts_[i].row_end - row_begin;
                cost += parts_[i].node < 0 ? read_cost(rows, pages) : page_cost(rows) * pages;
                ++i;
                continue;
            }
            while (i < last && !joined_[i]) ++i;
            int rows = parts_[i - 1].row_end - row_begin;
            cost += read_cost(rows, pages) + costs_.partial * rows;
        }
        return cost;
    }

    void place_parts(size_t first, size_t last, int pages) {
        for (size_t i = first; i < last;) {
            if (joined_[i]) {
                Part part = parts_[i++];
                if (part.node < 0)
                    add_strips(part.row_begin, part.row_end);
                else
                    place(part.node, pages);
                continue;
            }
            size_t begin = i;
            while (i < last && !joined_[i]) ++i;
            add_strips(parts_[begin].row_begin, parts_[i - 1].row_end);
            std::vector<int> outer;
            outer.swap(chain_);
            for (size_t j = begin; j < i; ++j)
                if (parts_[j].node >= 0) place(parts_[j].node, 0);
            outer.swap(chain_);
        }
    }

    // ---- pages, strips and tiles ----

    void add_strips(int row_begin, int row_end) {
        int kv = forest_.nodes[chain_.front()].kv_begin;
        bool open = false;
        for (int node : chain_) {
            const PlanNode& n = forest_.nodes[node];
            for (int e = n.entry_begin; e < n.entry_end; ++e) {
                const ViewEntry& entry = forest_.entries[e];
                int page = static_cast<int>(plan_.page_block.size());
                if (!open || strips_.back().rotation != entry.rotation) {
                    if (open) close_strip();
                    strips_.push_back({row_begin, row_end, page, page, entry.rotation, kv, -1, 0, 0});
                    open = true;
                }
                for (auto* list : {&plan_.page_block, &plan_.page_first, &plan_.page_span,
                                   &plan_.page_position})
                    list->push_back(0);
                plan_.write_page(page, entry, kv);
                Strip& strip = strips_.back();
                bool full = entry.start == 0 && entry.stop == kBlockSize;
                if (!full && strip.first_ragged < 0) strip.first_ragged = page;
                strip.page_end = page + 1;
                kv += entry.stop - entry.start;
            }
        }
        if (!open) return;
        note_leaf();
        close_strip();
    }

    // The last strip holds the growing end of a table where its rows are that table's one row.
    void note_leaf() {
        Strip& strip = strips_.back();
        if (strip.row_end - strip.row_begin != 1 || !plan_.can_advance_) return;
        const PlanNode& n = forest_.nodes[chain_.back()];
        const BlockTable& table = *plan_.tables_[strip.row_begin];  // one row a table
        int entries = static_cast<int>(table.entries().size());
        if (n.kv_begin + node_tokens(n) != table.num_tokens()) return;
        WorkPlan::Leaf& leaf = plan_.leaves_[strip.row_begin];
        leaf.first_entry = entries - (strip.page_end - strip.page_begin);
        leaf.first_page = strip.page_begin;
        leaf.page_capacity = strip.page_end - strip.page_begin + kGrowthPages;
        leaf.ragged = strip.first_ragged >= 0 && strip.first_ragged + 1 < strip.page_end;
        leaf.item = kNotYetKnown;
        for (auto* list :
             {&plan_.page_block, &plan_.page_first, &plan_.page_span, &plan_.page_position})
            list->resize(list->size() + kGrowthPages, 0);
    }

    int node_tokens(const PlanNode& n) const {
        int tokens = 0;
        for (int e = n.entry_begin; e < n.entry_end; ++e)
            tokens += forest_.entries[e].stop - forest_.entries[e].start;
        return tokens;
    }

    // The last token that all, and that any, of a row's draft-free rules let it see.
    int seen_by_all(int row) const {
        return forest_.draft_mask.empty() || forest_.draft_mask[row] == ~uint64_t{0}
                   ? forest_.num_visible[row]
                   : forest_.draft_begin[row];
    }

    void close_strip() {
        Strip& strip = strips_.back();
        strip.tile_begin = static_cast<int>(tiles_.size());
        if (strip.first_ragged < 0) strip.first_ragged = strip.page_end;
        for (int row = strip.row_begin; row < strip.row_end;) {
            int left = strip.row_end - row;
            int wide = left > costs_.tile_rows[0];
            int rows = std::min(left, costs_.tile_rows[wide]);
            add_tile(strip, row, rows, wide);
            row += rows;
        }
        strip.tile_end = static_cast<int>(tiles_.size());
    }

    void add_tile(const Strip& strip, int row_begin, int num_rows, int wide) {
        int by_all = seen_by_all(row_begin), by_any = 0, position = forest_.positions[row_begin];
        for (int row = row_begin; row < row_begin + num_rows; ++row) {
            by_all = std::min(by_all, seen_by_all(row));
            by_any = std::max(by_any, forest_.num_visible[row]);
            position = std::min(position, forest_.positions[row]);
        }
        int begin = strip.page_begin, end = strip.page_end;
        while (end > begin && plan_.page_first[end - 1] + (plan_.page_span[end - 1] & 255) >= by_any)
            --end;
        if (costs_.sliding_window > 0)
            while (begin < end && last_position(begin) <= position - costs_.sliding_window) ++begin;
        if (begin == end) return;
        int full = strip.page_begin + std::max(0, by_all - strip.kv_begin) / kBlockSize;
        full = std::clamp(std::min(full, strip.first_ragged), begin, end);
        int beside = strip.row_end - strip.row_begin > num_rows;
        tiles_.push_back({row_begin, num_rows, begin, full, end, wide, beside, 1, -1});
    }

    int last_position(int page) const {
        return plan_.page_position[page] + (plan_.page_span[page] >> 8) - 1;
    }

    // ---- how long an item may be ----

    static int num_items(int pages, int limit) { return ceil_div(pages, limit); }

    // The price of a page: tiles come in four kinds, wide + 2 * beside.
    double page_price(int kind) const {
        return (kind & 2 ? costs_.page_beside : costs_.page)[kind & 1];
    }

    int longest_item(double cost, int kind) const {
        int step = costs_.pages_per_read[kind & 1];
        double pages = std::max(0.0, cost - costs_.start) / page_price(kind);
        return std::max(1, static_cast<int>(pages / step)) * step;
    }

    // Tries some lengths and takes the one that promises the shortest launch.
    void choose_item_length() {
        struct Class {
            int64_t tiles = 0, rows = 0;
        };
        std::vector<Class> classes[4];
        for (const Tile& tile : tiles_) {
            size_t pages = tile.page_end - tile.page_begin;
            auto& list = classes[tile.wide + 2 * tile.beside];
            if (list.size() <= pages) list.resize(pages + 1);
            ++list[pages].tiles;
            list[pages].rows += tile.num_rows;
        }
        std::vector<std::pair<int, Class>> present[4];
        double work = 0, longest = 0;
        for (int kind = 0; kind < 4; ++kind)
            for (size_t pages = 0; pages < classes[kind].size(); ++pages) {
                if (classes[kind][pages].tiles == 0) continue;
                present[kind].emplace_back(static_cast<int>(pages), classes[kind][pages]);
                double cost = costs_.start + pages * page_price(kind);
                work += cost * classes[kind][pages].tiles;
                longest = std::max(longest, cost);
            }
        double heads = costs_.num_kv_heads, programs = costs_.num_programs;
        double share = work * heads / programs;
        auto predict = [&](double limit) {
            double total = 0, longest_now = 0, count = 0;
            for (int kind = 0; kind < 4; ++kind) {
                int limit_pages = longest_item(limit, kind);
                for (const auto& [pages, tiles] : present[kind]) {
                    int k = num_items(pages, limit_pages);
                    double item = costs_.start + ceil_div(pages, k) * page_price(kind);
                    longest_now = std::max(longest_now, item);
                    count += static_cast<double>(k) * tiles.tiles * heads;
                    total += tiles.tiles * (k * costs_.start + pages * page_price(kind));
                    if (k > 1) total += costs_.partial * k * tiles.rows;
                }
            }
            double even = total * heads / programs;
            return count <= programs ? std::max(longest_now, even) : even + longest_now * 0.5;
        };
        double best_limit = longest, best = predict(longest);
        auto consider = [&](double limit) {
            if (limit >= longest) return;
            double predicted = predict(limit);
            if (predicted < best) best = predicted, best_limit = limit;
        };
        for (double factor : kItemShares) {
            consider(share * factor);
            consider(longest * factor);
        }
        for (Tile& tile : tiles_)
            tile.num_items = num_items(tile.page_end - tile.page_begin,
                                       longest_item(best_limit, tile.wide + 2 * tile.beside));
    }

    // ---- partial results ----

    void number_partials() {
        int num_rows = plan_.num_rows();
        std::vector<int32_t> items_of_row(num_rows, 0), runs_of_row(num_rows, 0);
        for (const Tile& tile : tiles_)
            for (int row = tile.row_begin; row < tile.row_begin + tile.num_rows; ++row)
                items_of_row[row] += tile.num_items;
        for (Tile& tile : tiles_) {
            bool whole = true;
            for (int row = tile.row_begin; row < tile.row_begin + tile.num_rows; ++row)
                whole &= items_of_row[row] == 1;
            if (whole) continue;
            tile.partial_begin = plan_.num_partials;
            plan_.num_partials += tile.num_rows * tile.num_items;
            for (int row = tile.row_begin; row < tile.row_begin + tile.num_rows; ++row)
                ++runs_of_row[row];
        }
        plan_.merge_indptr.assign(num_rows + 1, 0);
        std::partial_sum(runs_of_row.begin(), runs_of_row.end(), plan_.merge_indptr.begin() + 1);
        plan_.merge_runs.resize(plan_.merge_indptr.back());
        std::vector<int32_t> next(plan_.merge_indptr.begin(), plan_.merge_indptr.end() - 1);
        for (const Tile& tile : tiles_) {
            if (tile.partial_begin < 0) continue;
            for (int i = 0; i < tile.num_rows; ++i)
                plan_.merge_runs[next[tile.row_begin + i]++] = {tile.partial_begin + i,
                                                                tile.num_rows, tile.num_items};
        }
    }

    // ---- items ----

    // Part `index` of a tile. Parts are equal up to one step of the kernel's loop.
    WorkItem item_of(const Tile& tile, int rotation, int index) const {
        int step = costs_.pages_per_read[tile.wide], pages = tile.page_end - tile.page_begin;
        int steps = ceil_div(pages, step);
        int begin = tile.page_begin + steps * index / tile.num_items * step;
        int end = tile.page_begin + std::min(pages, steps * (index + 1) / tile.num_items * step);
        int partial = tile.partial_begin < 0 ? -1 : tile.partial_begin + index * tile.num_rows;
        return {tile.row_begin, tile.num_rows, begin,    std::clamp(tile.full_end, begin, end),
                end,            partial,       rotation, tile.wide};
    }

    void emit_items() {
        std::vector<WorkItem> unsorted;
        for (const Strip& strip : strips_) {
            bool equal = true;
            for (int t = strip.tile_begin + 1; t < strip.tile_end; ++t)
                equal &= tiles_[t].num_items == tiles_[strip.tile_begin].num_items;
            // The tiles of one run of pages stand side by side: what one of them reads from memory
            // the others find in the cache.
            int outer = equal && strip.tile_begin < strip.tile_end
                            ? tiles_[strip.tile_begin].num_items
                            : 0;
            for (int index = 0; index < outer; ++index)
                for (int t = strip.tile_begin; t < strip.tile_end; ++t)
                    unsorted.push_back(item_of(tiles_[t], strip.rotation, index));
            for (int t = strip.tile_begin; !equal && t < strip.tile_end; ++t)
                for (int index = 0; index < tiles_[t].num_items; ++index)
                    unsorted.push_back(item_of(tiles_[t], strip.rotation, index));
        }
        sort_by_cost(unsorted);
        for (size_t i = 0; i < plan_.items.size(); ++i) {
            const WorkItem& item = plan_.items[i];
            plan_.pages_read += item.page_end - item.page_begin;
            if (!plan_.can_advance_ || item.num_rows != 1) continue;
            WorkPlan::Leaf& leaf = plan_.leaves_[item.row_begin];
            if (leaf.item != kNotYetKnown) continue;
            int leaf_end = leaf.first_page + leaf.page_capacity - kGrowthPages;
            if (item.page_begin >= leaf.first_page && item.page_end == leaf_end)
                leaf.item = static_cast<int>(i);
        }
    }

    // Longest first; items of like cost keep their order.
    void sort_by_cost(const std::vector<WorkItem>& unsorted) {
        auto cost = [&](const WorkItem& item) {
            return costs_.start + (item.page_end - item.page_begin) * costs_.page[item.wide];
        };
        double longest = 0;
        for (const WorkItem& item : unsorted) longest = std::max(longest, cost(item));
        auto class_of = [&](const WorkItem& item) {
            return kCostClasses - 1 -
                   static_cast<int>(cost(item) / longest * (kCostClasses - 1));
        };
        int start[kCostClasses + 1] = {};
        for (const WorkItem& item : unsorted) ++start[class_of(item) + 1];
        std::partial_sum(start, start + kCostClasses + 1, start);
        plan_.items.resize(unsorted.size());
        for (const WorkItem& item : unsorted) plan_.items[start[class_of(item)]++] = item;
    }

    const AttentionPlan& forest_;
    const WorkCosts& costs_;
    WorkPlan& plan_;
    std::vector<int> subtree_end_, chain_;
    std::vector<Part> parts_;
    std::vector<bool> joined_;
    int pages_joined_ = 0;
    std::vector<Strip> strips_;
    std::vector<Tile> tiles_;
};

WorkPlan::WorkPlan(std::vector<const BlockTable*> tables, const AttentionPlan& forest,
                   const WorkCosts& costs)
    : num_visible(forest.num_visible),
      positions(forest.positions),
      draft_mask(forest.draft_mask),
      draft_begin(forest.draft_begin),
      rotation_cos(forest.rotation_cos),
      rotation_sin(forest.rotation_sin),
      tokens_stored(forest.tokens_stored),
      tokens_logical(forest.tokens_logical),
      tables_(std::move(tables)),
      leaves_(tables_.size()) {
    can_advance_ = forest.one_row_each && draft_mask.empty();
    for (const BlockTable* table : tables_) versions_.push_back(table->version());
    WorkBuilder(forest, costs, *this).build();
}

void WorkPlan::pack(const WorkLayout& layout, int32_t* buffer) const {
    auto copy = [&](int64_t offset, const auto& values) {
        if (!values.empty())
            std::memcpy(buffer + offset, values.data(), values.size() * sizeof(values[0]));
    };
    copy(layout.items, items);
    size_t spare = layout.max_items - items.size();
    std::memset(buffer + layout.items + items.size() * sizeof(WorkItem) / 4, 0,
                spare * sizeof(WorkItem));
    copy(layout.page_block, page_block);
    copy(layout.page_first, page_first);
    copy(layout.page_span, page_span);
    copy(layout.page_position, page_position);
    copy(layout.merge_indptr, merge_indptr);
    std::fill(buffer + layout.merge_indptr + merge_indptr.size(),
              buffer + layout.merge_indptr + layout.max_rows + 1, merge_indptr.back());
    copy(layout.merge_runs, merge_runs);
    copy(layout.num_visible, num_visible);
    copy(layout.positions, positions);
    copy(layout.draft_begin, draft_begin);
    copy(layout.draft_mask, draft_mask);
}

void WorkPlan::write_page(int page, const ViewEntry& entry, int first) {
    page_block[page] = entry.block;
    page_first[page] = first - entry.start;
    page_span[page] = entry.start | entry.stop << 8;
    page_position[page] = entry.position - entry.start;
}

bool WorkPlan::advance(const int32_t* new_positions) {
    if (!can_advance_) return false;
    for (size_t i = 0; i < tables_.size(); ++i) {
        const BlockTable& table = *tables_[i];
        const Leaf& leaf = leaves_[i];
        int pages = static_cast<int>(table.entries().size()) - leaf.first_entry;
        if (leaf.item < 0 || table.version() != versions_[i] || pages > leaf.page_capacity ||
            table.num_tokens() < num_visible[i])
            return false;
    }
    for (size_t i = 0; i < tables_.size(); ++i) {
        const BlockTable& table = *tables_[i];
        const Leaf& leaf = leaves_[i];
        WorkItem& item = items[leaf.item];
        const auto& entries = table.entries();
        int first = num_visible[i];
        int end = leaf.first_page + static_cast<int>(entries.size()) - leaf.first_entry;
        // The page that was the last one, and those behind it.
        for (int page = item.page_end - 1; page < end; ++page) {
            const ViewEntry& entry = entries[leaf.first_entry + page - leaf.first_page];
            if (page == item.page_end - 1) first = page_first[page] + entry.start;
            write_page(page, entry, first);
            first += entry.stop - entry.start;
        }
        int grown = table.num_tokens() - num_visible[i];
        tokens_stored += grown;
        tokens_logical += grown;
        pages_read += end - item.page_end;
        item.page_end = end;
        if (!leaf.ragged) item.full_end = entries.back().stop == kBlockSize ? end : end - 1;
        item.full_end = std::max(item.full_end, item.page_begin);
        num_visible[i] = table.num_tokens();
        positions[i] = new_positions[i];
    }
    return true;
}
