// The fastest that the tiles of the product kernels go where nothing but arithmetic holds them up:
// operands in the first-level cache, no scales, no results stored.
#pragma once

#include "kernel_table.h"

namespace {

constexpr int kRooflineDepth = 64;

// Returns the operations done; `sink` keeps the compiler from doing none.
double float_roofline(int repeats, float* sink) {
    alignas(64) static const float w[kRooflineDepth * kTilePanels * kLanes] = {};
    alignas(64) static const float x[kRooflineDepth * kTileRows] = {};
    Vec16 sum[kTileRows][kTilePanels];
    for (int r = 0; r < kTileRows; ++r)
        for (int p = 0; p < kTilePanels; ++p) sum[r][p] = zero();
    for (int i = 0; i < repeats; ++i) {
        asm volatile("" ::: "memory");
        for (int k = 0; k < kRooflineDepth; ++k) {
            Vec16 weight[kTilePanels];
#pragma GCC unroll 4
            for (int p = 0; p < kTilePanels; ++p)
                weight[p] = load(w + (k * kTilePanels + p) * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r) {
                Vec16 of_row = broadcast(x[k * kTileRows + r]);
#pragma GCC unroll 4
                for (int p = 0; p < kTilePanels; ++p) sum[r][p] = fma(of_row, weight[p], sum[r][p]);
            }
        }
    }
    for (int r = 0; r < kTileRows; ++r)
        for (int p = 0; p < kTilePanels; ++p) *sink += reduce_add(sum[r][p]);
    return 2.0 * repeats * kRooflineDepth * kTileRows * kTilePanels * kLanes;
}

}  // namespace
