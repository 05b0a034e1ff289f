// Chains of a draft model: one token after the other for several branches, without leaving C++.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder.h"
#include "draft_guess.h"

// A branch in the draft model: its table, which lacks the last `pending` of its tokens, and how it
// draws.
// position: of the first pending token; the others follow it.
// features: [num_pending, hidden_size] of the tokens before the pending ones, with a fusion.
struct DraftBranch {
    BlockTable* table;
    std::vector<int64_t> pending;
    int position;
    std::vector<float> features;
    float temperature;
    int32_t top_k;
    float top_p, min_p;
    uint64_t key;
    int max_depth;
};

struct DraftModel {
    CpuOps* ops;
    Decoder* decoder;
    DecoderLinear head;
    DecoderCache cache;
    int num_layers, num_blocks, half_head_dim;  // num_layers: of the cache
    const float* inverse_frequencies;
};

// Draws for each branch what the draft model would say, with the random numbers that the branch
// itself will draw with: number n of stream 0 of its key for its n-th token. Where the two models
// agree about the distribution they then agree about the token, whatever the temperature.
//
// Each token of a chain has up to num_siblings siblings, right behind it, which are leaves: what
// else draft_guess.h has for its place, with the same probabilities.
//
// A chain ends at its branch's max_depth, or behind a path that is less probable than min_prob, as
// are siblings left out. The tables then hold all tokens but the last of each chain. Throws
// std::length_error, and has changed nothing, where the pool has no room for the pending tokens; a
// chain that there is no room for ends.
std::vector<DraftColumns> draft_combs(const DraftModel& model,
                                      const std::vector<DraftBranch>& branches, double min_prob,
                                      int num_siblings);
