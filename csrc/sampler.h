// One token from a row of logits, or the distribution that it is drawn from.
#pragma once

#include <vector>

#include "kernel_table.h"

// Memory that one thread uses for one row after the other.
struct SampleScratch {
    std::vector<float> weights, kept;
    std::vector<double> bucket_mass;
};

// Temperature, top-k, top-p over what top-k left, and min-p; then the inverse CDF in the order of
// ids. See ReferenceOps.sample. The vocabulary is never sorted.
void sample_row(const KernelTable& kernels, const SampleArgs& args, int row,
                SampleScratch& scratch);

// The highest logits of a row and their tokens; of a row that holds a NaN, any.
void top_row(const KernelTable& kernels, const TopLogitsArgs& args, int row);

// That law itself: the kept weights over their sum.
void probabilities_row(const KernelTable& kernels, const ProbabilityArgs& args, int row,
                       SampleScratch& scratch);
