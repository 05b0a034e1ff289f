#include "work_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace {

constexpr int kCostClasses = 256;
constexpr int kSparePages = 3;  // behind an item's pages, beside one for each table that ends there
// Plans of so many pages without any sharing are tried as well.
constexpr int64_t kSmallPlan = 8192;
// They have no merge, and nothing that waits for another: worth what the prediction may be off.
constexpr double kApartBonus = 0.95;

// Lengths of the longest item that are tried, as parts of all work over all programs.
constexpr double kItemShares[] = {2,   1.5,  1.3,  1.2,  1.1,  1.05, 1,     0.85,
                                  0.7, 0.55, 0.45, 0.35, 0.25, 0.18, 0.125, 0.0625};

int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

WorkPage page_of(const ViewEntry& entry, int first, int row_begin, int row_end) {
    return {entry.block,
            first - entry.start,
            entry.start | entry.stop << 8,
            entry.position - entry.start,
            row_begin,
            row_end};
}

bool is_full(const WorkPage& page) {
    return page.span == kBlockSize << 8;
}

// Pages that rows [row_begin, row_end) read, all at one rotation. The first `num_common` are
// read by others too, at about the same time.
struct Strip {
    int row_begin, row_end, page_begin, page_end, num_common, rotation;
    int tile_begin, tile_end;
    int written_at;  // in the plan's page list; -1: not yet, or its items have their own copies
};

// Rows of a strip that share a program, and the pages that they see. `whole`: its items have
// all of its rows.
struct Tile {
    int strip, row_begin, num_rows, page_begin, page_end, wide, num_items;
    bool whole;
    double page_cost;

    int num_pages() const { return page_end - page_begin; }
};

struct LikeTiles {
    Tile tile;
    int count;
};

struct Cut {
    int tile;
    WorkItem item;  // with pages of pages_
    double cost;
};

// Children of a node that fit one tile together, or a wider one; nodes [first_node, last_node).
struct Part {
    int row_begin, row_end, first_node, last_node;
    bool fits;
};

}  // namespace

// What a builder works with, kept from plan to plan: fresh memory costs more than all else.
struct WorkScratch {
    std::vector<int> subtree_end, chain;
    std::vector<Part> parts;
    std::vector<bool> joined;
    std::vector<WorkPage> pages;
    std::vector<Strip> strips;
    std::vector<Tile> tiles;
    std::vector<LikeTiles> like_tiles;
    std::vector<Cut> cuts, sorted_cuts;
    std::vector<int32_t> items_of_row, next_run;
    std::vector<int> partial_of_tile, next_of_tile;
};

// A node whose rows fit one tile is read together with all that is below it: one tile, each page
// seen by its own rows. A wider node is read by several tiles side by side, or once more by each of
// its parts in front of what is theirs.
class WorkBuilder {
  public:
    // apart: every sequence reads for itself.
    WorkBuilder(const AttentionPlan& forest, const WorkCosts& costs, const WorkPlan& plan,
                bool apart, WorkScratch& scratch)
        : forest_(forest),
          costs_(costs),
          tables_(plan.tables_),
          can_advance_(plan.can_advance_),
          apart_(apart),
          scratch_(scratch) {
        chain_.clear(), parts_.clear(), joined_.clear();
        pages_.clear(), strips_.clear(), tiles_.clear(), cuts_.clear();
        find_subtrees();
        int num_nodes = static_cast<int>(forest_.nodes.size());
        for (int node = 0; node < num_nodes; node = subtree_end_[node]) place(node, false);
        choose_item_length();
    }

    double predicted() const { return predicted_; }

    void write(WorkPlan& plan) {
        cut_items();
        number_partials(plan);
        write_items(plan);
    }

  private:
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

    int num_pages(int node) const {
        return forest_.nodes[node].entry_end - forest_.nodes[node].entry_begin;
    }

    int tile_rows() const { return costs_.tile_rows[1]; }

    bool fits_one_tile(int row_begin, int row_end) const {
        return row_end - row_begin <= (apart_ ? 1 : tile_rows());
    }

    // Of tiles over so many rows: wide ones for all but a rest that fits a narrow one.
    double page_cost(int rows, bool beside) const {
        const double* page = beside || rows > tile_rows() ? costs_.page_beside : costs_.page;
        int rest = rows % tile_rows();
        double cost = rows / tile_rows() * page[1];
        return rest == 0 ? cost : cost + page[rest > costs_.tile_rows[0]];
    }

    // `shared_above`: its rows have partial results anyway. The nodes of chain_ are read first.
    void place(int node, bool shared_above) {
        const PlanNode& n = forest_.nodes[node];
        if (n.row_begin == n.row_end) return;
        if (fits_one_tile(n.row_begin, n.row_end) || subtree_end_[node] == node + 1) {
            add_strips(n.row_begin, n.row_end, node, subtree_end_[node]);
            return;
        }
        chain_.push_back(node);
        size_t first = parts_.size();
        split_rows(node);
        size_t last = parts_.size();
        choose_joined(first, shared_above);
        place_parts(first, last, shared_above);
        parts_.resize(first);
        joined_.resize(first);
        chain_.pop_back();
    }

    // Neighbours go together while they fit one tile; rows whose view ends here have no node.
    void split_rows(int node) {
        size_t first_part = parts_.size();
        auto add = [&](int row_begin, int row_end, int first_node, int last_node) {
            if (row_begin == row_end) return;
            bool fits = fits_one_tile(row_begin, row_end);
            Part* before = parts_.size() > first_part ? &parts_.back() : nullptr;
            if (before && before->fits && fits_one_tile(before->row_begin, row_end)) {
                if (before->first_node == before->last_node) before->first_node = first_node;
                before->row_end = row_end;
                before->last_node = last_node;
                return;
            }
            parts_.push_back({row_begin, row_end, first_node, last_node, fits});
        };
        int row = forest_.nodes[node].row_begin, child = node + 1;
        for (; child < subtree_end_[node]; child = subtree_end_[child]) {
            const PlanNode& c = forest_.nodes[child];
            add(row, c.row_begin, child, child);
            add(c.row_begin, c.row_end, child, subtree_end_[child]);
            row = c.row_end;
        }
        add(row, forest_.nodes[node].row_end, child, child);
        joined_.resize(parts_.size(), false);
    }

    // Which parts read the chain in front of what is theirs: none, all, or those that fill tiles of
    // their own so well that leaving the common read saves more than it costs.
    void choose_joined(size_t first, bool shared_above) {
        size_t last = parts_.size();
        int pages = 0, total = 0;
        for (int node : chain_) pages += num_pages(node);
        for (size_t i = first; i < last; ++i) total += rows_of(i);
        int budget = costs_.joined_pages - pages_joined_;
        auto fill = [&](bool value) {
            std::fill(joined_.begin() + first, joined_.begin() + last, value);
        };
        auto copies = [&] {
            return std::count(joined_.begin() + first, joined_.begin() + last, true) * pages;
        };
        fill(true);
        if (apart_) return;
        double partial = costs_.partial * (shared_above ? 1 : 2);
        double all = joined_cost(first, last, pages, partial);
        fill(false);
        double best = joined_cost(first, last, pages, partial);
        bool some = false;
        for (size_t i = first; i < last; ++i) {
            double left = page_cost(total, false) - page_cost(total - rows_of(i), false);
            double added = page_cost(rows_of(i), true) - left;
            joined_[i] = added * pages < partial * rows_of(i);
            some |= joined_[i];
        }
        if (!some || copies() > budget || joined_cost(first, last, pages, partial) >= best)
            fill(false);
        else
            best = joined_cost(first, last, pages, partial);
        if (all <= best && static_cast<int64_t>(last - first) * pages <= budget) fill(true);
        pages_joined_ += static_cast<int>(copies());
    }

    int rows_of(size_t part) const { return parts_[part].row_end - parts_[part].row_begin; }

    double joined_cost(size_t first, size_t last, int pages, double partial) const {
        double cost = 0;
        for (size_t i = first; i < last;) {
            const Part& part = parts_[i];
            if (joined_[i]) {
                cost += page_cost(rows_of(i), true) * pages;
                if (part.first_node == part.last_node) cost += costs_.start;
                ++i;
                continue;
            }
            while (i < last && !joined_[i]) ++i;
            int rows = parts_[i - 1].row_end - part.row_begin;
            cost += page_cost(rows, false) * pages + partial * rows;
            cost += ceil_div(rows, tile_rows()) * costs_.start;
        }
        return cost;
    }

    void place_parts(size_t first, size_t last, bool shared_above) {
        for (size_t i = first; i < last;) {
            if (joined_[i]) {
                place_part(parts_[i++], shared_above);
                continue;
            }
            size_t begin = i;
            while (i < last && !joined_[i]) ++i;
            shared_ = true;
            add_strips(parts_[begin].row_begin, parts_[i - 1].row_end, 0, 0);
            std::vector<int> outer;
            outer.swap(chain_);
            for (size_t j = begin; j < i; ++j) {
                Part part = parts_[j];
                if (part.first_node < part.last_node) place_part(part, true);
            }
            outer.swap(chain_);
        }
    }

    void place_part(Part part, bool shared_above) {
        if (part.fits || part.first_node == part.last_node)
            add_strips(part.row_begin, part.row_end, part.first_node, part.last_node);
        else
            place(part.first_node, shared_above);
    }

    // ---- strips and tiles ----

    // The pages of the chain for all rows, then those of the nodes, each for its own rows.
    void add_strips(int row_begin, int row_end, int first_node, int last_node) {
        rows_begin_ = row_begin;
        rows_end_ = row_end;
        strip_open_ = false;
        for (int node : chain_) add_pages(forest_.nodes[node], row_begin, row_end, true);
        for (int node = first_node; node < last_node; ++node) {
            const PlanNode& n = forest_.nodes[node];
            if (n.row_begin < n.row_end) add_pages(n, n.row_begin, n.row_end, false);
        }
        if (strip_open_) close_strip();
    }

    void add_pages(const PlanNode& n, int row_begin, int row_end, bool common) {
        int first = n.kv_begin, left = oldest_position(row_begin, row_end) - costs_.sliding_window;
        const ViewEntry* entry = forest_.entries.data() + n.entry_begin;
        const ViewEntry* end = forest_.entries.data() + n.entry_end;
        while (entry < end) {
            int count = entry->stop - entry->start;
            if (costs_.sliding_window > 0 && entry->position + count - 1 <= left) {
                first += count;  // before the window of every row
                ++entry;
                continue;
            }
            if (!strip_open_ || strips_.back().rotation != entry->rotation) {
                if (strip_open_) close_strip();
                shared_ |= strip_open_;
                int page = static_cast<int>(pages_.size());
                strips_.push_back(
                    {rows_begin_, rows_end_, page, page, 0, entry->rotation, 0, 0, -1});
                strip_open_ = true;
            }
            const ViewEntry* run = entry;
            while (entry < end && entry->rotation == run->rotation) ++entry;
            size_t begin = pages_.size();
            pages_.resize(begin + (entry - run));
            for (WorkPage* page = &pages_[begin]; run < entry; ++run, ++page) {
                *page = page_of(*run, first, row_begin, row_end);
                first += run->stop - run->start;
            }
            if (common) strips_.back().num_common += static_cast<int>(pages_.size() - begin);
        }
    }

    int oldest_position(int row_begin, int row_end) const {
        if (costs_.sliding_window == 0) return 0;
        return *std::min_element(forest_.positions.begin() + row_begin,
                                 forest_.positions.begin() + row_end);
    }

    void close_strip() {
        Strip& strip = strips_.back();
        strip.page_end = static_cast<int>(pages_.size());
        strip.tile_begin = static_cast<int>(tiles_.size());
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
        int seen = 0, position = forest_.positions[row_begin];
        for (int row = row_begin; row < row_begin + num_rows; ++row) {
            seen = std::max(seen, forest_.num_visible[row]);
            position = std::min(position, forest_.positions[row]);
        }
        bool several = strip.row_end - strip.row_begin > num_rows, whole = several || num_rows == 1;
        int begin = strip.page_begin, end = strip.page_end;
        if (whole) {  // all pages are for all rows, and stand in the order of the views
            while (end > begin && first_token(pages_[end - 1]) >= seen) --end;
            int left = position - costs_.sliding_window;
            if (costs_.sliding_window > 0)
                while (begin < end && last_position(pages_[begin]) <= left) ++begin;
        }
        if (begin == end) return;
        double cost = costs_.page_beside[wide];
        if (!several) {
            int common = std::max(0, strip.num_common - (begin - strip.page_begin));
            int own = end - begin - common;
            cost = (costs_.page[wide] * own + cost * common) / (end - begin);
        }
        tiles_.push_back({static_cast<int>(strips_.size()) - 1, row_begin, num_rows, begin, end,
                          wide, 1, whole, cost});
    }

    static int first_token(const WorkPage& page) { return page.first + (page.span & 255); }
    static int last_position(const WorkPage& page) { return page.position + (page.span >> 8) - 1; }

    // ---- how long an item may be ----

    // Items of a tile, where none takes longer than `limit`. One that is not split may end within
    // a step of the loop.
    int num_items(double limit, const Tile& tile) const {
        int step = costs_.pages_per_read[tile.wide], pages = tile.num_pages();
        double allowed = std::max(0.0, limit * (1 + 1e-9) - costs_.start) / tile.page_cost;
        if (pages <= allowed) return 1;
        return ceil_div(pages, std::max(1, static_cast<int>(allowed / step)) * step);
    }

    // Tries some lengths and takes the one that promises the shortest launch.
    void choose_item_length() {
        find_like_tiles();
        double work = 0, longest = 0;
        for (const LikeTiles& like : scratch_.like_tiles) {
            double cost = costs_.start + like.tile.num_pages() * like.tile.page_cost;
            work += cost * like.count;
            longest = std::max(longest, cost);
        }
        double best_limit = longest;
        predicted_ = predict(longest);
        double share = work * costs_.num_kv_heads / costs_.num_programs;
        for (double factor : kItemShares)
            for (double limit : {share * factor + costs_.start, longest * factor}) {
                if (limit >= longest) continue;
                double predicted = predict(limit);
                if (predicted < predicted_) predicted_ = predicted, best_limit = limit;
            }
        for (Tile& tile : tiles_) tile.num_items = num_items(best_limit, tile);
    }

    // Runs of tiles that cost the same.
    void find_like_tiles() {
        std::vector<LikeTiles>& like_tiles = scratch_.like_tiles;
        like_tiles.clear();
        for (const Tile& tile : tiles_) {
            if (!like_tiles.empty()) {
                const Tile& last = like_tiles.back().tile;
                if (last.num_pages() == tile.num_pages() && last.page_cost == tile.page_cost &&
                    last.wide == tile.wide && last.num_rows == tile.num_rows) {
                    ++like_tiles.back().count;
                    continue;
                }
            }
            like_tiles.push_back({tile, 1});
        }
    }

    double predict(double limit) const {
        double heads = costs_.num_kv_heads, programs = costs_.num_programs;
        double total = 0, longest = 0, count = 0;
        bool merges = shared_;
        for (const auto& [tile, times] : scratch_.like_tiles) {
            int pages = tile.num_pages(), k = num_items(limit, tile);
            longest = std::max(longest, costs_.start + ceil_div(pages, k) * tile.page_cost);
            double taken = k * costs_.start + pages * tile.page_cost;
            if (k > 1 || shared_) taken += costs_.partial * k * tile.num_rows;
            total += taken * times;
            count += k * times;
            merges |= k > 1;
        }
        double even = total * heads / programs;
        // The last programs to start leave others idle: half of the longest, where all are many.
        double taken = count * heads <= programs ? std::max(longest, even)
                                                 : std::max(longest, even + longest * 0.5);
        return taken + (merges ? costs_.launch : 0);
    }

    // ---- items ----

    // Parts of a tile are equal up to one step of the kernel's loop.
    void cut_items() {
        for (const Strip& strip : strips_) {
            bool equal = true;
            for (int t = strip.tile_begin + 1; t < strip.tile_end; ++t)
                equal &= tiles_[t].num_items == tiles_[strip.tile_begin].num_items;
            // The tiles of one run of pages stand side by side: what one of them reads from memory
            // the others find in the cache.
            if (equal && strip.tile_begin < strip.tile_end) {
                for (int index = 0; index < tiles_[strip.tile_begin].num_items; ++index)
                    for (int t = strip.tile_begin; t < strip.tile_end; ++t) cut(t, index);
            } else {
                for (int t = strip.tile_begin; t < strip.tile_end; ++t)
                    for (int index = 0; index < tiles_[t].num_items; ++index) cut(t, index);
            }
        }
        sort_by_cost();
    }

    void cut(int t, int index) {
        const Tile& tile = tiles_[t];
        int step = costs_.pages_per_read[tile.wide], pages = tile.page_end - tile.page_begin;
        int steps = ceil_div(pages, step);
        int begin = tile.page_begin + steps * index / tile.num_items * step;
        int end = tile.page_begin + std::min(pages, steps * (index + 1) / tile.num_items * step);
        int row_begin = tile.row_begin, row_end = tile.row_begin + tile.num_rows;
        if (!tile.whole) {  // only rows that see something here
            row_begin = pages_[begin].row_begin, row_end = pages_[begin].row_end;
            for (int page = begin + 1; page < end; ++page) {
                row_begin = std::min(row_begin, pages_[page].row_begin);
                row_end = std::max(row_end, pages_[page].row_end);
            }
        }
        int rows = row_end - row_begin, wide = rows > costs_.tile_rows[0];
        WorkItem item{row_begin, rows, begin, begin, end, -1, strips_[tile.strip].rotation, wide};
        int seen = seen_by_all(row_begin);
        for (int row = row_begin; row < row_end; ++row) seen = std::min(seen, seen_by_all(row));
        while (item.full_end < end && is_full(pages_[item.full_end]) &&
               pages_[item.full_end].first + kBlockSize <= seen &&
               pages_[item.full_end].row_begin <= row_begin &&
               pages_[item.full_end].row_end >= row_end)
            ++item.full_end;
        cuts_.push_back({t, item, costs_.start + (end - begin) * tile.page_cost});
    }

    // Tokens at the beginning of a row's view that no mask of its draft concerns.
    int seen_by_all(int row) const {
        return forest_.draft_mask.empty() || forest_.draft_mask[row] == ~uint64_t{0}
                   ? forest_.num_visible[row]
                   : forest_.draft_begin[row];
    }

    // Longest first; items of like cost keep their order.
    void sort_by_cost() {
        double longest = 0;
        for (const Cut& cut : cuts_) longest = std::max(longest, cut.cost);
        auto class_of = [&](const Cut& cut) {
            return kCostClasses - 1 - static_cast<int>(cut.cost / longest * (kCostClasses - 1));
        };
        int start[kCostClasses + 1] = {};
        for (const Cut& cut : cuts_) ++start[class_of(cut) + 1];
        std::partial_sum(start, start + kCostClasses + 1, start);
        std::vector<Cut>& sorted = scratch_.sorted_cuts;
        sorted.resize(cuts_.size());
        for (const Cut& cut : cuts_) sorted[start[class_of(cut)]++] = cut;
        cuts_.swap(sorted);
    }

    // ---- partial results ----

    // A tile whose items all have its rows leaves one run a row, the others one an item and row.
    void number_partials(WorkPlan& plan) {
        int num_rows = plan.num_rows();
        std::vector<int32_t>& items_of_row = scratch_.items_of_row;
        std::vector<int>& partial_of_tile = scratch_.partial_of_tile;
        std::vector<int>& next_of_tile = scratch_.next_of_tile;
        items_of_row.assign(num_rows, 0);
        partial_of_tile.assign(tiles_.size(), -1);
        next_of_tile.assign(tiles_.size(), 0);
        auto each_row = [&](const auto& of, auto function) {
            for (int row = of.row_begin; row < of.row_begin + of.num_rows; ++row) function(row);
        };
        for (const Tile& tile : tiles_)
            if (tile.whole) each_row(tile, [&](int row) { items_of_row[row] += tile.num_items; });
        for (const Cut& cut : cuts_)
            if (!tiles_[cut.tile].whole) each_row(cut.item, [&](int row) { ++items_of_row[row]; });
        plan.merge_indptr.assign(num_rows + 1, 0);
        auto number = [&](const auto& of, int count) {
            bool alone = true;
            each_row(of, [&](int row) { alone &= items_of_row[row] == 1; });
            if (alone) return -1;
            int begin = plan.num_partials;
            plan.num_partials += of.num_rows * count;
            each_row(of, [&](int row) { ++plan.merge_indptr[row + 1]; });
            return begin;
        };
        for (size_t t = 0; t < tiles_.size(); ++t)
            if (tiles_[t].whole) partial_of_tile[t] = number(tiles_[t], tiles_[t].num_items);
        for (Cut& cut : cuts_) {
            const Tile& tile = tiles_[cut.tile];
            if (!tile.whole)
                cut.item.partial_begin = number(cut.item, 1);
            else if (partial_of_tile[cut.tile] >= 0)
                cut.item.partial_begin =
                    partial_of_tile[cut.tile] + next_of_tile[cut.tile]++ * tile.num_rows;
        }
        std::partial_sum(plan.merge_indptr.begin(), plan.merge_indptr.end(),
                         plan.merge_indptr.begin());
        plan.merge_runs.resize(plan.merge_indptr.back());
        std::vector<int32_t>& next = scratch_.next_run;
        next.assign(plan.merge_indptr.begin(), plan.merge_indptr.end() - 1);
        auto add_runs = [&](const auto& of, int begin, int count) {
            each_row(of, [&](int row) {
                plan.merge_runs[next[row]++] = {begin + row - of.row_begin, of.num_rows, count};
            });
        };
        for (size_t t = 0; t < tiles_.size(); ++t)
            if (partial_of_tile[t] >= 0)
                add_runs(tiles_[t], partial_of_tile[t], tiles_[t].num_items);
        for (const Cut& cut : cuts_)
            if (!tiles_[cut.tile].whole && cut.item.partial_begin >= 0)
                add_runs(cut.item, cut.item.partial_begin, 1);
    }

    // ---- the plan's lists ----

    // Strips that several tiles read are written once; other items get their own pages, and behind
    // them room for tables to grow.
    void write_items(WorkPlan& plan) {
        plan.items.reserve(cuts_.size());
        plan.pages.reserve(pages_.size() * 2 + cuts_.size() * kSparePages);
        for (const Cut& cut : cuts_) {
            Strip& strip = strips_[tiles_[cut.tile].strip];
            WorkItem item = cut.item;
            int moved;
            if (strip.tile_end - strip.tile_begin > 1) {
                if (strip.written_at < 0) {
                    strip.written_at = static_cast<int>(plan.pages.size());
                    plan.pages.insert(plan.pages.end(), pages_.begin() + strip.page_begin,
                                      pages_.begin() + strip.page_end);
                }
                moved = strip.written_at - strip.page_begin;
                plan.page_limit_.push_back(item.page_end + moved);
            } else {
                moved = static_cast<int>(plan.pages.size()) - item.page_begin;
                plan.pages.insert(plan.pages.end(), pages_.begin() + item.page_begin,
                                  pages_.begin() + item.page_end);
                int spare = can_advance_ ? note_leaves(plan, item, moved) : 0;
                plan.pages.resize(plan.pages.size() + spare);
                plan.page_limit_.push_back(item.page_end + moved + spare);
            }
            item.page_begin += moved;
            item.full_end += moved;
            item.page_end += moved;
            plan.pages_read += item.page_end - item.page_begin;
            plan.items.push_back(item);
        }
    }

    // Tables that end in one of the item's pages -> room to leave.
    int note_leaves(WorkPlan& plan, const WorkItem& item, int moved) const {
        int count = 0;
        for (int p = item.page_begin; p < item.page_end; ++p) {
            const WorkPage& page = pages_[p];
            if (page.row_end - page.row_begin != 1) continue;
            const BlockTable& table = *tables_[page.row_begin];  // one row a table
            const ViewEntry& last = table.entries().back();
            bool ends = page.first + last.stop == table.num_tokens();
            if (!ends || page.block != last.block) continue;
            plan.leaves_[page.row_begin] = {static_cast<int32_t>(plan.items.size()), p + moved,
                                            static_cast<int32_t>(table.entries().size())};
            ++count;
        }
        return count == 0 ? 0 : count + kSparePages;
    }

    const AttentionPlan& forest_;
    const WorkCosts& costs_;
    const std::vector<const BlockTable*>& tables_;
    bool can_advance_, apart_;
    WorkScratch& scratch_;
    std::vector<int>&subtree_end_ = scratch_.subtree_end, &chain_ = scratch_.chain;
    std::vector<Part>& parts_ = scratch_.parts;
    std::vector<bool>& joined_ = scratch_.joined;
    std::vector<WorkPage>& pages_ = scratch_.pages;
    std::vector<Strip>& strips_ = scratch_.strips;
    std::vector<Tile>& tiles_ = scratch_.tiles;
    std::vector<Cut>& cuts_ = scratch_.cuts;
    int pages_joined_ = 0;
    int rows_begin_ = 0, rows_end_ = 0;
    bool strip_open_ = false;
    bool shared_ = false;  // rows have partial results whatever the length of items
    double predicted_ = 0;
};

WorkPlan::WorkPlan() : scratch_{std::make_unique<WorkScratch>(), std::make_unique<WorkScratch>()} {}
WorkPlan::~WorkPlan() = default;

void WorkPlan::make(const AttentionPlan& forest, const WorkCosts& costs) {
    clear(forest);
    bool is_small = tokens_logical <= kSmallPlan * kBlockSize && costs.joined_pages > 0;
    WorkBuilder shared(forest, costs, *this, false, *scratch_[0]);
    predicted_us = shared.predicted();
    if (is_small && tokens_stored < tokens_logical) {
        WorkBuilder apart(forest, costs, *this, true, *scratch_[1]);
        if (apart.predicted() * kApartBonus < shared.predicted()) {
            predicted_us = apart.predicted();
            apart.write(*this);
            return;
        }
    }
    shared.write(*this);
}

void WorkPlan::clear(const AttentionPlan& forest) {
    tables_ = forest.tables;
    num_visible = forest.num_visible;
    positions = forest.positions;
    draft_mask = forest.draft_mask;
    draft_begin = forest.draft_begin;
    rotation_cos = forest.rotation_cos;
    rotation_sin = forest.rotation_sin;
    tokens_stored = forest.tokens_stored;
    tokens_logical = forest.tokens_logical;
    can_advance_ = forest.one_row_each && forest.draft_mask.empty();
    num_partials = 0;
    pages_read = 0;
    items.clear(), pages.clear(), merge_runs.clear(), page_limit_.clear();
    leaves_.assign(tables_.size(), {});
    versions_.clear();
    for (const BlockTable* table : tables_) versions_.push_back(table->version());
}

void WorkPlan::pack(const WorkLayout& layout, int32_t* buffer) const {
    auto copy = [&](int64_t offset, const auto& values) {
        if (!values.empty())
            std::memcpy(buffer + offset, values.data(), values.size() * sizeof(values[0]));
    };
    copy(layout.items, items);
    std::memset(buffer + layout.items + items.size() * sizeof(WorkItem) / 4, 0,
                (layout.max_items - items.size()) * sizeof(WorkItem));
    // One array for each member: the kernel loads a member of neighbouring pages at a time.
    int32_t* member = buffer + layout.pages;
    for (int32_t WorkPage::* value :
         {&WorkPage::block, &WorkPage::first, &WorkPage::span, &WorkPage::position,
          &WorkPage::row_begin, &WorkPage::row_end}) {
        for (size_t i = 0; i < pages.size(); ++i) member[i] = pages[i].*value;
        member += layout.max_pages;
    }
    copy(layout.merge_indptr, merge_indptr);
    std::fill(buffer + layout.merge_indptr + merge_indptr.size(),
              buffer + layout.merge_indptr + layout.max_rows + 1, merge_indptr.back());
    copy(layout.merge_runs, merge_runs);
    copy(layout.num_visible, num_visible);
    copy(layout.positions, positions);
    copy(layout.draft_begin, draft_begin);
    copy(layout.draft_mask, draft_mask);
}

bool WorkPlan::advance(const int32_t* new_positions) {
    if (!can_advance_) return false;
    std::vector<int> needed(items.size(), 0);
    for (size_t i = 0; i < tables_.size(); ++i) {
        const BlockTable& table = *tables_[i];
        const Leaf& leaf = leaves_[i];
        if (leaf.item < 0 || table.version() != versions_[i] || table.num_tokens() < num_visible[i])
            return false;
        needed[leaf.item] += static_cast<int>(table.entries().size()) - leaf.num_entries;
    }
    for (size_t i = 0; i < items.size(); ++i)
        if (items[i].page_end + needed[i] > page_limit_[i]) return false;
    for (size_t i = 0; i < tables_.size(); ++i) {
        const BlockTable& table = *tables_[i];
        const auto& entries = table.entries();
        Leaf& leaf = leaves_[i];
        WorkItem& item = items[leaf.item];
        int row = static_cast<int>(i), first = pages[leaf.page].first;
        first += entries[leaf.num_entries - 1].start;
        // The page that was the last one, and those behind it.
        for (size_t e = leaf.num_entries - 1; e < entries.size(); ++e) {
            if (static_cast<int>(e) >= leaf.num_entries) {
                leaf.page = item.page_end++;
                ++pages_read;
            }
            pages[leaf.page] = page_of(entries[e], first, row, row + 1);
            first += entries[e].stop - entries[e].start;
            // The pages of a row alone stand in order.
            if (item.num_rows == 1 && item.full_end == leaf.page && is_full(pages[leaf.page]))
                ++item.full_end;
        }
        leaf.num_entries = static_cast<int32_t>(entries.size());
        tokens_stored += table.num_tokens() - num_visible[i];
        tokens_logical += table.num_tokens() - num_visible[i];
        num_visible[i] = table.num_tokens();
        positions[i] = new_positions[i];
    }
    return true;
}
