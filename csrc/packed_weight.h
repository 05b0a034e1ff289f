// A weight matrix in the layout of the product kernels.
#pragma once

#include <cstdint>
#include <memory>

#include "arena.h"
#include "kernel_table.h"

class PackedWeight {
  public:
    // weight: [out_features, in_features] of `type`, which is one of the float types.
    static PackedWeight from_floats(Arena& arena, const void* weight, int out_features,
                                    int in_features, WeightType type);

    // w = scale * q + minimum, with groups = ceil(in_features / kGroupSize).
    // values: [out_features, groups * kGroupSize], in [-127, 127] for int8, else in [0, 15];
    // scale, minimum: [out_features, groups] fp16; minimum is null for WeightType::int8.
    static PackedWeight from_groups(Arena& arena, const int8_t* values, const uint16_t* scale,
                                    const uint16_t* minimum, int out_features, int in_features,
                                    WeightType type);

    int out_features() const { return out_features_; }
    int in_features() const { return in_features_; }
    WeightType type() const { return type_; }
    const uint8_t* data() const { return data_.get(); }
    int64_t num_bytes() const { return num_bytes_; }

    // out: [in_features] = row `row` of the weight.
    void read_row(int row, float* out) const;

  private:
    PackedWeight(Arena& arena, int out_features, int in_features, WeightType type,
                 int64_t num_bytes);

    int out_features_, in_features_;
    WeightType type_;
    int64_t num_bytes_;
    std::shared_ptr<uint8_t> data_;
};
