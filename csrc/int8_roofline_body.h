// As roofline_body.h, for products of signed bytes.
#pragma once

#include "kernel_table.h"

namespace {

double int8_roofline(int repeats, float* sink) {
    constexpr int quads = 64;
    alignas(64) static const uint8_t w[quads * kIntTilePanels * 64] = {};
    alignas(64) static const int8_t x[quads * kIntTileRows * 4] = {};
    IntVec16 sum[kIntTileRows][kIntTilePanels];
    for (int r = 0; r < kIntTileRows; ++r)
        for (int p = 0; p < kIntTilePanels; ++p) sum[r][p] = dot_start(0);
    for (int i = 0; i < repeats; ++i) {
        asm volatile("" ::: "memory");
        for (int k = 0; k < quads; ++k) {
            Quads weight[kIntTilePanels];
#pragma GCC unroll 4
            for (int p = 0; p < kIntTilePanels; ++p)
                weight[p] = load_s8_quads(w + (k * kIntTilePanels + p) * 64);
#pragma GCC unroll 8
            for (int r = 0; r < kIntTileRows; ++r) {
                auto four = broadcast_quad(x + (k * kIntTileRows + r) * 4);
#pragma GCC unroll 4
                for (int p = 0; p < kIntTilePanels; ++p)
                    sum[r][p] = dot_s8(sum[r][p], weight[p], four);
            }
        }
    }
    for (int r = 0; r < kIntTileRows; ++r)
        for (int p = 0; p < kIntTilePanels; ++p) *sink += reduce_add(to_float(sum[r][p]));
    return 2.0 * repeats * quads * kIntTileRows * kIntTilePanels * 64;
}

}  // namespace
