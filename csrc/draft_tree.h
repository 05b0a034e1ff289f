// Draft trees as columns: `parents` holds the number of each node's parent, which is smaller than
// its own, or -1 behind the branch.
#pragma once

#include <cstdint>
#include <vector>

// How many tokens a node's path has.
void tree_depths(const int32_t* parents, int num_nodes, int32_t* depths);
// Bit j of a node's mask tells whether node j is an ancestor or itself; at most 64 nodes.
void tree_masks(const int32_t* parents, int num_nodes, uint64_t* masks);
// The product of a node's value and its ancestors'.
void tree_products(const int32_t* parents, const double* values, int num_nodes, double* products);
// The nodes that hold what was drawn in front of them, from the first level down: drawn[0] behind
// the branch, drawn[1 + n] behind node n.
std::vector<int> tree_walk(const int64_t* tokens, const int32_t* parents, int num_nodes,
                           const int64_t* drawn);

struct TreePath {
    std::vector<int> nodes;
    bool may_go_on;  // nothing that was said is off the tree, and it goes on behind
};
// The nodes of the tokens that were said behind the branch.
TreePath tree_follow(const int64_t* tokens, const int32_t* parents, int num_nodes,
                     const std::vector<int64_t>& said);
