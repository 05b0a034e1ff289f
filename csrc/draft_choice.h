// Which nodes of many drafts pay.
#pragma once

#include <cstdint>
#include <vector>

#include "draft_tree.h"

struct DraftChoice {
    std::vector<uint8_t> kept;  // of each node of all drafts; none where nothing pays
    // How many times as fast a step is that computes the best of them, and that where drafting's
    // own time counts; 1 and less than 1 are those of a step without drafts.
    double promise = 1.0, gain = 1.0;
    // Mean probability of a draft's likeliest node, of the next, ... to the longest draft's last.
    std::vector<double> best;
};

constexpr int kProbabilityBins = 16;

struct ChoiceArgs {
    const std::vector<const DraftColumns*>& drafts;
    // How often paths were right for how probable they were said to be, at the middle of each of
    // kProbabilityBins equal parts of [0, 1]; between two middles what is between.
    const double* factors;
    const double* seconds;  // [max_nodes]: of a step with drafts of 1, 2, ... nodes in all
    int max_nodes;
    double plain;       // seconds of a step without drafts
    double per_token;   // seconds that a token more saves of the steps to come
    double proposing;   // seconds that drafting takes
    double least_gain;  // promised, or else nothing is kept
    int otherwise;      // nodes that are kept even then
};

// Keeps the most probable nodes, as many as maximise
// (plain + per_token * the sum of their probabilities) / seconds.
DraftChoice choose_nodes(const ChoiceArgs& args);
