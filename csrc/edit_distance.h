// How many insertions, deletions and replacements make one sequence of another (Levenshtein), 64
// cells of the dynamic program at a time.
#pragma once

#include <cstdint>
#include <vector>

// Between each two of many sequences, which stand one behind the other in `symbols`; `starts` has
// one more entry than there are sequences. Symbols are in [0, num_symbols).
// distances: [num, num], of which the diagonal and both halves are written.
void edit_distances(const int32_t* symbols, const std::vector<int64_t>& starts, int num_symbols,
                    int64_t* distances);
