// AVX-512 with VNNI: integer products; all else is that of AVX-512. Only intrinsics and project
// headers here, as in kernels_avx512.cpp.
#include "kernel_table.h"

#if defined(__x86_64__)

#include "dot_vnni.h"

namespace {

// Twenty-four of the thirty-two registers hold sums: 6 x 2 of integers and as many of floats.
constexpr int kIntTileRows = 6, kIntTilePanels = 2;

}  // namespace

#include "quantized_linear_body.h"

const KernelTable* avx512_vnni_kernels() {
    static const KernelTable table = [] {
        KernelTable t = *avx512_kernels();
        t.quantized_linear = quantized_linear;
        return t;
    }();
    return &table;
}

#else

const KernelTable* avx512_vnni_kernels() {
    return nullptr;
}

#endif
