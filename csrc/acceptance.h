// Which tokens of a draft the target accepts. kernels/acceptance.py, traversal.py and typical.py
// are the definition; only what ties but for rounding in fp64 can be decided otherwise than there.
#pragma once

#include "kernel_table.h"

struct DraftArgs {
    // Trees one behind the other, see kernels/draft_tree.py.
    const int64_t* tokens;    // [num_nodes]
    const int32_t* parents;   // [num_nodes], or null: chains
    const int32_t* cu_nodes;  // [num_branches + 1]
    int num_branches, max_depth;
    // Distributions, row-strided; null where a rule has none.
    const float* p;                // [num_branches + num_nodes, vocab_size]
    const float* q;                // [num_nodes, vocab_size], or null: all nodes are deterministic
    const uint8_t* deterministic;  // [num_nodes], or null: none is
    int64_t p_stride, q_stride;
    int vocab_size;
    bool replacement;
    const int64_t* keys;       // [num_branches]
    const int64_t* positions;  // [num_branches]
    int32_t* num_accepted;     // [num_branches]
    int32_t* path;             // [num_branches, max_depth]
    int64_t* next_token;       // [num_branches]
};

// The depth of the deepest node. Throws std::invalid_argument where the trees are none.
int checked_depth(const int32_t* parents, const int32_t* cu_nodes, int num_branches, int num_nodes);

// argmax: [num_branches + num_nodes]
void accept_greedy(const DraftArgs& args, const int64_t* argmax, int branch);
void accept_tree(const KernelTable& kernels, const DraftArgs& args, int branch);
void accept_traversal(const KernelTable& kernels, const DraftArgs& args, int branch);
void accept_typical(const KernelTable& kernels, const DraftArgs& args, double epsilon, double alpha,
                    int branch);
