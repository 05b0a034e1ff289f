#include "draft_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace {

double corrected_path(double probability, const double* factors) {
    double place = probability * kProbabilityBins - 0.5;
    int below = std::clamp(static_cast<int>(std::floor(place)), 0, kProbabilityBins - 2);
    double part = std::clamp(place - below, 0.0, 1.0);
    double factor = factors[below] + part * (factors[below + 1] - factors[below]);
    return std::clamp(probability * factor, 0.0, 1.0);
}

// Probabilities of the nodes' paths, corrected. No path is more probable than its beginning,
// whatever was said of it.
std::vector<double> path_probabilities(const ChoiceArgs& a, int num_nodes) {
    std::vector<double> right(num_nodes), said(num_nodes);
    double* mine = right.data();
    for (const DraftColumns* draft : a.drafts) {
        tree_products(*draft, said.data());
        for (int n = 0; n < draft->size(); ++n) {
            mine[n] = corrected_path(said[n], a.factors);
            if (draft->parents[n] >= 0) mine[n] = std::min(mine[n], mine[draft->parents[n]]);
        }
        mine += draft->size();
    }
    return right;
}

std::vector<double> best_means(const ChoiceArgs& a, const std::vector<double>& right) {
    std::vector<double> best, mine;
    auto first = right.begin();
    for (const DraftColumns* draft : a.drafts) {
        mine.assign(first, first + draft->size());
        first += draft->size();
        std::sort(mine.rbegin(), mine.rend());
        if (mine.size() > best.size()) best.resize(mine.size());
        for (size_t rank = 0; rank < mine.size(); ++rank)
            best[rank] += mine[rank] / a.drafts.size();
    }
    return best;
}

}  // namespace

DraftChoice choose_nodes(const ChoiceArgs& a) {
    DraftChoice choice;
    int num_nodes = 0;
    for (const DraftColumns* draft : a.drafts) num_nodes += draft->size();
    choice.kept.assign(num_nodes, 0);
    if (num_nodes == 0) return choice;
    std::vector<double> right = path_probabilities(a, num_nodes);
    choice.best = best_means(a, right);
    std::vector<int> order(num_nodes);
    std::iota(order.begin(), order.end(), 0);
    // A parent stands before its children, and a stable order leaves it there.
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return right[x] > right[y]; });
    order.resize(std::min(num_nodes, a.max_nodes));
    double worth = a.plain;  // of the step, in seconds of others
    choice.promise = 0.0, choice.gain = a.plain / (a.plain + a.proposing);
    size_t last = 0;
    for (size_t n = 0; n < order.size(); ++n) {
        worth += a.per_token * right[order[n]];
        choice.gain = std::max(choice.gain, worth / (a.seconds[n] + a.proposing));
        if (worth / a.seconds[n] > choice.promise) {
            choice.promise = worth / a.seconds[n];
            last = n + 1;
        }
    }
    if (choice.promise < a.least_gain) last = std::min<size_t>(a.otherwise, order.size());
    for (size_t n = 0; n < last; ++n) choice.kept[order[n]] = 1;
    return choice;
}
