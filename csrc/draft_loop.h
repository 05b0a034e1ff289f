// Chains of a draft model: one token after the other for several branches, without leaving C++.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder.h"

// A branch in the draft model: its table, which lacks the last `pending` of its tokens, and how it
// draws.
struct DraftBranch {
    BlockTable* table;
    std::vector<int64_t> pending;
    float temperature;
    int32_t top_k;
    float top_p, min_p;
    uint64_t key;
    int max_depth;
};

struct DraftChain {
    std::vector<int64_t> tokens;
    std::vector<double> probabilities;
};

struct DraftModel {
    CpuOps* ops;
    Decoder* decoder;
    DecoderLinear head;
    DecoderCache cache;
    int num_layers, num_blocks, half_head_dim;
    const float* inverse_frequencies;
};

// Draws for each branch what the draft model would say, with the random numbers that the branch
// itself will draw with: number n of stream 0 of its key for its n-th token. Where the two models
// agree about the distribution they then agree about the token, whatever the temperature.
//
// probabilities: that the target draws the same. For temperature 0 the draft model's own
// probability of the token; else 1 - exp(-d / kSpread), d being how far the uniform number lies
// inside the token's interval of the cumulative distribution.
//
// A chain ends at its branch's max_depth, or behind a path that is less probable than min_prob.
// The tables then hold all tokens but the last of each chain. Throws std::length_error, and has
// changed nothing, where the pool has no room for the pending tokens; a chain that there is no room
// for ends.
std::vector<DraftChain> draft_chains(const DraftModel& model,
                                     const std::vector<DraftBranch>& branches, double min_prob);
