// AVX-512 (F, BW, DQ, VL), with the integer products of AVX2. Only intrinsics and project headers
// here: a library template instantiated under these flags could be the copy that the linker keeps
// for everybody.
#include "kernel_table.h"

#if defined(__x86_64__)

#include "dot_avx2.h"

namespace {

// Twenty-four of the thirty-two registers hold sums: 12 x 2 panels of one register.
constexpr int kTileRows = 12, kTilePanels = 2;
constexpr int kIntTileRows = 4, kIntTilePanels = 1;
constexpr int kScoreRows = 8, kScoreTile = 8, kIntScoreTile = 4, kScoreBlocks = 2;
constexpr int kValueRows = 4, kValueVectors = 4;

}  // namespace

#include "attention_body.h"
#include "int8_roofline_body.h"
#include "linear_body.h"
#include "logits_body.h"
#include "pointwise_body.h"
#include "quantized_linear_body.h"
#include "residual_body.h"
#include "roofline_body.h"

const KernelTable* avx512_kernels() {
    static const KernelTable table{
        linear,     quantized_linear, attention,   quantize_rows, rms_norm,       silu_mul,
        rope,       kv_store,         exp_shifted, row_max,       kept_mass,      keep,
        scale_kept, residual_mass,    logit_stats, mask_logits,   float_roofline, int8_roofline};
    return &table;
}

#else

const KernelTable* avx512_kernels() {
    return nullptr;
}

#endif
