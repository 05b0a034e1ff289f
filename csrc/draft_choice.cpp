#include "draft_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace {

// Probabilities of the nodes' paths, corrected. No path is more probable than its beginning,
// whatever was said of it.
std::vector<double> path_probabilities(const ChoiceArgs& a, int num_nodes) {
    std::vector<double> said(num_nodes), right(num_nodes);
    for (int d = 0, first = 0; d < a.num_drafts; first += a.sizes[d++])
        for (int n = first; n < first + a.sizes[d]; ++n) {
            int parent = a.parents[n] < 0 ? -1 : first + a.parents[n];
            said[n] = a.probabilities[n] * (parent < 0 ? 1.0 : said[parent]);
            right[n] = corrected_path(said[n], a.factors);
            if (parent >= 0) right[n] = std::min(right[n], right[parent]);
        }
    return right;
}

std::vector<double> best_means(const ChoiceArgs& a, const std::vector<double>& right) {
    std::vector<double> best(*std::max_element(a.sizes, a.sizes + a.num_drafts), 0.0);
    for (int d = 0, first = 0; d < a.num_drafts; first += a.sizes[d++]) {
        std::vector<double> mine(right.begin() + first, right.begin() + first + a.sizes[d]);
        std::sort(mine.rbegin(), mine.rend());
        for (size_t rank = 0; rank < mine.size(); ++rank) best[rank] += mine[rank] / a.num_drafts;
    }
    return best;
}

}  // namespace

double corrected_path(double probability, const double* factors) {
    double place = probability * kProbabilityBins - 0.5;
    int below = std::clamp(static_cast<int>(std::floor(place)), 0, kProbabilityBins - 2);
    double part = std::clamp(place - below, 0.0, 1.0);
    double factor = factors[below] + part * (factors[below + 1] - factors[below]);
    return std::clamp(probability * factor, 0.0, 1.0);
}

DraftChoice choose_nodes(const ChoiceArgs& a) {
    DraftChoice choice;
    int num_nodes = std::accumulate(a.sizes, a.sizes + a.num_drafts, 0);
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
