#include "draft_guess.h"

#include <algorithm>
#include <cmath>
#include <queue>

namespace {

constexpr double kSpread = 0.05;
constexpr double kFurthest = 7;  // times kSpread: exp(-7) is less than a thousandth

// Keeps the best `most` guesses, in falling order; of equal ones those that came first.
void keep(std::vector<DraftGuess>& best, const DraftGuess& guess, size_t most) {
    if (most == 0) return;
    if (best.size() == most) {
        if (best.back().probability >= guess.probability) return;
        best.pop_back();
    }
    auto behind = std::upper_bound(
        best.begin(), best.end(), guess,
        [](const DraftGuess& a, const DraftGuess& b) { return a.probability > b.probability; });
    best.insert(behind, guess);
}

}  // namespace

std::vector<DraftGuess> likeliest_guesses(const float* p, int vocab_size, GuessLimits limits) {
    std::vector<DraftGuess> guesses;
    for (int x = 0; x < vocab_size; ++x)
        if (std::isfinite(p[x]) && (p[x] > 0 || x == 0))
            keep(guesses, {x, p[x]}, limits.num_guesses);
    return guesses;
}

std::vector<DraftGuess> lucky_guesses(const float* p, int vocab_size, double u,
                                      GuessLimits limits) {
    double reached = 0, before = 0;
    int x = 0;
    for (; x < vocab_size; ++x) {
        before = reached;
        reached += p[x];
        if (!(reached <= u)) break;
    }
    // A NaN among the probabilities gets here, too.
    if (x == vocab_size || !std::isfinite(reached) || limits.num_guesses < 1) return {};
    std::vector<DraftGuess> guesses = {
        {x, 1 - std::exp(-std::min(u - before, reached - u) / kSpread)}};
    std::vector<DraftGuess> others;
    // Away from u on both sides, as far as it matters.
    auto visit = [&](int token, double& distance) {
        double beyond = distance + p[token];
        double probability = (std::exp(-distance / kSpread) - std::exp(-beyond / kSpread)) / 2;
        distance = beyond;
        if (probability > 0 && probability >= limits.min_prob)
            keep(others, {token, probability}, limits.num_guesses - 1);
    };
    double furthest = limits.num_guesses > 1 ? kSpread * kFurthest : 0;
    double below = u - before, above = reached - u;
    for (int y = x - 1; y >= 0 && below < furthest; --y) visit(y, below);
    for (int y = x + 1; y < vocab_size && above < furthest; ++y) visit(y, above);
    guesses.insert(guesses.end(), others.begin(), others.end());
    return guesses;
}

DraftColumns product_tree(const std::vector<std::vector<DraftGuess>>& levels, int max_nodes,
                          double min_prob) {
    struct Path {
        double probability;
        int order;  // of equal ones the first
        int32_t parent;
        size_t level;
        DraftGuess guess;
    };
    auto worse = [](const Path& a, const Path& b) {
        return a.probability != b.probability ? a.probability < b.probability : a.order > b.order;
    };
    std::priority_queue<Path, std::vector<Path>, decltype(worse)> open(worse);
    int order = 0;
    auto offer = [&](double path, int32_t parent, size_t level) {
        if (level == levels.size()) return;
        for (const DraftGuess& guess : levels[level]) {
            double probability = path * guess.probability;
            if (probability > 0 && probability >= min_prob)
                open.push({probability, order++, parent, level, guess});
        }
    };
    DraftColumns tree;
    offer(1.0, -1, 0);
    while (!open.empty() && static_cast<int>(tree.tokens.size()) < max_nodes) {
        Path path = open.top();
        open.pop();
        auto node = static_cast<int32_t>(tree.tokens.size());
        tree.add(path.guess.token, path.parent, path.guess.probability);
        offer(path.probability, node, path.level + 1);
    }
    return tree;
}
