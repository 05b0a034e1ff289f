// AVX-512 with VNNI, which changes what multiplies integers; all else is that of AVX-512. Only
// intrinsics and project headers here, as in kernels_avx512.cpp.
#include "kernel_table.h"

#if defined(__x86_64__)

#include "dot_vnni.h"

namespace {

// Twenty-four of the thirty-two registers hold sums: 6 x 2 of integers and as many of floats.
constexpr int kIntTileRows = 6, kIntTilePanels = 2;
constexpr int kScoreRows = 8, kScoreTile = 8, kIntScoreTile = 4, kScoreBlocks = 2;
constexpr int kValueRows = 4, kValueVectors = 4;

}  // namespace

#include "attention_body.h"
#include "int8_roofline_body.h"
#include "quantized_linear_body.h"

const KernelTable* avx512_vnni_kernels() {
    static const KernelTable table = [] {
        KernelTable t = *avx512_kernels();
        t.quantized_linear = quantized_linear;
        t.attention = attention;
        t.int8_roofline = int8_roofline;
        return t;
    }();
    return &table;
}

#else

const KernelTable* avx512_vnni_kernels() {
    return nullptr;
}

#endif
