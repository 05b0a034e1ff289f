#include "draft_tree.h"

void tree_depths(const int32_t* parents, int num_nodes, int32_t* depths) {
    for (int n = 0; n < num_nodes; ++n) depths[n] = parents[n] < 0 ? 1 : depths[parents[n]] + 1;
}

void tree_masks(const int32_t* parents, int num_nodes, uint64_t* masks) {
    for (int n = 0; n < num_nodes; ++n)
        masks[n] = uint64_t{1} << n | (parents[n] < 0 ? 0 : masks[parents[n]]);
}

void tree_products(const int32_t* parents, const double* values, int num_nodes, double* products) {
    for (int n = 0; n < num_nodes; ++n)
        products[n] = parents[n] < 0 ? values[n] : products[parents[n]] * values[n];
}

std::vector<int> tree_walk(const int64_t* tokens, const int32_t* parents, int num_nodes,
                           const int64_t* drawn) {
    std::vector<int> path;
    int current = -1;
    for (int n = 0; n < num_nodes; ++n)
        if (parents[n] == current && tokens[n] == drawn[1 + current]) {
            current = n;
            path.push_back(n);
        }
    return path;
}

TreePath tree_follow(const int64_t* tokens, const int32_t* parents, int num_nodes,
                     const std::vector<int64_t>& said) {
    TreePath path{{}, false};
    int current = -1;
    for (int n = 0; n < num_nodes; ++n) {
        if (parents[n] != current) continue;
        if (path.nodes.size() == said.size()) {
            path.may_go_on = true;
            break;
        }
        if (tokens[n] == said[path.nodes.size()]) {
            current = n;
            path.nodes.push_back(n);
        }
    }
    return path;
}
