// Products of rows that were quantised group by group with weights of 8 or 4 bits:
//   y[m, n] = sum_g s[m, g] (d[n, g] sum_k q[n, k] x[m, k] + b[n, g] sum_k x[m, k])
// with w = d q + b. The sums over a group of kGroupSize are exact in 32-bit integers, the sums over
// groups run in fp32 in order: a row has the same bits in any batch and in any instruction set.
#pragma once

#include "kernel_table.h"
#include "prefetch.h"

namespace {

// The int32 sums of one group: rows x panels.
template <int Rows, int Panels>
inline void group_dot_s8(const int8_t* const* x, const int32_t* const* offset,
                         const uint8_t* const* weight, int group, IntVec16 (*sum)[Panels]) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) sum[r][p] = dot_start(offset[r][group]);
    constexpr int quads = kGroupSize / 4;
#pragma GCC unroll 8
    for (int j = 0; j < quads; ++j) {
        Quads w[Panels];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p)
            w[p] = load_s8_quads(weight[p] + (static_cast<int64_t>(group) * quads + j) * 64);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            auto four = broadcast_quad(x[r] + group * kGroupSize + 4 * j);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p) sum[r][p] = dot_s8(sum[r][p], w[p], four);
        }
    }
}

// Low and high halves of quad j of the group, from one byte of two values or from two bytes.
template <WeightType Type>
inline NibbleQuads load_quads(const uint8_t* group, int j) {
    if (Type == WeightType::int4) return load_nibbles(group + j * 64);
    return {load_quads(group + j * 64), load_quads(group + (j + kGroupSize / 8) * 64)};
}

template <int Rows, int Panels, WeightType Type>
inline void group_dot_u4(const int8_t* const* x, const uint8_t* const* weight, int group,
                         IntVec16 (*sum)[Panels]) {
    NibbleSum partial[Rows][Panels];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) partial[r][p] = nibble_start();
    int64_t offset = static_cast<int64_t>(group) * quantized_group_bytes(Type);
#pragma GCC unroll 4
    for (int j = 0; j < kGroupSize / 8; ++j) {
        NibbleQuads w[Panels];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) w[p] = load_quads<Type>(weight[p] + offset, j);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const int8_t* of_row = x[r] + group * kGroupSize + 4 * j;
            auto low = broadcast_quad(of_row), high = broadcast_quad(of_row + kGroupSize / 2);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p) {
                partial[r][p] = dot_u4(partial[r][p], w[p].low, low);
                partial[r][p] = dot_u4(partial[r][p], w[p].high, high);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) sum[r][p] = nibble_finish(partial[r][p]);
}

template <int Rows, int Panels, WeightType Type>
inline void quantized_tile(const QuantizedLinearArgs& a, int row, int panel) {
    constexpr bool has_minimum = Type != WeightType::int8;
    int groups = a.num_groups();
    const int8_t* x[Rows];
    const int32_t* offset[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
        x[r] = a.x.values + static_cast<int64_t>(row + r) * groups * kGroupSize;
        offset[r] = a.x.offset + static_cast<int64_t>(row + r) * groups;
    }
    const float* scale = a.x.scale + static_cast<int64_t>(row) * groups;
    const float* scaled_sum = a.x.scaled_sum + static_cast<int64_t>(row) * groups;
    const uint8_t* weight[Panels];
    const uint16_t* weight_scale[Panels];
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p) {
        weight[p] = a.weight + (panel + p) * quantized_panel_bytes(Type, groups);
        weight_scale[p] = reinterpret_cast<const uint16_t*>(
            weight[p] + static_cast<int64_t>(groups) * quantized_group_bytes(Type));
    }
    Vec16 total[Rows][Panels];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) total[r][p] = zero();
    for (int g = 0; g < groups; ++g) {
        if constexpr (Rows <= kFewRows) {
            constexpr int bytes = quantized_group_bytes(Type);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p)
                for (int i = 0; i < bytes; i += kCacheLine)
                    prefetch_ahead(weight[p] + g * bytes + i);
        }
        IntVec16 sum[Rows][Panels];
        if (Type == WeightType::int8)
            group_dot_s8<Rows, Panels>(x, offset, weight, g, sum);
        else
            group_dot_u4<Rows, Panels, Type>(x, weight, g, sum);
        Vec16 d[Panels], b[Panels];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) {
            d[p] = load_fp16(weight_scale[p] + g * kLanes);
            if (has_minimum) b[p] = load_fp16(weight_scale[p] + (groups + g) * kLanes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            Vec16 s = broadcast(scale[r * groups + g]);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p)
                total[r][p] = fma(mul(to_float(sum[r][p]), d[p]), s, total[r][p]);
            if (!has_minimum) continue;
            Vec16 t = broadcast(scaled_sum[r * groups + g]);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p) total[r][p] = fma(b[p], t, total[r][p]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) {
            int column = (panel + p) * kLanes;
            int n = a.out_features - column < kLanes ? a.out_features - column : kLanes;
            Vec16 y = a.bias ? add(total[r][p], load_n(a.bias + column, n)) : total[r][p];
            store_n(a.y + (row + r) * a.y_stride + column, y, n);
        }
}

template <int Panels, WeightType Type>
inline void quantized_rows(const QuantizedLinearArgs& a, int row, int rows, int panel) {
    // Tiles of nearly equal height: a last tile of one row would wait on its own latency.
    for (int tiles = (rows + kIntTileRows - 1) / kIntTileRows; tiles > 0; --tiles) {
        int tile = (rows + tiles - 1) / tiles;
        switch (tile) {
#define PD_ROWS(R)                                                                    \
    case R:                                                                           \
        if (R <= kIntTileRows)                                                        \
            quantized_tile<(R <= kIntTileRows ? R : 1), Panels, Type>(a, row, panel); \
        break;
            PD_ROWS(1)
            PD_ROWS(2)
            PD_ROWS(3)
            PD_ROWS(4)
            PD_ROWS(5)
            PD_ROWS(6)
#undef PD_ROWS
        }
        row += tile;
        rows -= tile;
    }
}

template <WeightType Type>
void quantized_linear_typed(const QuantizedLinearArgs& a, int task) {
    int row = task / a.column_blocks() * kRowBlock;
    int rows = a.num_rows - row < kRowBlock ? a.num_rows - row : kRowBlock;
    int panel = task % a.column_blocks() * kPanels;
    int panels = (a.out_features + kLanes - 1) / kLanes - panel;
    if (kIntTilePanels == kPanels && panels >= kPanels) {
        quantized_rows<kIntTilePanels, Type>(a, row, rows, panel);
    } else {
        for (int p = 0; p < kPanels && p < panels; ++p)
            quantized_rows<1, Type>(a, row, rows, panel + p);
    }
}

void quantized_linear(const QuantizedLinearArgs& a, int task) {
    switch (a.weight_type) {
        case WeightType::int8:
            return quantized_linear_typed<WeightType::int8>(a, task);
        case WeightType::int4_bytes:
            return quantized_linear_typed<WeightType::int4_bytes>(a, task);
        case WeightType::int4:
            return quantized_linear_typed<WeightType::int4>(a, task);
        default:
            return;
    }
}

}  // namespace
