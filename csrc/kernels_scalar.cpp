// Portable C++: always compiled, always right.
#include "kernel_table.h"
#include "vec16_scalar.h"

namespace {

constexpr int kTileRows = 4, kTilePanels = 1;
constexpr int kIntTileRows = 2, kIntTilePanels = 1;
constexpr int kScoreRows = 8, kScoreTile = 4, kIntScoreTile = 4, kScoreBlocks = 1, kValueRows = 1,
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

const KernelTable* scalar_kernels() {
    static const KernelTable table{
        linear,     quantized_linear, attention,   quantize_rows, rms_norm,       silu_mul,
        rope,       kv_store,         exp_shifted, row_max,       kept_mass,      keep,
        scale_kept, residual_mass,    logit_stats, mask_logits,   float_roofline, int8_roofline};
    return &table;
}
