// AVX-512 (F, BW, DQ, VL). Only intrinsics and project headers here: a library template
// instantiated under these flags could be the copy that the linker keeps for everybody.
#include "kernel_table.h"

#if defined(__x86_64__)

#include "vec16_avx512.h"

namespace {

// Twenty-four of the thirty-two registers hold sums: 12 x 2 panels of one register.
constexpr int kTileRows = 12, kTilePanels = 2;
constexpr int kScoreTile = 8, kValueRows = 4, kValueVectors = 4;

}  // namespace

#include "kernels_body.h"

const KernelTable* avx512_kernels() {
    static const KernelTable table{linear,      attention, rms_norm,   silu_mul,
                                   exp_shifted, row_max,   logit_stats};
    return &table;
}

#else

const KernelTable* avx512_kernels() {
    return nullptr;
}

#endif
