// AVX2 with FMA and F16C. Only intrinsics and project headers here: a library template instantiated
// under these flags could be the copy that the linker keeps for everybody.
#include "kernel_table.h"

#if defined(__x86_64__)

#include "dot_avx2.h"

namespace {

// Twelve of the sixteen registers hold sums: 6 x 1 panels of two registers.
constexpr int kTileRows = 6, kTilePanels = 1;
constexpr int kIntTileRows = 3, kIntTilePanels = 1;
constexpr int kScoreRows = 12, kScoreTile = 6, kIntScoreTile = 4, kScoreBlocks = 1, kValueRows = 3,
              kValueVectors = 2;

}  // namespace

#include "attention_body.h"
#include "int8_roofline_body.h"
#include "linear_body.h"
#include "logits_body.h"
#include "pointwise_body.h"
#include "quantized_linear_body.h"
#include "residual_body.h"
#include "roofline_body.h"

const KernelTable* avx2_kernels() {
    static const KernelTable table{
        linear,     quantized_linear, attention,   quantize_rows, rms_norm,       silu_mul,
        rope,       kv_store,         exp_shifted, row_max,       kept_mass,      keep,
        scale_kept, residual_mass,    logit_stats, mask_logits,   float_roofline, int8_roofline};
    return &table;
}

#else

const KernelTable* avx2_kernels() {
    return nullptr;
}

#endif
