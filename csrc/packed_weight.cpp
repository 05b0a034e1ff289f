#include "packed_weight.h"

#include <cstring>

#include "half.h"
#include "thread_pool.h"

namespace {

constexpr int kQuads = kGroupSize / 4;

int num_panels(int out_features) {
    return (out_features + kLanes - 1) / kLanes;
}

int num_groups(int in_features) {
    return (in_features + kGroupSize - 1) / kGroupSize;
}

int64_t float_panel_bytes(WeightType type, int in_features) {
    return static_cast<int64_t>(in_features) * kLanes * (type == WeightType::float32 ? 4 : 2);
}

template <class T>
void pack_floats(const T* weight, int out_features, int in_features, T* out) {
    thread_pool().parallel_for(num_panels(out_features), [&](int panel, int) {
        T* target = out + static_cast<int64_t>(panel) * in_features * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) {
            int row = panel * kLanes + lane;
            const T* source = weight + static_cast<int64_t>(row) * in_features;
            for (int k = 0; k < in_features; ++k)
                target[static_cast<int64_t>(k) * kLanes + lane] =
                    row < out_features ? source[k] : T(0);
        }
    });
}

}  // namespace

PackedWeight::PackedWeight(Arena& arena, int out_features, int in_features, WeightType type,
                           int64_t num_bytes)
    : out_features_(out_features),
      in_features_(in_features),
      type_(type),
      num_bytes_(num_bytes),
      data_(arena.allocate(num_bytes)) {}

PackedWeight PackedWeight::from_floats(Arena& arena, const void* weight, int out_features,
                                       int in_features, WeightType type) {
    PackedWeight packed(arena, out_features, in_features, type,
                        num_panels(out_features) * float_panel_bytes(type, in_features));
    if (type == WeightType::float32)
        pack_floats(static_cast<const uint32_t*>(weight), out_features, in_features,
                    reinterpret_cast<uint32_t*>(packed.data_.get()));
    else
        pack_floats(static_cast<const uint16_t*>(weight), out_features, in_features,
                    reinterpret_cast<uint16_t*>(packed.data_.get()));
    return packed;
}

PackedWeight PackedWeight::from_groups(Arena& arena, const int8_t* values, const uint16_t* scale,
                                       const uint16_t* minimum, int out_features, int in_features,
                                       WeightType type) {
    int groups = num_groups(in_features), offset = type == WeightType::int8 ? 128 : 0;
    int64_t panel_bytes = quantized_panel_bytes(type, groups);
    PackedWeight packed(arena, out_features, in_features, type,
                        num_panels(out_features) * panel_bytes);
    thread_pool().parallel_for(num_panels(out_features), [&](int panel, int) {
        uint8_t* out = packed.data_.get() + panel * panel_bytes;
        std::memset(out, 0, panel_bytes);
        uint16_t* scales = reinterpret_cast<uint16_t*>(out + static_cast<int64_t>(groups) *
                                                                 quantized_group_bytes(type));
        uint16_t* minima = scales + static_cast<int64_t>(groups) * kLanes;
        for (int lane = 0; lane < kLanes && panel * kLanes + lane < out_features; ++lane) {
            int64_t row = panel * kLanes + lane;
            const int8_t* of_row = values + row * groups * kGroupSize;
            for (int g = 0; g < groups; ++g) {
                const int8_t* q = of_row + g * kGroupSize;
                uint8_t* target = out + static_cast<int64_t>(g) * quantized_group_bytes(type);
                for (int k = 0; k < kGroupSize; ++k) {
                    int quad = k / 4, byte = lane * 4 + k % 4;
                    if (type == WeightType::int4)
                        target[quad % (kQuads / 2) * 64 + byte] |=
                            static_cast<uint8_t>(q[k] << (quad < kQuads / 2 ? 0 : 4));
                    else
                        target[quad * 64 + byte] = static_cast<uint8_t>(q[k] + offset);
                }
                scales[g * kLanes + lane] = scale[row * groups + g];
                if (minimum) minima[g * kLanes + lane] = minimum[row * groups + g];
            }
        }
    });
    return packed;
}

void PackedWeight::read_row(int row, float* out) const {
    int panel = row / kLanes, lane = row % kLanes;
    if (!is_quantized(type_)) {
        const uint8_t* source = data_.get() + panel * float_panel_bytes(type_, in_features_);
        for (int k = 0; k < in_features_; ++k) {
            int64_t index = static_cast<int64_t>(k) * kLanes + lane;
            if (type_ == WeightType::float32) {
                out[k] = reinterpret_cast<const float*>(source)[index];
            } else {
                uint16_t bits = reinterpret_cast<const uint16_t*>(source)[index];
                out[k] = type_ == WeightType::bfloat16 ? bf16_to_float(bits) : fp16_to_float(bits);
            }
        }
        return;
    }
    int groups = num_groups(in_features_);
    const uint8_t* source = data_.get() + panel * quantized_panel_bytes(type_, groups);
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(
        source + static_cast<int64_t>(groups) * quantized_group_bytes(type_));
    const uint16_t* minima = scales + static_cast<int64_t>(groups) * kLanes;
    for (int k = 0; k < in_features_; ++k) {
        int g = k / kGroupSize, quad = k % kGroupSize / 4, byte = lane * 4 + k % 4;
        const uint8_t* group = source + static_cast<int64_t>(g) * quantized_group_bytes(type_);
        int q = type_ == WeightType::int4
                    ? group[quad % (kQuads / 2) * 64 + byte] >> (quad < kQuads / 2 ? 0 : 4) & 15
                    : group[quad * 64 + byte] - (type_ == WeightType::int8 ? 128 : 0);
        float w = fp16_to_float(scales[g * kLanes + lane]) * static_cast<float>(q);
        if (type_ != WeightType::int8) w += fp16_to_float(minima[g * kLanes + lane]);
        out[k] = w;
    }
}
