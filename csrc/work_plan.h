// What the programs of one attention launch on a GPU do: an AttentionPlan cut into items of about
// equal work. kernels/launch.py has the costs and says in plain Python what is decided here.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention_plan.h"

// Of one program, in microseconds while the whole card is busy.
struct WorkCosts {
    double start;           // a program, its queries and its results
    double launch;          // of a further kernel
    double page[2];         // one KV head's part of a page under a narrow, under a wide tile
    double page_beside[2];  // the same, of several tiles that read it at a time
    double partial;         // a row's partial result of one KV head, written and merged
    int tile_rows[2];       // query rows of a narrow, of a wide tile
    int pages_per_read[2];  // an item's pages are a multiple of these but for the last item
    int num_programs;       // that the card runs at a time
    int num_kv_heads;       // programs of an item
    int joined_pages;       // at most so many pages are listed again for children
    int sliding_window;     // of every layer; 0: some layer has none
};

// Rows [row_begin, row_begin + num_rows) read pages [page_begin, page_end) of the page list. All
// rows see all of the pages before full_end; of the others each row sees what is its own. A tile of
// the kernel holds their query heads of one KV head. The result goes to the output where
// partial_begin is -1, else to partial results from partial_begin on.
struct WorkItem {
    int32_t row_begin, num_rows, page_begin, full_end, page_end, partial_begin;
    int32_t rotation;  // as in ViewEntry
    int32_t wide;      // 1: the wide tile
};

// A block in the page list. `first`: the number of its lane 0 in the rows' views; `span`: its first
// and last lanes as start | stop << 8; `position`: of lane 0. Rows [row_begin, row_end) see it.
struct WorkPage {
    int32_t block, first, span, position, row_begin, row_end;
};

// `count` partial results of a row: first, first + stride, ...
struct MergeRun {
    int32_t first, stride, count;
};

// Where a section begins in the packed plan, in int32, and how much it has room for.
struct WorkLayout {
    int64_t items, pages, merge_indptr, merge_runs, num_visible, positions, draft_begin, draft_mask;
    int max_items, max_pages, max_rows;
};

struct WorkScratch;

class WorkPlan {
  public:
    WorkPlan();
    ~WorkPlan();

    // Plans a step in place of the last one, whose memory it takes. The forest's tables live as
    // long as `advance` is called.
    void make(const AttentionPlan& forest, const WorkCosts& costs);

    // The same for tables that have only grown since, by the one row of each: false, and nothing
    // changed, where that is not so or a table outgrows the room that was left for it.
    bool advance(const int32_t* positions);

    int num_rows() const { return static_cast<int>(num_visible.size()); }
    int num_launches() const { return num_partials > 0 ? 2 : 1; }

    // Writes all sections to one buffer of int32, each where `layout` says. Items beyond the last
    // have no rows, rows beyond the last no partial results.
    void pack(const WorkLayout& layout, int32_t* buffer) const;

    std::vector<WorkItem> items;  // the longest first
    std::vector<WorkPage> pages;
    std::vector<int32_t> merge_indptr;  // [num_rows + 1]
    std::vector<MergeRun> merge_runs;
    int num_partials = 0;
    std::vector<int32_t> num_visible, positions;  // one a row, as in AttentionPlan
    std::vector<uint64_t> draft_mask;
    std::vector<int32_t> draft_begin;
    std::vector<float> rotation_cos, rotation_sin;  // [num_rotations, head_dim / 2]
    int64_t pages_read = 0;                         // by all items, of one KV head
    int64_t tokens_stored = 0, tokens_logical = 0;
    double predicted_us = 0;  // the attention of a layer

  private:
    friend class WorkBuilder;

    void clear(const AttentionPlan& forest);

    // Where the growing end of a table stands in the page list; item -1: nowhere.
    struct Leaf {
        int32_t item = -1, page = 0, num_entries = 0;
    };

    std::vector<const BlockTable*> tables_;
    std::vector<int64_t> versions_;
    std::vector<Leaf> leaves_;         // one a table
    std::vector<int32_t> page_limit_;  // one an item: how far its pages may grow
    bool can_advance_ = true;
    std::unique_ptr<WorkScratch> scratch_[2];  // of the plan, and of the one without sharing
};
