// Products with weights stored as floats of 32 or 16 bits, in fp32 arithmetic.
#pragma once

#include "kernel_table.h"
#include "prefetch.h"

namespace {

inline Vec16 load_weight(const float* p) {
    return load(p);
}

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
inline Vec16 load_weight(const Bfloat16* p) {
    return load_bf16(&p->bits);
}
inline Vec16 load_weight(const Float16* p) {
    return load_fp16(&p->bits);
}

// A tile of `Rows` rows by `Panels` panels over k in [k_begin, k_end). The partial sum of a chunk
// starts at zero and is added to the total in y: shorter chains of rounding, at fixed boundaries.
template <int Rows, int Panels, class W>
inline void linear_tile(const float* x, int64_t x_stride, const W* const* panels, int k_begin,
                        int k_end, float* y, int64_t y_stride, int num_columns) {
    Vec16 sum[Rows][Panels];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) sum[r][p] = zero();
    for (int k = k_begin; k < k_end; ++k) {
        if constexpr (Rows <= kFewRows) {
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p)
                prefetch_ahead(panels[p] + static_cast<int64_t>(k) * kLanes);
        }
        Vec16 w[Panels];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p)
            w[p] = load_weight(panels[p] + static_cast<int64_t>(k) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            Vec16 a = broadcast(x[r * x_stride + k]);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p) sum[r][p] = fma(a, w[p], sum[r][p]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) {
            int n = num_columns - p * kLanes;
            if (n <= 0) continue;
            float* out = y + r * y_stride + p * kLanes;
            if (n >= kLanes) {
                store(out, k_begin == 0 ? sum[r][p] : add(load(out), sum[r][p]));
            } else {
                store_n(out, k_begin == 0 ? sum[r][p] : add(load_n(out, n), sum[r][p]), n);
            }
        }
}

template <int Panels, class W>
inline void linear_rows(int rows, const float* x, int64_t x_stride, const W* const* panels,
                        int k_begin, int k_end, float* y, int64_t y_stride, int num_columns) {
    while (rows > 0) {
        int tile = rows < kTileRows ? rows : kTileRows;
        switch (tile) {
#define PD_ROWS(R)                                                                                \
    case R:                                                                                       \
        if (R <= kTileRows)                                                                       \
            linear_tile<(R <= kTileRows ? R : 1), Panels>(x, x_stride, panels, k_begin, k_end, y, \
                                                          y_stride, num_columns);                 \
        break;
            PD_ROWS(1)
            PD_ROWS(2)
            PD_ROWS(3)
            PD_ROWS(4)
            PD_ROWS(5)
            PD_ROWS(6)
            PD_ROWS(7)
            PD_ROWS(8)
            PD_ROWS(9)
            PD_ROWS(10)
            PD_ROWS(11)
            PD_ROWS(12)
#undef PD_ROWS
        }
        x += tile * x_stride;
        y += tile * y_stride;
        rows -= tile;
    }
}

template <class W>
void linear_typed(const LinearArgs& a, int task) {
    int row_begin = task / a.column_blocks() * kRowBlock;
    int column_begin = task % a.column_blocks() * kLanes * kPanels;
    int rows = a.num_rows - row_begin < kRowBlock ? a.num_rows - row_begin : kRowBlock;
    int columns = a.out_features - column_begin;
    const float* x = a.x + row_begin * a.x_stride;
    float* y = a.y + row_begin * a.y_stride + column_begin;
    const W* panels[kPanels];
    int64_t panel_size = static_cast<int64_t>(a.in_features) * kLanes;
    for (int p = 0; p < kPanels; ++p)
        panels[p] = static_cast<const W*>(a.weight) + (column_begin / kLanes + p) * panel_size;
    int live_panels = (columns + kLanes - 1) / kLanes;
    for (int k = 0; k < a.in_features; k += kChunkK) {
        int k_end = k + kChunkK < a.in_features ? k + kChunkK : a.in_features;
        if (kTilePanels == kPanels && live_panels >= kPanels) {
            linear_rows<kTilePanels>(rows, x, a.x_stride, panels, k, k_end, y, a.y_stride, columns);
        } else {
            for (int p = 0; p < kPanels && p < live_panels; ++p)
                linear_rows<1>(rows, x, a.x_stride, panels + p, k, k_end, y + p * kLanes,
                               a.y_stride, columns - p * kLanes);
        }
    }
    if (!a.bias) return;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns && c < kLanes * kPanels; c += kLanes) {
            int n = columns - c < kLanes ? columns - c : kLanes;
            float* out = y + r * a.y_stride + c;
            store_n(out, add(load_n(out, n), load_n(a.bias + column_begin + c, n)), n);
        }
}

void linear(const LinearArgs& a, int task) {
    switch (a.weight_type) {
        case WeightType::float32:
            return linear_typed<float>(a, task);
        case WeightType::bfloat16:
            return linear_typed<Bfloat16>(a, task);
        case WeightType::float16:
            return linear_typed<Float16>(a, task);
        default:  // quantised: see quantized_linear_body.h
            return;
    }
}

}  // namespace
