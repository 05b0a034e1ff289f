// Logits to tokens, without sorting the vocabulary.
#pragma once

#include "kernel_table.h"

// Temperature, then top-k, top-p over what is left, min-p; then the inverse CDF at `uniform` in the
// order of token ids. A filter keeps every value that ties with its last one.
void sample_row(const KernelTable& kernels, const SampleArgs& args, int row);
