// What Python calls, drafts apart (draft_bindings.cpp). Tensors come as addresses that
// kernels/cpu.py has checked; host arrays come as numpy. The GIL is released around every loop.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "attention_plan.h"
#include "block_table.h"
#include "check.h"
#include "compact_kv.h"
#include "cpu_ops.h"
#include "decoder.h"
#include "draft_bindings.h"
#include "edit_distance.h"
#include "kernel_table.h"
#include "packed_weight.h"
#include "philox.h"
#include "python_arrays.h"
#include "thread_pool.h"
#include "work_plan.h"

namespace py = pybind11;

namespace {

// (lse, entropy, mean logit), each [rows] fp32; lse is NaN where the row holds a NaN
py::tuple logit_stats(CpuOps& ops, uintptr_t logits, int64_t stride, int num_rows, int vocab_size) {
    FloatArray lse(num_rows), entropy(num_rows), mean(num_rows);
    LogitStatsArgs args{pointer<const float>(logits),
                        stride,
                        vocab_size,
                        lse.mutable_data(),
                        entropy.mutable_data(),
                        mean.mutable_data()};
    {
        py::gil_scoped_release release;
        ops.logit_stats(args, num_rows);
    }
    return py::make_tuple(lse, entropy, mean);
}

void mask_logits(CpuOps& ops, uintptr_t logits, int64_t stride, int vocab_size, IntArray words,
                 uintptr_t out) {
    if (words.ndim() != 2 || words.shape(1) != (vocab_size + 31) / 32)
        throw std::invalid_argument("mask_logits: a row of words has a bit for each token");
    int rows = static_cast<int>(words.shape(0));
    MaskLogitsArgs args{pointer<const float>(logits), stride, vocab_size, words.data(),
                        pointer<float>(out)};
    py::gil_scoped_release release;
    ops.mask_logits(args, rows);
}

// (values, tokens), each [rows, k], the highest first
py::tuple top_logits(CpuOps& ops, uintptr_t logits, int64_t stride, int num_rows, int vocab_size,
                     int k) {
    if (k < 1 || k > vocab_size)
        throw std::invalid_argument("top_logits: k must be between 1 and the vocabulary's size");
    FloatArray values({num_rows, k});
    LongArray tokens({num_rows, k});
    TopLogitsArgs args{pointer<const float>(logits), stride, vocab_size, k, values.mutable_data(),
                       tokens.mutable_data()};
    {
        py::gil_scoped_release release;
        ops.top_logits(args, num_rows);
    }
    return py::make_tuple(values, tokens);
}

LongArray sample(CpuOps& ops, uintptr_t logits, int64_t stride, int vocab_size,
                 FloatArray temperature, IntArray top_k, FloatArray top_p, FloatArray min_p,
                 DoubleArray uniform) {
    int rows = static_cast<int>(temperature.size());
    for (py::ssize_t size : {top_k.size(), top_p.size(), min_p.size(), uniform.size()})
        if (size != rows) throw std::invalid_argument("sample: one value a row is needed");
    LongArray token(rows);
    SampleArgs args{{pointer<const float>(logits), stride, vocab_size, temperature.data(),
                     top_k.data(), top_p.data(), min_p.data()},
                    uniform.data(),
                    token.mutable_data()};
    py::gil_scoped_release release;
    ops.sample(args, rows);
    return token;
}

void probabilities(CpuOps& ops, uintptr_t logits, int64_t stride, int vocab_size,
                   FloatArray temperature, IntArray top_k, FloatArray top_p, FloatArray min_p,
                   uintptr_t p) {
    int rows = static_cast<int>(temperature.size());
    for (py::ssize_t size : {top_k.size(), top_p.size(), min_p.size()})
        if (size != rows) throw std::invalid_argument("probabilities: one value a row is needed");
    ProbabilityArgs args{{pointer<const float>(logits), stride, vocab_size, temperature.data(),
                          top_k.data(), top_p.data(), min_p.data()},
                         pointer<float>(p)};
    py::gil_scoped_release release;
    ops.probabilities(args, rows);
}

void compact_kv_of_python(uintptr_t storage, int num_layers, int num_blocks, int num_kv_heads,
                          int64_t head_bytes,
                          const std::array<std::vector<std::tuple<int64_t, int, int>>, 2>& parts,
                          uintptr_t source, uintptr_t target, int num_branches, int max_moves) {
    CompactArgs args{pointer<char>(storage),
                     num_layers,
                     num_blocks,
                     num_kv_heads,
                     head_bytes,
                     {},
                     pointer<const int64_t>(source),
                     pointer<const int64_t>(target),
                     num_branches,
                     max_moves};
    for (int plane = 0; plane < 2; ++plane)
        for (const auto& [offset, num_chunks, chunk_bytes] : parts[plane])
            args.parts[plane].push_back({offset, num_chunks, chunk_bytes});
    py::gil_scoped_release release;
    compact_kv(args);
}

// [num, num] int64 of sequences that stand one behind the other
LongArray edit_distances_of_python(const IntArray& symbols, const std::vector<int64_t>& lengths,
                                   int num_symbols) {
    std::vector<int64_t> starts{0};
    for (int64_t length : lengths) {
        check(length >= 0, "edit_distances: a length must not be negative", length);
        starts.push_back(starts.back() + length);
    }
    if (starts.back() != symbols.size())
        throw std::invalid_argument("edit_distances: the lengths must add up to the symbols");
    for (py::ssize_t i = 0; i < symbols.size(); ++i) {
        int symbol = symbols.data()[i];
        check(symbol >= 0 && symbol < num_symbols, "edit_distances: no such symbol", symbol);
    }
    auto num = static_cast<py::ssize_t>(lengths.size());
    LongArray distances({num, num});
    const int32_t* read = symbols.data();
    int64_t* written = distances.mutable_data();
    py::gil_scoped_release release;
    edit_distances(read, starts, num_symbols, written);
    return distances;
}

void embedding(const PackedWeight& w, uintptr_t ids, uintptr_t out, int num_rows) {
    for (int r = 0; r < num_rows; ++r)
        w.read_row(static_cast<int>(pointer<const int64_t>(ids)[r]),
                   pointer<float>(out) + static_cast<int64_t>(r) * w.in_features());
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
                               IntArray positions, FloatArray inverse_frequencies,
                               std::optional<KeyArray> draft_masks, bool share) {
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
    if (draft_masks && draft_masks->size() != total)
        throw std::invalid_argument("AttentionPlan: one draft mask a row");
    for (int64_t i = 0, row = 0; draft_masks && i < rows.size(); row += rows.at(i++)) {
        for (int64_t r = 0; r < rows.at(i); ++r) {
            uint64_t mask = draft_masks->at(row + r);
            if (mask && (rows.at(i) > 64 || !(mask >> r & 1)))
                throw std::invalid_argument("AttentionPlan: draft row " + std::to_string(r) +
                                            " of " + std::to_string(rows.at(i)) +
                                            ": at most 64, each of which sees itself");
        }
    }
    return make_plan(tables, rows.data(), positions.data(), inverse_frequencies.data(),
                     static_cast<int>(inverse_frequencies.size()),
                     draft_masks ? draft_masks->data() : nullptr, share);
}

// [num_entries, 5] int32: block, start, stop, offset, position
IntArray table_entries(const BlockTable& table) {
    static_assert(sizeof(ViewEntry) == 5 * sizeof(int32_t));
    IntArray out({static_cast<py::ssize_t>(table.entries().size()), py::ssize_t(5)});
    if (!table.entries().empty())
        std::memcpy(out.mutable_data(), table.entries().data(),
                    table.entries().size() * sizeof(ViewEntry));
    return out;
}

// entries: [num_entries, 5] int32, as `table_entries` gives them
std::vector<int> append_copies(BlockTable& table, IntArray entries) {
    if (entries.ndim() != 2 || entries.shape(1) != 5)
        throw std::invalid_argument("entries must be [num_entries, 5]");
    std::vector<ViewEntry> rows(entries.shape(0));
    if (!rows.empty()) std::memcpy(rows.data(), entries.data(), rows.size() * sizeof(ViewEntry));
    for (const ViewEntry& row : rows)
        if (row.start < 0 || row.start >= row.stop || row.stop > kBlockSize)
            throw std::invalid_argument("an entry holds tokens " + std::to_string(row.start) +
                                        " to " + std::to_string(row.stop) + " of a block");
    return table.append_copies(rows);
}

// [num_items, 8] int32, see WorkItem
IntArray work_items(const WorkPlan& plan) {
    static_assert(sizeof(WorkItem) == 8 * sizeof(int32_t));
    IntArray out({static_cast<py::ssize_t>(plan.items.size()), py::ssize_t(8)});
    if (!plan.items.empty())
        std::memcpy(out.mutable_data(), plan.items.data(), plan.items.size() * sizeof(WorkItem));
    return out;
}

// [2, num_rotations * head_dim / 2]: cosines and sines
FloatArray work_rotations(const WorkPlan& plan) {
    auto size = static_cast<py::ssize_t>(plan.rotation_cos.size());
    FloatArray out({py::ssize_t(2), size});
    std::memcpy(out.mutable_data(), plan.rotation_cos.data(), size * sizeof(float));
    std::memcpy(out.mutable_data() + size, plan.rotation_sin.data(), size * sizeof(float));
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
    m.attr("GROUP_SIZE") = kGroupSize;
    m.attr("MAX_HEAD_DIM") = kMaxHeadDim;
    auto nogil = py::call_guard<py::gil_scoped_release>();

    m.def("set_num_threads", [](int n) {
        if (n < 1)
            throw std::invalid_argument("threads must be at least 1, got " + std::to_string(n));
        py::gil_scoped_release release;
        if (n != thread_pool().num_threads()) thread_pool().resize(n);
    });
    m.def("num_threads", [] { return thread_pool().num_threads(); });
    m.def("available_isas", &available_isas);

    py::class_<Arena>(m, "Arena", "Memory of packed weights.").def(py::init<>());
    py::class_<PackedWeight>(m, "PackedWeight")
        .def_static(
            "from_floats",
            [](Arena& arena, uintptr_t weight, int out_features, int in_features, int type) {
                return PackedWeight::from_floats(arena, pointer<const void>(weight), out_features,
                                                 in_features, static_cast<WeightType>(type));
            },
            nogil)
        .def_static(
            "from_groups",
            [](Arena& arena, uintptr_t values, uintptr_t scale, uintptr_t minimum, int out_features,
               int in_features, int type) {
                return PackedWeight::from_groups(arena, pointer<const int8_t>(values),
                                                 pointer<const uint16_t>(scale),
                                                 pointer<const uint16_t>(minimum), out_features,
                                                 in_features, static_cast<WeightType>(type));
            },
            nogil)
        .def_property_readonly("out_features", &PackedWeight::out_features)
        .def_property_readonly("in_features", &PackedWeight::in_features)
        .def_property_readonly("num_bytes", &PackedWeight::num_bytes);

    py::class_<CpuOps>(m, "CpuOps")
        .def(py::init<const std::string&>())
        .def_property_readonly("isa", &CpuOps::isa)
        .def(
            "linear",
            [](CpuOps& ops, uintptr_t x, int64_t x_stride, const PackedWeight& w, uintptr_t bias,
               uintptr_t y, int64_t y_stride, int num_rows) {
                ops.linear(pointer<const float>(x), x_stride, w, pointer<const float>(bias),
                           pointer<float>(y), y_stride, num_rows);
            },
            nogil)
        .def(
            "attention",
            [](CpuOps& ops, uintptr_t q, int64_t q_row_stride, uintptr_t k_cache, uintptr_t v_cache,
               int kv_type, uintptr_t out, int num_heads, int num_kv_heads, int head_dim,
               float softmax_scale, int sliding_window, const AttentionPlan& plan) {
                AttentionArgs args{};
                args.q = pointer<const float>(q);
                args.q_row_stride = q_row_stride;
                args.k_cache = pointer<const char>(k_cache);
                args.v_cache = pointer<const char>(v_cache);
                args.kv_type = static_cast<KvType>(kv_type);
                args.out = pointer<float>(out);
                args.num_heads = num_heads;
                args.num_kv_heads = num_kv_heads;
                args.head_dim = head_dim;
                args.softmax_scale = softmax_scale;
                args.sliding_window = sliding_window;
                ops.attention(args, plan, 0, plan.num_rows());
            },
            nogil)
        .def(
            "rms_norm",
            [](CpuOps& ops, uintptr_t x, int64_t x_stride, uintptr_t residual, uintptr_t weight,
               float eps, uintptr_t out, int num_rows, int num_columns) {
                ops.rms_norm(pointer<const float>(x), x_stride, pointer<float>(residual),
                             pointer<const float>(weight), eps, pointer<float>(out), num_rows,
                             num_columns);
            },
            nogil)
        .def(
            "silu_mul",
            [](CpuOps& ops, uintptr_t x, int64_t x_stride, uintptr_t out, int num_rows,
               int num_columns) {
                ops.silu_mul(pointer<const float>(x), x_stride, pointer<float>(out), num_rows,
                             num_columns);
            },
            nogil)
        .def(
            "rope",
            [](CpuOps& ops, uintptr_t x, int64_t row_stride, int num_rows, int num_heads,
               int head_dim, uintptr_t cosine, uintptr_t sine, uintptr_t positions) {
                ops.rope({pointer<float>(x), row_stride, num_heads, head_dim,
                          pointer<const float>(cosine), pointer<const float>(sine),
                          pointer<const int32_t>(positions)},
                         num_rows);
            },
            nogil)
        .def(
            "kv_store",
            [](CpuOps& ops, uintptr_t k, int64_t k_stride, uintptr_t v, int64_t v_stride,
               uintptr_t k_cache, uintptr_t v_cache, int kv_type, uintptr_t slots, int num_rows,
               int num_kv_heads, int head_dim) {
                ops.kv_store(
                    {pointer<const float>(k), pointer<const float>(v), k_stride, v_stride,
                     pointer<char>(k_cache), pointer<char>(v_cache), static_cast<KvType>(kv_type),
                     pointer<const int64_t>(slots), num_kv_heads, head_dim},
                    num_rows);
            },
            nogil)
        .def("logit_stats", &logit_stats)
        .def("top_logits", &top_logits)
        .def("mask_logits", &mask_logits)
        .def("sample", &sample)
        .def("probabilities", &probabilities)
        .def(
            "verify_greedy",
            [](CpuOps& ops, const DraftArgs& trees, uintptr_t argmax) {
                ops.verify_greedy(trees, pointer<const int64_t>(argmax));
            },
            nogil)
        .def("verify_tree", &CpuOps::verify_tree, nogil)
        .def("verify_traversal", &CpuOps::verify_traversal, nogil)
        .def("verify_typical", &CpuOps::verify_typical, nogil)
        .def("float_roofline", &CpuOps::float_roofline, nogil)
        .def("int8_roofline", &CpuOps::int8_roofline, nogil)
        .def("read_bandwidth", &CpuOps::read_bandwidth, nogil);

    py::class_<DecoderLinear>(m, "DecoderLinear")
        .def(py::init([](const PackedWeight& weight, uintptr_t bias) {
                 return DecoderLinear{&weight, pointer<const float>(bias)};
             }),
             py::keep_alive<1, 2>());
    py::class_<Decoder>(m, "Decoder")
        .def(
            py::init([](CpuOps& ops, int hidden_size, int num_heads, int num_kv_heads, int head_dim,
                        int max_seq_len, float eps, float softmax_scale, uintptr_t cosine,
                        uintptr_t sine, const PackedWeight& embedding, uintptr_t first_norm) {
                return new Decoder(
                    ops,
                    {hidden_size, num_heads, num_kv_heads, head_dim, max_seq_len, eps,
                     softmax_scale, pointer<const float>(cosine), pointer<const float>(sine)},
                    &embedding, pointer<const float>(first_norm));
            }),
            py::keep_alive<1, 2>(), py::keep_alive<1, 12>())
        .def(
            "add_layer",
            [](Decoder& decoder, const DecoderLinear& qkv, const DecoderLinear& output,
               const DecoderLinear& gate_up, const DecoderLinear& down, uintptr_t q_norm,
               uintptr_t k_norm, uintptr_t post_attention_norm, uintptr_t next_norm,
               int sliding_window, int cache_layer) {
                decoder.add_layer({qkv, output, gate_up, down, pointer<const float>(q_norm),
                                   pointer<const float>(k_norm),
                                   pointer<const float>(post_attention_norm),
                                   pointer<const float>(next_norm), sliding_window, cache_layer});
            },
            py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>(),
            py::keep_alive<1, 5>())
        .def(
            "forward",
            [](Decoder& decoder, uintptr_t ids, uintptr_t positions, uintptr_t slots,
               const AttentionPlan& plan, int kv_type, uintptr_t storage, int64_t plane_bytes,
               uintptr_t out) {
                if (decoder.has_fusion())
                    throw std::invalid_argument("Decoder: forward has no features for the fusion");
                decoder.forward(pointer<const int64_t>(ids), pointer<const int32_t>(positions),
                                pointer<const int64_t>(slots), nullptr, plan,
                                {static_cast<KvType>(kv_type), pointer<char>(storage), plane_bytes},
                                pointer<float>(out));
            },
            nogil)
        .def("set_fusion", &Decoder::set_fusion, py::keep_alive<1, 2>())
        .def(
            "store",
            [](Decoder& decoder, uintptr_t ids, uintptr_t positions, uintptr_t slots,
               uintptr_t features, int rows, int kv_type, uintptr_t storage, int64_t plane_bytes) {
                decoder.store(pointer<const int64_t>(ids), pointer<const int32_t>(positions),
                              pointer<const int64_t>(slots), pointer<const float>(features), rows,
                              {static_cast<KvType>(kv_type), pointer<char>(storage), plane_bytes});
            },
            nogil);
    py::class_<DraftArgs>(m, "DraftArgs", "Addresses of drafts and of what is decided about them.")
        .def(py::init([](uintptr_t tokens, uintptr_t parents, uintptr_t cu_nodes, int num_branches,
                         int max_depth, uintptr_t num_accepted, uintptr_t path,
                         uintptr_t next_token) {
                 DraftArgs args{};
                 args.tokens = pointer<const int64_t>(tokens);
                 args.parents = pointer<const int32_t>(parents);
                 args.cu_nodes = pointer<const int32_t>(cu_nodes);
                 args.num_branches = num_branches;
                 args.max_depth = max_depth;
                 args.num_accepted = pointer<int32_t>(num_accepted);
                 args.path = pointer<int32_t>(path);
                 args.next_token = pointer<int64_t>(next_token);
                 return args;
             }),
             py::kw_only(), py::arg("tokens"), py::arg("parents"), py::arg("cu_nodes"),
             py::arg("num_branches"), py::arg("max_depth"), py::arg("num_accepted"),
             py::arg("path"), py::arg("next_token"))
        .def(
            "set_laws",
            [](DraftArgs& args, uintptr_t p, int64_t p_stride, uintptr_t q, int64_t q_stride,
               uintptr_t deterministic, int vocab_size, bool replacement) {
                args.p = pointer<const float>(p);
                args.p_stride = p_stride;
                args.q = pointer<const float>(q);
                args.q_stride = q_stride;
                args.deterministic = pointer<const uint8_t>(deterministic);
                args.vocab_size = vocab_size;
                args.replacement = replacement;
            },
            py::kw_only(), py::arg("p"), py::arg("p_stride"), py::arg("q"), py::arg("q_stride"),
            py::arg("deterministic"), py::arg("vocab_size"), py::arg("replacement"))
        .def("set_chance", [](DraftArgs& args, uintptr_t keys, uintptr_t positions) {
            args.keys = pointer<const int64_t>(keys);
            args.positions = pointer<const int64_t>(positions);
        });
    m.def("checked_depth",
          [](uintptr_t parents, uintptr_t cu_nodes, int num_branches, int num_nodes) {
              return checked_depth(pointer<const int32_t>(parents),
                                   pointer<const int32_t>(cu_nodes), num_branches, num_nodes);
          });

    m.def("embedding", &embedding, nogil);
    m.def("compact_kv", &compact_kv_of_python);
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
        .def("append_copies", &append_copies)
        .def("make_private", &BlockTable::make_private)
        .def("position_of", &BlockTable::position_of)
        .def("entries", &table_entries)
        .def_property_readonly("num_tokens", &BlockTable::num_tokens)
        .def_property_readonly("num_entries",
                               [](const BlockTable& table) { return table.entries().size(); });
    m.def("blocks_needed", &blocks_needed);
    m.def("append_tokens", &append_tokens);

    py::class_<AttentionPlan>(m, "AttentionPlan")
        .def(py::init(&plan_from_python), py::arg("tables"), py::arg("rows"), py::arg("positions"),
             py::arg("inverse_frequencies"), py::arg("draft_masks") = py::none(),
             py::arg("share") = true)
        .def_property_readonly("num_rows", &AttentionPlan::num_rows)
        .def_property_readonly("num_nodes",
                               [](const AttentionPlan& plan) { return plan.nodes.size(); })
        .def_property_readonly("num_rotations",
                               [](const AttentionPlan& plan) { return plan.offsets.size(); })
        .def_property_readonly("widest_node", &AttentionPlan::widest_node)
        .def_readonly("tokens_stored", &AttentionPlan::tokens_stored)
        .def_readonly("tokens_logical", &AttentionPlan::tokens_logical);

    py::class_<WorkCosts>(m, "WorkCosts")
        .def(py::init([](double start, double launch, std::array<double, 2> page,
                         std::array<double, 2> page_beside, double partial,
                         std::array<int, 2> tile_rows, std::array<int, 2> pages_per_read,
                         int num_programs, int num_kv_heads, int joined_pages, int sliding_window) {
                 return WorkCosts{start,
                                  launch,
                                  {page[0], page[1]},
                                  {page_beside[0], page_beside[1]},
                                  partial,
                                  {tile_rows[0], tile_rows[1]},
                                  {pages_per_read[0], pages_per_read[1]},
                                  num_programs,
                                  num_kv_heads,
                                  joined_pages,
                                  sliding_window};
             }),
             py::kw_only(), py::arg("start"), py::arg("launch"), py::arg("page"),
             py::arg("page_beside"), py::arg("partial"), py::arg("tile_rows"),
             py::arg("pages_per_read"), py::arg("num_programs"), py::arg("num_kv_heads"),
             py::arg("joined_pages"), py::arg("sliding_window"));
    py::class_<WorkPlan>(m, "WorkPlan")
        .def(py::init<>())
        .def("make", &WorkPlan::make)
        .def_readonly("predicted_us", &WorkPlan::predicted_us)
        .def("advance",
             [](WorkPlan& plan, IntArray positions) {
                 if (positions.size() != plan.num_rows())
                     throw std::invalid_argument("WorkPlan: one position a row");
                 return plan.advance(positions.data());
             })
        .def("pack",
             [](const WorkPlan& plan, const std::array<int64_t, 8>& offsets, int max_items,
                int max_pages, int max_rows, uintptr_t buffer) {
                 WorkLayout layout{offsets[0], offsets[1], offsets[2], offsets[3],
                                   offsets[4], offsets[5], offsets[6], offsets[7],
                                   max_items,  max_pages,  max_rows};
                 plan.pack(layout, pointer<int32_t>(buffer));
             })
        .def("items", &work_items)
        .def_property_readonly("num_rows", &WorkPlan::num_rows)
        .def_property_readonly("num_items", [](const WorkPlan& plan) { return plan.items.size(); })
        .def_property_readonly("num_pages", [](const WorkPlan& plan) { return plan.pages.size(); })
        .def_property_readonly("num_runs",
                               [](const WorkPlan& plan) { return plan.merge_runs.size(); })
        .def_property_readonly("num_launches", &WorkPlan::num_launches)
        .def_property_readonly("rotations", &work_rotations)
        .def_readonly("num_partials", &WorkPlan::num_partials)
        .def_readonly("pages_read", &WorkPlan::pages_read)
        .def_readonly("tokens_stored", &WorkPlan::tokens_stored)
        .def_readonly("tokens_logical", &WorkPlan::tokens_logical);

    bind_drafts(m);
    m.def("edit_distances", &edit_distances_of_python);
    m.def("uniforms", &uniforms);
    m.def("child_key", &philox_child_key);
    m.def("philox4x32", &philox4x32);
}
