// Portable C++: always compiled, always right.
#include "kernel_table.h"
#include "vec16_scalar.h"

namespace {

constexpr int kTileRows = 4, kTilePanels = 1;
constexpr int kScoreTile = 4, kValueRows = 1, kValueVectors = 2;

}  // namespace

#include "kernels_body.h"

const KernelTable* scalar_kernels() {
    static const KernelTable table{linear,      attention, rms_norm,   silu_mul,
                                   exp_shifted, row_max,   logit_stats};
    return &table;
}
