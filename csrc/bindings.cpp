// The only file that knows Python. Tensors come as addresses that kernels/cpu.py has checked; host
// arrays come as numpy. The GIL is released around every loop.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "attention_plan.h"
#include "block_table.h"
#include "half.h"
#include "kernel_table.h"
#include "philox.h"
#include "sampler.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace {

using IntArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using LongArray = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
using KeyArray = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
    if (isa == Isa::avx2) return avx2;
    if (isa == Isa::avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return isa == Isa::scalar;
}

const KernelTable* compiled_kernels(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return scalar_kernels();
        case Isa::avx2:
            return avx2_kernels();
        case Isa::avx512:
            return avx512_kernels();
    }
    return nullptr;
}

bool available(Isa isa) {
    return compiled_kernels(isa) && cpu_has(isa);
}

Isa best_isa() {
    if (available(Isa::avx512)) return Isa::avx512;
    return available(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

// Weights in panels [ceil(N / 16)][K][16]: the columns of one product vector lie together.
class PackedWeight {
  public:
    PackedWeight(uintptr_t weight, int rows, int columns, WeightType type)
        : out_features(rows), in_features(columns), type(type) {
        size_t panels = (rows + kLanes - 1) / kLanes;
        size_t item = type == WeightType::float32 ? 4 : 2;
        size_t bytes = panels * columns * kLanes * item;
        data.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
        if (!data) throw std::bad_alloc();
        py::gil_scoped_release release;
        if (item == 4)
            pack(pointer<const uint32_t>(weight), reinterpret_cast<uint32_t*>(data.get()));
        else
            pack(pointer<const uint16_t>(weight), reinterpret_cast<uint16_t*>(data.get()));
    }

    int out_features, in_features;
    WeightType type;
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::unique_ptr<char, Free> data;

  private:
    template <class T>
    void pack(const T* source, T* target) {
        int panels = (out_features + kLanes - 1) / kLanes;
        thread_pool().parallel_for(panels, [&](int panel, int) {
            T* out = target + static_cast<int64_t>(panel) * in_features * kLanes;
            for (int lane = 0; lane < kLanes; ++lane) {
                int row = panel * kLanes + lane;
                const T* in = source + static_cast<int64_t>(row) * in_features;
                for (int k = 0; k < in_features; ++k)
                    out[static_cast<int64_t>(k) * kLanes + lane] =
                        row < out_features ? in[k] : T(0);
            }
        });
    }
};

float weight_at(const PackedWeight& w, int row, int k) {
    int64_t index =
        (static_cast<int64_t>(row / kLanes) * w.in_features + k) * kLanes + row % kLanes;
    if (w.type == WeightType::float32) return reinterpret_cast<const float*>(w.data.get())[index];
    uint16_t bits = reinterpret_cast<const uint16_t*>(w.data.get())[index];
    return w.type == WeightType::bfloat16 ? bf16_to_float(bits) : fp16_to_float(bits);
}

// Work worth waking other threads for, in floats touched.
constexpr int64_t kParallelFloats = 1 << 15;
constexpr int kRowsPerTask = 8;

template <class Body>
void for_rows(int num_rows, int64_t floats_per_row, const Body& body) {
    if (num_rows * floats_per_row < kParallelFloats) return body(0, num_rows);
    thread_pool().parallel_for((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int task, int) {
        int begin = task * kRowsPerTask;
        body(begin, std::min(num_rows, begin + kRowsPerTask));
    });
}

class Kernels {
  public:
    explicit Kernels(const std::string& name) {
        Isa isa = name == "scalar"   ? Isa::scalar
                  : name == "avx2"   ? Isa::avx2
                  : name == "avx512" ? Isa::avx512
                  : name == "best"   ? best_isa()
                                     : throw std::invalid_argument(
                                           "isa must be best, scalar, avx2 or avx512, got " + name);
        if (!available(isa))
            throw std::invalid_argument("this machine can't run the " + name + " kernels");
        table_ = compiled_kernels(isa);
        isa_ = isa;
    }

    std::string isa() const {
        return isa_ == Isa::avx512 ? "avx512" : isa_ == Isa::avx2 ? "avx2" : "scalar";
    }

    void linear(uintptr_t x, int64_t x_stride, const PackedWeight& w, uintptr_t bias, uintptr_t y,
                int64_t y_stride, int num_rows) const {
        LinearArgs args{pointer<const float>(x),
                        x_stride,
                        w.data.get(),
                        w.type,
                        pointer<const float>(bias),
                        pointer<float>(y),
                        y_stride,
                        num_rows,
                        w.in_features,
                        w.out_features};
        thread_pool().parallel_for(args.num_tasks(),
                                   [&](int task, int) { table_->linear(args, task); });
    }

    void attention(uintptr_t q, int64_t q_row_stride, uintptr_t k_cache, uintptr_t v_cache,
                   uintptr_t out, int num_heads, int num_kv_heads, int head_dim,
                   float softmax_scale, int sliding_window, const AttentionPlan& plan) const {
        AttentionArgs args{pointer<const float>(q),
                           q_row_stride,
                           pointer<const float>(k_cache),
                           pointer<const float>(v_cache),
                           pointer<float>(out),
                           num_heads,
                           num_kv_heads,
                           head_dim,
                           softmax_scale,
                           sliding_window,
                           plan.entries.data(),
                           plan.nodes.data(),
                           static_cast<int>(plan.nodes.size()),
                           plan.num_visible.data(),
                           plan.positions.data(),
                           plan.rotation_cos.data(),
                           plan.rotation_sin.data()};
        int rows = plan.num_rows(), group = num_heads / num_kv_heads;
        int threads = thread_pool().num_threads();
        // Enough tasks to balance the threads, few enough rows a task to stay in the cache, and
        // not so few that a KV block is fetched again and again.
        int chunks = (4 * threads + num_kv_heads - 1) / num_kv_heads;
        int chunk = std::max((rows + chunks - 1) / chunks, (kMinTaskRows + group - 1) / group);
        chunk = std::min(chunk, std::max(1, kMaxTaskRows / group));
        int row_chunks = (rows + chunk - 1) / chunk;
        std::vector<std::vector<float>> scratch(threads);
        thread_pool().parallel_for(row_chunks * num_kv_heads, [&](int task, int thread) {
            // Later rows of a long prompt see more keys: the long tasks go first.
            int row_begin = (row_chunks - 1 - task / num_kv_heads) * chunk;
            int row_end = std::min(rows, row_begin + chunk);
            scratch[thread].resize(attention_scratch_floats(chunk, group, head_dim));
            table_->attention(args, {task % num_kv_heads, row_begin, row_end},
                              scratch[thread].data());
        });
    }

    void rms_norm(uintptr_t x, int64_t x_stride, uintptr_t residual, uintptr_t weight, float eps,
                  uintptr_t out, int num_rows, int num_columns) const {
        for_rows(num_rows, num_columns, [&](int begin, int end) {
            table_->rms_norm(pointer<const float>(x), x_stride, pointer<float>(residual),
                             pointer<const float>(weight), eps, pointer<float>(out), num_columns,
                             begin, end);
        });
    }

    void silu_mul(uintptr_t x, int64_t x_stride, uintptr_t out, int num_rows,
                  int num_columns) const {
        for_rows(num_rows, 4 * num_columns, [&](int begin, int end) {
            table_->silu_mul(pointer<const float>(x), x_stride, pointer<float>(out), num_columns,
                             begin, end);
        });
    }

    // (lse, entropy, mean logit), each [rows] fp32; lse is NaN where the row holds a NaN
    py::tuple logit_stats(uintptr_t logits, int64_t stride, int num_rows, int vocab_size) const {
        FloatArray lse(num_rows), entropy(num_rows), mean(num_rows);
        LogitStatsArgs args{pointer<const float>(logits),
                            stride,
                            vocab_size,
                            lse.mutable_data(),
                            entropy.mutable_data(),
                            mean.mutable_data()};
        {
            py::gil_scoped_release release;
            thread_pool().parallel_for(num_rows,
                                       [&](int row, int) { table_->logit_stats(args, row); });
        }
        return py::make_tuple(lse, entropy, mean);
    }

    LongArray sample(uintptr_t logits, int64_t stride, int vocab_size, FloatArray temperature,
                     IntArray top_k, FloatArray top_p, FloatArray min_p,
                     DoubleArray uniform) const {
        int rows = static_cast<int>(temperature.size());
        for (py::ssize_t size : {top_k.size(), top_p.size(), min_p.size(), uniform.size()})
            if (size != rows) throw std::invalid_argument("sample: one value a row is needed");
        LongArray token(rows);
        SampleArgs args{pointer<const float>(logits),
                        stride,
                        vocab_size,
                        temperature.data(),
                        top_k.data(),
                        top_p.data(),
                        min_p.data(),
                        uniform.data(),
                        token.mutable_data()};
        py::gil_scoped_release release;
        thread_pool().parallel_for(rows, [&](int row, int) { sample_row(*table_, args, row); });
        return token;
    }

  private:
    static constexpr int kMinTaskRows = 24, kMaxTaskRows = 96;

    const KernelTable* table_;
    Isa isa_;
};

void embedding(const PackedWeight& w, uintptr_t ids, uintptr_t out, int num_rows) {
    for (int r = 0; r < num_rows; ++r) {
        int64_t id = pointer<const int64_t>(ids)[r];
        float* target = pointer<float>(out) + static_cast<int64_t>(r) * w.in_features;
        for (int k = 0; k < w.in_features; ++k) target[k] = weight_at(w, static_cast<int>(id), k);
    }
}

// Half-split RoPE, in place: (a, b) -> (a cos - b sin, b cos + a sin).
void rope(uintptr_t x, int64_t row_stride, int num_rows, int num_heads, int head_dim,
          uintptr_t cosine, uintptr_t sine, uintptr_t positions) {
    int half = head_dim / 2;
    for_rows(num_rows, num_heads * head_dim, [&](int begin, int end) {
        for (int r = begin; r < end; ++r) {
            int64_t position = pointer<const int32_t>(positions)[r];
            const float* c = pointer<const float>(cosine) + position * half;
            const float* s = pointer<const float>(sine) + position * half;
            for (int h = 0; h < num_heads; ++h) {
                float* v = pointer<float>(x) + r * row_stride + h * head_dim;
                for (int i = 0; i < half; ++i) {
                    float a = v[i], b = v[i + half];
                    v[i] = a * c[i] - b * s[i];
                    v[i + half] = b * c[i] + a * s[i];
                }
            }
        }
    });
}

// Keys lie transposed in a block, [head_dim][kBlockSize]; values as they come.
void kv_store(uintptr_t k, int64_t k_stride, uintptr_t v, int64_t v_stride, uintptr_t k_cache,
              uintptr_t v_cache, uintptr_t slot_mapping, int num_rows, int num_kv_heads,
              int head_dim) {
    for_rows(num_rows, 2 * num_kv_heads * head_dim, [&](int begin, int end) {
        for (int r = begin; r < end; ++r) {
            int64_t slot = pointer<const int64_t>(slot_mapping)[r];
            int64_t block = slot / kBlockSize, lane = slot % kBlockSize;
            for (int h = 0; h < num_kv_heads; ++h) {
                int64_t base = (block * num_kv_heads + h) * head_dim * kBlockSize;
                const float* key = pointer<const float>(k) + r * k_stride + h * head_dim;
                const float* value = pointer<const float>(v) + r * v_stride + h * head_dim;
                float* k_out = pointer<float>(k_cache) + base + lane;
                for (int d = 0; d < head_dim; ++d) k_out[d * kBlockSize] = key[d];
                std::memcpy(pointer<float>(v_cache) + base + lane * head_dim, value,
                            sizeof(float) * head_dim);
            }
        }
    });
}

// The whole block in every layer: `cache` is [num_layers * 2, num_blocks, block_bytes].
void copy_blocks(uintptr_t cache, int num_planes, int num_blocks, int64_t block_bytes,
                 const std::vector<std::pair<int, int>>& copies) {
    for (const auto& [from, to] : copies)
        for (int plane = 0; plane < num_planes; ++plane) {
            char* base =
                pointer<char>(cache) + static_cast<int64_t>(plane) * num_blocks * block_bytes;
            std::memcpy(base + to * block_bytes, base + from * block_bytes, block_bytes);
        }
}

int blocks_needed(const std::vector<const BlockTable*>& tables, IntArray counts,
                  IntArray positions) {
    int needed = 0;
    for (size_t i = 0; i < tables.size(); ++i)
        needed += tables[i]->blocks_needed(counts.at(i), positions.at(i));
    return needed;
}

// All tables grow or none does. Two tables whose shared last block both outgrow it each take a
// copy; the second then finds itself alone on it, so `blocks_needed` is an upper bound.
py::tuple append_tokens(const std::vector<BlockTable*>& tables, IntArray counts,
                        IntArray positions) {
    if (counts.size() != static_cast<py::ssize_t>(tables.size()) ||
        positions.size() != counts.size())
        throw std::invalid_argument("append_tokens: one count and one position a table");
    int total = 0, needed = 0;
    for (size_t i = 0; i < tables.size(); ++i) {
        total += counts.at(i);
        needed += tables[i]->blocks_needed(counts.at(i), positions.at(i));
    }
    if (!tables.empty() && needed > tables[0]->pool().num_free())
        throw std::length_error("the KV pool has " + std::to_string(tables[0]->pool().num_free()) +
                                " free blocks, " + std::to_string(needed) + " are needed");
    LongArray slots(total);
    std::vector<std::pair<int, int>> copies;
    int64_t* next = slots.mutable_data();
    for (size_t i = 0; i < tables.size(); ++i) {
        tables[i]->append(counts.at(i), positions.at(i), next, copies);
        next += counts.at(i);
    }
    return py::make_tuple(slots, copies);
}

AttentionPlan plan_from_python(const std::vector<const BlockTable*>& tables, IntArray rows,
                               IntArray positions, FloatArray inverse_frequencies) {
    if (rows.size() != static_cast<py::ssize_t>(tables.size()))
        throw std::invalid_argument("AttentionPlan: one row count a table");
    int64_t total = 0;
    for (size_t i = 0; i < tables.size(); ++i) {
        if (rows.at(i) < 0 || rows.at(i) > tables[i]->num_tokens())
            throw std::invalid_argument("AttentionPlan: " + std::to_string(rows.at(i)) +
                                        " rows of a table of " +
                                        std::to_string(tables[i]->num_tokens()) + " tokens");
        total += rows.at(i);
    }
    if (positions.size() != total) throw std::invalid_argument("AttentionPlan: one position a row");
    return make_plan(tables, rows.data(), positions.data(), inverse_frequencies.data(),
                     static_cast<int>(inverse_frequencies.size()));
}

// [num_entries, 5] int32: block, start, stop, offset, position
IntArray table_entries(const BlockTable& table) {
    static_assert(sizeof(ViewEntry) == 5 * sizeof(int32_t));
    IntArray out({static_cast<py::ssize_t>(table.entries().size()), py::ssize_t(5)});
    std::memcpy(out.mutable_data(), table.entries().data(),
                table.entries().size() * sizeof(ViewEntry));
    return out;
}

DoubleArray uniforms(KeyArray keys, LongArray indices, uint32_t stream) {
    if (keys.size() != indices.size()) throw std::invalid_argument("uniforms: one index a key");
    DoubleArray out(keys.size());
    for (py::ssize_t i = 0; i < keys.size(); ++i)
        out.mutable_data()[i] =
            philox_uniform(keys.data()[i], static_cast<uint64_t>(indices.data()[i]), stream);
    return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels and hot data structures of parallel_decode";
    m.attr("BLOCK_SIZE") = kBlockSize;
    auto nogil = py::call_guard<py::gil_scoped_release>();

    m.def("set_num_threads", [](int n) {
        if (n < 1)
            throw std::invalid_argument("threads must be at least 1, got " + std::to_string(n));
        py::gil_scoped_release release;
        if (n != thread_pool().num_threads()) thread_pool().resize(n);
    });
    m.def("num_threads", [] { return thread_pool().num_threads(); });
    m.def("available_isas", [] {
        std::vector<std::string> names{"scalar"};
        if (available(Isa::avx2)) names.push_back("avx2");
        if (available(Isa::avx512)) names.push_back("avx512");
        return names;
    });

    py::class_<PackedWeight>(m, "PackedWeight")
        .def(py::init([](uintptr_t weight, int rows, int columns, int type) {
            return new PackedWeight(weight, rows, columns, static_cast<WeightType>(type));
        }))
        .def_readonly("out_features", &PackedWeight::out_features)
        .def_readonly("in_features", &PackedWeight::in_features);

    py::class_<Kernels>(m, "Kernels")
        .def(py::init<const std::string&>())
        .def_property_readonly("isa", &Kernels::isa)
        .def("linear", &Kernels::linear, nogil)
        .def("attention", &Kernels::attention, nogil)
        .def("rms_norm", &Kernels::rms_norm, nogil)
        .def("silu_mul", &Kernels::silu_mul, nogil)
        .def("logit_stats", &Kernels::logit_stats)
        .def("sample", &Kernels::sample);

    m.def("embedding", &embedding, nogil);
    m.def("rope", &rope, nogil);
    m.def("kv_store", &kv_store, nogil);
    m.def("copy_blocks", &copy_blocks);

    py::class_<BlockPool>(m, "BlockPool", "Reference-counted KV blocks.")
        .def(py::init<int>(), py::arg("num_blocks"))
        .def_property_readonly("num_blocks", &BlockPool::num_blocks)
        .def_property_readonly("num_free", &BlockPool::num_free)
        .def_property_readonly("num_idle", &BlockPool::num_idle)
        .def("set_cached", &BlockPool::set_cached)
        .def("ref_count", &BlockPool::ref_count)
        .def("add_reference", &BlockPool::add_reference)
        .def("drop_reference", &BlockPool::drop_reference);

    py::class_<BlockTable>(m, "BlockTable", "A branch's view: runs of keys in shared blocks.")
        .def(py::init<BlockPool&>(), py::keep_alive<1, 2>())
        .def(
            "fork", [](const BlockTable& table) { return new BlockTable(table); },
            py::keep_alive<0, 1>(), "A second view of the same tokens; no block is copied.")
        .def("truncate", &BlockTable::truncate)
        .def("append_full_block", &BlockTable::append_full_block)
        .def("append_view", &BlockTable::append_view)
        .def("make_private", &BlockTable::make_private)
        .def("entries", &table_entries)
        .def_property_readonly("num_tokens", &BlockTable::num_tokens)
        .def_property_readonly("num_entries",
                               [](const BlockTable& table) { return table.entries().size(); });
    m.def("blocks_needed", &blocks_needed);
    m.def("append_tokens", &append_tokens);

    py::class_<AttentionPlan>(m, "AttentionPlan")
        .def(py::init(&plan_from_python))
        .def_property_readonly("num_rows", &AttentionPlan::num_rows)
        .def_property_readonly("num_nodes",
                               [](const AttentionPlan& plan) { return plan.nodes.size(); })
        .def_readonly("tokens_stored", &AttentionPlan::tokens_stored)
        .def_readonly("tokens_logical", &AttentionPlan::tokens_logical);

    m.def("uniforms", &uniforms);
    m.def("child_key", &philox_child_key);
    m.def("philox4x32", &philox4x32);
}
