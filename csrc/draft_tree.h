// Draft trees as columns: `parents` holds the number of each node's parent, which is smaller than
// its own, or -1 behind the branch.
#pragma once

#include <cstdint>
#include <vector>

constexpr int kMaxDraftNodes = 63;  // beside the last token, bits of an attention mask

// See DraftTree (Python), which has no more than kMaxDraftNodes; what one is cut from may have.
struct DraftColumns {
    std::vector<int64_t> tokens;
    std::vector<int32_t> parents;
    std::vector<double> probabilities;

    int size() const { return static_cast<int>(tokens.size()); }
    void add(int64_t token, int32_t parent, double probability) {
        tokens.push_back(token);
        parents.push_back(parent);
        probabilities.push_back(probability);
    }
    void clear() {
        tokens.clear();
        parents.clear();
        probabilities.clear();
    }
    void check() const;  // throws std::invalid_argument
};

// How many tokens a node's path has; depths: [num_nodes].
template <class Number>
void tree_depths(const DraftColumns& tree, Number* depths) {
    for (int n = 0; n < tree.size(); ++n)
        depths[n] = tree.parents[n] < 0 ? 1 : depths[tree.parents[n]] + 1;
}
// Bit j of a node's mask tells whether node j is an ancestor or itself; at most kMaxDraftNodes.
void tree_masks(const DraftColumns& tree, uint64_t* masks);
// The product of a node's probability and its ancestors'.
void tree_products(const DraftColumns& tree, double* products);
// The nodes that hold what was drawn in front of them, from the first level down: drawn[0] behind
// the branch, drawn[1 + n] behind node n.
std::vector<int> tree_walk(const DraftColumns& tree, const int64_t* drawn);

struct TreePath {
    std::vector<int> nodes;
    bool may_go_on;  // nothing that was said is off the tree, and it goes on behind
};
// The nodes of the tokens that were said behind the branch.
TreePath tree_follow(const DraftColumns& tree, const std::vector<int64_t>& said);

// The nodes where `kept` [num_nodes] is not 0, with the numbers that they then have. Throws
// std::invalid_argument where one would lose its parent.
DraftColumns tree_keep(const DraftColumns& tree, const uint8_t* kept);
// The nodes with the most probable paths; of equal ones the first.
DraftColumns tree_cut(const DraftColumns& tree, int max_nodes);
