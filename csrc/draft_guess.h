// What a drafter's distribution says of the token that the target is going to draw.
#pragma once

#include <cstdint>
#include <vector>

#include "draft_tree.h"

struct DraftGuess {
    int64_t token;
    double probability;  // that the target draws it
};

struct GuessLimits {
    double min_prob;
    int num_guesses;
};

// p: [vocab_size]. For a target that is greedy: the most probable tokens, each with its own
// probability.
std::vector<DraftGuess> likeliest_guesses(const float* p, int vocab_size, GuessLimits limits);

// For a target that draws by the number u in [0, 1): first the token whose interval of the
// cumulative distribution holds u. With d for how far it lies inside, the target draws the same
// with
//     1 - exp(-d / kSpread).
// Then the tokens nearby. Where u lies outside of an interval, by d to its nearer end and by e to
// the other one, that is
//     (exp(-d / kSpread) - exp(-e / kSpread)) / 2,
// as the target's intervals are the drafter's, moved either way. Empty where p is no distribution.
std::vector<DraftGuess> lucky_guesses(const float* p, int vocab_size, double u, GuessLimits limits);

// The tree of the at most max_nodes most probable paths, none below min_prob, whose n-th tokens are
// any of levels[n]: what is guessed of one place is independent of the other places.
DraftColumns product_tree(const std::vector<std::vector<DraftGuess>>& levels, int max_nodes,
                          double min_prob);
