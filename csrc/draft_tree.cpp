#include "draft_tree.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

void DraftColumns::check() const {
    auto fail = [](const std::string& what) { throw std::invalid_argument(what); };
    if (parents.size() != tokens.size() || probabilities.size() != tokens.size())
        fail("a draft of " + std::to_string(tokens.size()) + " tokens has " +
             std::to_string(parents.size()) + " parents and " +
             std::to_string(probabilities.size()) + " probabilities");
    for (int n = 0; n < size(); ++n) {
        auto node = [n] { return "node " + std::to_string(n); };
        if (parents[n] < -1 || parents[n] >= n)
            fail(node() + " can't be a child of node " + std::to_string(parents[n]));
        if (tokens[n] < 0) fail(node() + " has token " + std::to_string(tokens[n]));
        if (!(probabilities[n] >= 0 && probabilities[n] <= 1))
            fail(node() + " has probability " + std::to_string(probabilities[n]));
    }
}

void tree_masks(const DraftColumns& tree, uint64_t* masks) {
    for (int n = 0; n < tree.size(); ++n)
        masks[n] = uint64_t{1} << n | (tree.parents[n] < 0 ? 0 : masks[tree.parents[n]]);
}

void tree_products(const DraftColumns& tree, double* products) {
    for (int n = 0; n < tree.size(); ++n) {
        double above = tree.parents[n] < 0 ? 1.0 : products[tree.parents[n]];
        products[n] = above * tree.probabilities[n];
    }
}

std::vector<int> tree_walk(const DraftColumns& tree, const int64_t* drawn) {
    std::vector<int> path;
    int current = -1;
    for (int n = 0; n < tree.size(); ++n)
        if (tree.parents[n] == current && tree.tokens[n] == drawn[1 + current]) {
            current = n;
            path.push_back(n);
        }
    return path;
}

TreePath tree_follow(const DraftColumns& tree, const std::vector<int64_t>& said) {
    TreePath path{{}, false};
    int current = -1;
    for (int n = 0; n < tree.size(); ++n) {
        if (tree.parents[n] != current) continue;
        if (path.nodes.size() == said.size()) {
            path.may_go_on = true;
            break;
        }
        if (tree.tokens[n] == said[path.nodes.size()]) {
            current = n;
            path.nodes.push_back(n);
        }
    }
    return path;
}

DraftColumns tree_keep(const DraftColumns& tree, const uint8_t* kept) {
    DraftColumns some;
    std::vector<int32_t> number(tree.size(), -1);
    for (int n = 0; n < tree.size(); ++n) {
        if (!kept[n]) continue;
        int parent = tree.parents[n];
        if (parent >= 0 && number[parent] < 0)
            throw std::invalid_argument("node " + std::to_string(parent) +
                                        " has children that are kept, and is not");
        number[n] = some.size();
        some.add(tree.tokens[n], parent < 0 ? -1 : number[parent], tree.probabilities[n]);
    }
    return some;
}

DraftColumns tree_cut(const DraftColumns& tree, int max_nodes) {
    std::vector<double> products(tree.size());
    tree_products(tree, products.data());
    std::vector<int> order(tree.size());
    std::iota(order.begin(), order.end(), 0);
    // No path is more probable than its beginning, which also stands before it.
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return products[a] > products[b]; });
    std::vector<uint8_t> kept(tree.size());
    for (int i = 0; i < std::min(max_nodes, tree.size()); ++i) kept[order[i]] = 1;
    return tree_keep(tree, kept.data());
}
