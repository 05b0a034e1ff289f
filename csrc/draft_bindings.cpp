// What Python calls of drafts. A call takes microseconds, or changes what the collector of another
// thread may change, a pool or an index: the GIL is kept.
#include "draft_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "block_table.h"
#include "check.h"
#include "cpu_ops.h"
#include "decoder.h"
#include "draft_choice.h"
#include "draft_guess.h"
#include "draft_loop.h"
#include "draft_tree.h"
#include "philox.h"
#include "python_arrays.h"
#include "suffix_index.h"

namespace {

using Drafts = std::vector<const DraftColumns*>;

// ---- one draft ----

DraftColumns columns_of_python(const LongArray& tokens, const IntArray& parents,
                               const DoubleArray& probabilities) {
    DraftColumns draft{{tokens.data(), tokens.data() + tokens.size()},
                       {parents.data(), parents.data() + parents.size()},
                       {probabilities.data(), probabilities.data() + probabilities.size()}};
    draft.check();
    return draft;
}

IntArray depths_of(const DraftColumns& draft) {
    IntArray depths(draft.size());
    tree_depths(draft, depths.mutable_data());
    return depths;
}

KeyArray masks_of(const DraftColumns& draft) {
    check(draft.size() <= kMaxDraftNodes, "masks have bits for 63 nodes", draft.size());
    KeyArray masks(draft.size());
    tree_masks(draft, masks.mutable_data());
    return masks;
}

DoubleArray path_probabilities_of(const DraftColumns& draft) {
    DoubleArray products(draft.size());
    tree_products(draft, products.mutable_data());
    return products;
}

py::tuple follow(const DraftColumns& draft, const std::vector<int64_t>& said) {
    TreePath path = tree_follow(draft, said);
    return py::make_tuple(path.nodes, path.may_go_on);
}

DraftColumns keep(const DraftColumns& draft, const BoolArray& kept) {
    if (kept.ndim() != 1 || kept.size() != draft.size())
        throw std::invalid_argument("kept must have a bool for each of " +
                                    std::to_string(draft.size()) + " nodes, got " +
                                    std::to_string(kept.size()));
    return tree_keep(draft, reinterpret_cast<const uint8_t*>(kept.data()));
}

DraftColumns cut(const DraftColumns& draft, int max_nodes) {
    if (max_nodes < 0)
        throw std::invalid_argument("max_nodes must be 0 or more, got " +
                                    std::to_string(max_nodes));
    return tree_cut(draft, max_nodes);
}

// ---- all drafts of a step ----

int count_nodes(const Drafts& drafts) {
    int num_nodes = 0;
    for (const DraftColumns* draft : drafts) num_nodes += draft->size();
    return num_nodes;
}

// -1 where there is none.
int64_t highest_token(const Drafts& drafts) {
    int64_t highest = -1;
    for (const DraftColumns* draft : drafts)
        for (int64_t token : draft->tokens) highest = std::max(highest, token);
    return highest;
}

// The rows of a step: each branch's tokens, and behind them the nodes of its draft. starts: the
// positions of their first tokens. -> (ids int64, positions int32, masks uint64, each [num_rows]):
// a node's mask has a bit for each of its branch's tokens here, which all nodes see, and for those
// of its nodes that it sees; those of tokens are 0. Without any draft there are no masks.
py::tuple step_rows(const std::vector<std::vector<int64_t>>& tokens, const Drafts& drafts,
                    const IntArray& starts) {
    if (drafts.size() != tokens.size() || starts.size() != static_cast<py::ssize_t>(tokens.size()))
        throw std::invalid_argument("step_rows: a draft and a position a branch");
    size_t num_nodes = count_nodes(drafts), num_rows = num_nodes;
    for (const auto& of_branch : tokens) num_rows += of_branch.size();
    LongArray ids(num_rows);
    IntArray positions(num_rows);
    std::vector<uint64_t> masks(num_nodes ? num_rows : 0);
    int64_t* id = ids.mutable_data();
    int32_t* position = positions.mutable_data();
    uint64_t* mask = masks.data();
    for (size_t b = 0; b < tokens.size(); ++b) {
        const DraftColumns& draft = *drafts[b];
        auto count = static_cast<int>(tokens[b].size());
        id = std::copy(tokens[b].begin(), tokens[b].end(), id);
        for (int i = 0; i < count; ++i) *position++ = starts.data()[b] + i;
        if (num_nodes == 0) continue;
        mask += count;
        if (draft.size() == 0) continue;
        if (count + draft.size() > kMaxDraftNodes + 1)
            throw std::invalid_argument("step_rows: a mask has no bits for " +
                                        std::to_string(count) + " tokens and " +
                                        std::to_string(draft.size()) + " nodes");
        id = std::copy(draft.tokens.begin(), draft.tokens.end(), id);
        tree_depths(draft, position);
        tree_masks(draft, mask);
        for (int n = 0; n < draft.size(); ++n) {
            *position++ += starts.data()[b] + count - 1;
            *mask = *mask << count | ((uint64_t{1} << count) - 1);
            ++mask;
        }
    }
    if (num_nodes == 0) return py::make_tuple(ids, positions, py::none());
    return py::make_tuple(ids, positions, as_array(masks));
}

// [num_draws] int64: 0 behind each branch, and behind its draft's nodes how deep they are.
LongArray draw_depths(const Drafts& drafts) {
    LongArray depths(count_nodes(drafts) + drafts.size());
    int64_t* depth = depths.mutable_data();
    for (const DraftColumns* draft : drafts) {
        *depth++ = 0;
        tree_depths(*draft, depth);
        depth += draft->size();
    }
    return depths;
}

// drawn: [num_draws], behind each branch and behind its draft's nodes -> the nodes of each draft
// that hold what was drawn in front of them.
std::vector<std::vector<int>> walk_drafts(const Drafts& drafts, const LongArray& drawn) {
    if (drawn.size() != count_nodes(drafts) + static_cast<py::ssize_t>(drafts.size()))
        throw std::invalid_argument("walk_drafts: one draw a branch and one a node");
    std::vector<std::vector<int>> paths;
    const int64_t* first = drawn.data();
    for (const DraftColumns* draft : drafts) {
        paths.push_back(tree_walk(*draft, first));
        first += 1 + draft->size();
    }
    return paths;
}

// right: the nodes of each draft that were right; deeper ones than depths[draft] are not judged.
// -> (number of nodes, and fp64 [kProbabilityBins] each: how many were right, the sum of what was
// said of their paths), by what was said.
py::tuple judge_drafts(const Drafts& drafts, const std::vector<std::vector<int>>& right,
                       const std::vector<int>& depths) {
    if (right.size() != drafts.size() || depths.size() != drafts.size())
        throw std::invalid_argument("judge_drafts: nodes and a depth a draft");
    std::vector<double> num_right(kProbabilityBins), sum_said(kProbabilityBins), said;
    std::vector<int> depth_of;
    int64_t num_nodes = 0;
    for (size_t d = 0; d < drafts.size(); ++d) {
        int size = drafts[d]->size();
        said.resize(size);
        depth_of.resize(size);
        tree_products(*drafts[d], said.data());
        tree_depths(*drafts[d], depth_of.data());
        auto bin = [&](int n) {
            return std::min(static_cast<int>(said[n] * kProbabilityBins), kProbabilityBins - 1);
        };
        for (int n = 0; n < size; ++n) {
            if (depth_of[n] > depths[d]) continue;
            ++num_nodes;
            sum_said[bin(n)] += said[n];
        }
        for (int n : right[d]) {
            if (n < 0 || n >= size)
                throw std::invalid_argument("judge_drafts: there is no node " + std::to_string(n));
            if (depth_of[n] <= depths[d]) ++num_right[bin(n)];
        }
    }
    return py::make_tuple(num_nodes, as_array(num_right), as_array(sum_said));
}

// (what is kept of each draft, promise, gain, best): see DraftChoice.
py::tuple choose_drafts(const std::vector<std::shared_ptr<DraftColumns>>& drafts,
                        const DoubleArray& factors, const DoubleArray& seconds, double plain,
                        double per_token, double proposing, double least_gain, int otherwise) {
    if (factors.size() != kProbabilityBins)
        throw std::invalid_argument("choose_drafts: one factor a bin");
    Drafts read;
    for (const auto& draft : drafts) read.push_back(draft.get());
    DraftChoice choice =
        choose_nodes({read, factors.data(), seconds.data(), static_cast<int>(seconds.size()), plain,
                      per_token, proposing, least_gain, otherwise});
    std::vector<std::shared_ptr<DraftColumns>> kept;
    const uint8_t* first = choice.kept.data();
    for (const auto& draft : drafts) {
        const uint8_t* last = first + draft->size();
        bool is_whole = std::find(first, last, 0) == last;
        kept.push_back(is_whole ? draft : std::make_shared<DraftColumns>(tree_keep(*draft, first)));
        first = last;
    }
    return py::make_tuple(kept, choice.promise, choice.gain, as_array(choice.best));
}

// ---- drafters ----

// p: [num_branches * num_levels, vocab_size]; keys, positions (of the first level), greedy,
// max_nodes: [num_branches] -> a tree each
std::vector<DraftColumns> draft_products(const FloatArray& p, int num_levels, const KeyArray& keys,
                                         const std::vector<int64_t>& positions,
                                         const std::vector<bool>& greedy,
                                         const std::vector<int>& max_nodes, double min_prob,
                                         int num_guesses) {
    size_t branches = keys.size();
    if (p.ndim() != 2 || num_levels < 1 ||
        p.shape(0) != static_cast<py::ssize_t>(branches) * num_levels)
        throw std::invalid_argument("draft_products: p must have a row for each branch and level");
    if (positions.size() != branches || greedy.size() != branches || max_nodes.size() != branches)
        throw std::invalid_argument("draft_products: a position, greedy and max_nodes a branch");
    int vocabulary = static_cast<int>(p.shape(1));
    std::vector<DraftColumns> trees;
    for (size_t b = 0; b < branches; ++b) {
        std::vector<std::vector<DraftGuess>> levels;
        for (int level = 0; level < num_levels; ++level) {
            const float* row = p.data(b * num_levels + level, 0);
            GuessLimits limits{min_prob, num_guesses};
            double u = philox_uniform(keys.at(b), positions[b] + level, 0);
            levels.push_back(greedy[b] ? likeliest_guesses(row, vocabulary, limits)
                                       : lucky_guesses(row, vocabulary, u, limits));
        }
        trees.push_back(product_tree(levels, max_nodes[b], min_prob));
    }
    return trees;
}

// A chain with its siblings for each branch.
std::vector<DraftColumns> combs_of_python(Decoder& decoder, CpuOps& ops, const DecoderLinear& head,
                                          int kv_type, uintptr_t storage, int64_t plane_bytes,
                                          int num_layers, int num_blocks,
                                          FloatArray inverse_frequencies,
                                          const std::vector<DraftBranch>& branches, double min_prob,
                                          int num_siblings) {
    for (const DraftBranch& branch : branches) {
        size_t expected =
            decoder.has_fusion() ? branch.pending.size() * head.weight->in_features() : 0;
        if (branch.features.size() != expected)
            throw std::invalid_argument("draft_combs: " + std::to_string(expected) +
                                        " features expected, got " +
                                        std::to_string(branch.features.size()));
    }
    if (num_siblings < 0)
        throw std::invalid_argument("draft_combs: num_siblings must be 0 or more, got " +
                                    std::to_string(num_siblings));
    DraftModel model{&ops,
                     &decoder,
                     head,
                     {static_cast<KvType>(kv_type), pointer<char>(storage), plane_bytes},
                     num_layers,
                     num_blocks,
                     static_cast<int>(inverse_frequencies.size()),
                     inverse_frequencies.data()};
    return draft_combs(model, branches, min_prob, num_siblings);
}

void follow_streams(SuffixIndex& index, const std::vector<int64_t>& streams,
                    const std::vector<int64_t>& num_tokens,
                    const std::vector<std::vector<int64_t>>& newest) {
    if (num_tokens.size() != streams.size() || newest.size() != streams.size())
        throw std::invalid_argument("follow: a number of tokens and the newest of them a stream");
    for (size_t i = 0; i < streams.size(); ++i) index.follow(streams[i], num_tokens[i], newest[i]);
}

std::vector<SuffixDraft> draft_streams(SuffixIndex& index, const std::vector<int64_t>& streams,
                                       const std::vector<int>& max_nodes, double min_prob,
                                       double factor, double offset, double unseen) {
    if (max_nodes.size() != streams.size())
        throw std::invalid_argument("draft: max_nodes a stream");
    std::vector<SuffixDraft> drafts;
    for (size_t i = 0; i < streams.size(); ++i)
        drafts.push_back(index.draft(streams[i], {max_nodes[i], min_prob, factor, offset, unseen}));
    return drafts;
}

std::vector<int64_t> num_tokens_of(SuffixIndex& index, const std::vector<int64_t>& streams) {
    std::vector<int64_t> lengths;
    for (int64_t stream : streams) lengths.push_back(index.num_tokens(stream));
    return lengths;
}

}  // namespace

void bind_drafts(py::module_& m) {
    py::class_<DraftColumns, std::shared_ptr<DraftColumns>>(m, "DraftColumns")
        .def(py::init(&columns_of_python), py::arg("tokens"), py::arg("parents"),
             py::arg("probabilities"))
        .def("__len__", &DraftColumns::size)
        .def_property_readonly("tokens", [](const DraftColumns& d) { return as_array(d.tokens); })
        .def_property_readonly("parents", [](const DraftColumns& d) { return as_array(d.parents); })
        .def_property_readonly("probabilities",
                               [](const DraftColumns& d) { return as_array(d.probabilities); })
        .def_property_readonly("depths", &depths_of)
        .def_property_readonly("masks", &masks_of)
        .def_property_readonly("path_probabilities", &path_probabilities_of)
        .def("follow", &follow)
        .def("keep", &keep)
        .def("cut", &cut);
    m.def("highest_token", &highest_token);
    m.def("step_rows", &step_rows);
    m.def("draw_depths", &draw_depths);
    m.def("walk_drafts", &walk_drafts);
    m.def("judge_drafts", &judge_drafts);
    m.attr("PROBABILITY_BINS") = kProbabilityBins;
    m.def("choose_drafts", &choose_drafts, py::arg("drafts"), py::arg("factors"),
          py::arg("seconds"), py::arg("plain"), py::arg("per_token"), py::arg("proposing"),
          py::arg("least_gain"), py::arg("otherwise"));

    m.def("draft_products", &draft_products, py::arg("p"), py::arg("num_levels"), py::arg("keys"),
          py::arg("positions"), py::arg("greedy"), py::arg("max_nodes"), py::arg("min_prob"),
          py::arg("num_guesses"));
    py::class_<DraftBranch>(m, "DraftBranch")
        .def(py::init([](BlockTable& table, std::vector<int64_t> pending, float temperature,
                         int32_t top_k, float top_p, float min_p, uint64_t key, int max_depth,
                         int position, std::optional<FloatArray> features) {
                 if (pending.empty())
                     throw std::invalid_argument("DraftBranch: there is no pending token");
                 if (position < 0)
                     throw std::invalid_argument("DraftBranch: position must be 0 or more, got " +
                                                 std::to_string(position));
                 std::vector<float> values;
                 if (features) values.assign(features->data(), features->data() + features->size());
                 return DraftBranch{&table,      std::move(pending),
                                    position,    std::move(values),
                                    temperature, top_k,
                                    top_p,       min_p,
                                    key,         max_depth};
             }),
             py::keep_alive<1, 2>(), py::arg("table"), py::arg("pending"), py::arg("temperature"),
             py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("key"),
             py::arg("max_depth"), py::arg("position"), py::arg("features") = py::none());

    m.def("draft_combs", &combs_of_python);

    py::class_<SuffixDraft, DraftColumns, std::shared_ptr<SuffixDraft>>(m, "SuffixDraft")
        .def_property_readonly("counts", [](const SuffixDraft& d) { return as_array(d.counts); })
        .def_readonly("match_length", &SuffixDraft::match_length);
    py::class_<SuffixIndex>(m, "SuffixIndex", "What followed the same tokens before.")
        .def(py::init<int, std::vector<int>, int>(), py::arg("max_tokens"),
             py::arg("context_lengths"), py::arg("max_continuations"))
        .def("open", &SuffixIndex::open)
        .def("fork", &SuffixIndex::fork, py::arg("stream"), py::arg("num_tokens"))
        .def("follow", &follow_streams, py::arg("streams"), py::arg("num_tokens"),
             py::arg("newest"))
        .def("release", &SuffixIndex::release, py::arg("stream"))
        .def("draft", &draft_streams, py::arg("streams"), py::arg("max_nodes"), py::arg("min_prob"),
             py::arg("factor"), py::arg("offset"), py::arg("unseen"))
        .def("num_tokens", &num_tokens_of, py::arg("streams"))
        .def_property_readonly("num_stored", &SuffixIndex::num_stored)
        .def_property_readonly("num_streams", &SuffixIndex::num_streams)
        .def_property_readonly("num_bytes", &SuffixIndex::num_bytes);
}
