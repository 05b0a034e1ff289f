#include "cpu_ops.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "thread_pool.h"

namespace {

// Work worth waking other threads for, in floats touched.
constexpr int64_t kParallelFloats = 1 << 15;
constexpr int kRowsPerTask = 8;
// Looking at a logit takes as long as touching so many floats.
constexpr int64_t kLogitWork = 4;
// Query rows of one attention task: enough to pay for fetching a block, few enough for the cache.
constexpr int kMinQueryRows = 24, kMaxQueryRows = 128;

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    switch (isa) {
        case Isa::scalar:
            return true;
        case Isa::avx2:
            return avx2;
        case Isa::avx512:
            return avx512;
        case Isa::avx512_vnni:
            return avx512 && __builtin_cpu_supports("avx512vnni");
    }
#endif
    return isa == Isa::scalar;
}

struct NamedTable {
    const char* name;
    Isa isa;
    const KernelTable* (*table)();
};
constexpr NamedTable kTables[] = {{"scalar", Isa::scalar, scalar_kernels},
                                  {"avx2", Isa::avx2, avx2_kernels},
                                  {"avx512", Isa::avx512, avx512_kernels},
                                  {"avx512_vnni", Isa::avx512_vnni, avx512_vnni_kernels}};

constexpr int kRooflineRepeats = 100000, kRooflineRounds = 5;

// The best of some rounds: `body(thread)` returns what it did, all together in `unit` a second.
template <class Body>
double best_rate(const Body& body) {
    double best = 0;
    int threads = thread_pool().num_threads();
    for (int round = 0; round < kRooflineRounds; ++round) {
        std::vector<double> done(threads);
        auto start = std::chrono::steady_clock::now();
        thread_pool().parallel_for(threads, [&](int task, int) { done[task] = body(task); });
        std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, std::accumulate(done.begin(), done.end(), 0.0) / seconds.count());
    }
    return best;
}

template <class Body>
void for_rows(int num_rows, int64_t floats_per_row, const Body& body) {
    if (num_rows * floats_per_row < kParallelFloats) return body(0, num_rows);
    thread_pool().parallel_for((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int task, int) {
        int begin = task * kRowsPerTask;
        body(begin, std::min(num_rows, begin + kRowsPerTask));
    });
}

// The same row by row: of logits, which have many columns. body(row, thread)
template <class Body>
void for_each_row(int num_rows, int64_t floats_per_row, const Body& body) {
    if (num_rows * floats_per_row >= kParallelFloats)
        return thread_pool().parallel_for(num_rows, body);
    for (int row = 0; row < num_rows; ++row) body(row, 0);
}

// Rows of an attention task. Few tasks fetch each block few times; but they must also be enough for
// the threads, and come out even where they are few.
int rows_per_task(int rows, int group, int num_kv_heads, int threads) {
    int most = std::max(1, kMaxQueryRows / group), least = (kMinQueryRows + group - 1) / group;
    int chunks = (rows + most - 1) / most;
    auto balanced = [&] {
        int tasks = chunks * num_kv_heads;
        return tasks % threads == 0 || tasks >= 4 * threads;
    };
    while (!balanced() && (rows + chunks) / (chunks + 1) >= least) ++chunks;
    return (rows + chunks - 1) / chunks;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    // The processor is asked first: a function that makes a table is compiled for its instructions.
    for (const NamedTable& t : kTables)
        if (cpu_has(t.isa) && t.table()) names.push_back(t.name);
    return names;
}

CpuOps::CpuOps(const std::string& isa) {
    std::vector<std::string> names = available_isas();
    isa_ = isa == "best" ? names.back() : isa;
    std::string known;
    for (const NamedTable& t : kTables) {
        known += std::string(", ") + t.name;
        if (isa_ != t.name) continue;
        if (std::find(names.begin(), names.end(), isa_) == names.end())
            throw std::invalid_argument("this machine can't run the " + isa_ + " kernels");
        table_ = t.table();
        return;
    }
    throw std::invalid_argument("isa must be one of best" + known + "; got " + isa);
}

void CpuOps::linear(const float* x, int64_t x_stride, const PackedWeight& w, const float* bias,
                    float* y, int64_t y_stride, int num_rows) {
    if (is_quantized(w.type())) {
        quantized_linear(x, x_stride, w, bias, y, y_stride, num_rows);
        return;
    }
    LinearArgs args{{num_rows, w.in_features(), w.out_features()},
                    x,
                    x_stride,
                    w.data(),
                    w.type(),
                    bias,
                    y,
                    y_stride};
    thread_pool().parallel_for(args.num_tasks(),
                               [&](int task, int) { table_->linear(args, task); });
}

void CpuOps::quantized_linear(const float* x, int64_t x_stride, const PackedWeight& w,
                              const float* bias, float* y, int64_t y_stride, int num_rows) {
    std::lock_guard<std::mutex> lock(scratch_mutex_);
    QuantizedLinearArgs args{
        {num_rows, w.in_features(), w.out_features()}, {}, w.data(), w.type(), bias, y, y_stride};
    size_t groups = static_cast<size_t>(num_rows) * args.num_groups();
    if (offsets_.size() < groups) {
        values_.resize(groups * kGroupSize);
        scales_.resize(2 * groups);
        offsets_.resize(groups);
    }
    args.x = {values_.data(), scales_.data(), scales_.data() + groups, offsets_.data()};
    for_rows(num_rows, w.in_features(), [&](int begin, int end) {
        table_->quantize_rows(x, x_stride, w.in_features(), args.x, begin, end);
    });
    thread_pool().parallel_for(args.num_tasks(),
                               [&](int task, int) { table_->quantized_linear(args, task); });
}

void CpuOps::attention(AttentionArgs args, const AttentionPlan& plan, int begin, int end) const {
    args.entries = plan.entries.data();
    args.nodes = plan.nodes.data();
    args.num_nodes = static_cast<int>(plan.nodes.size());
    args.num_visible = plan.num_visible.data();
    args.positions = plan.positions.data();
    args.draft_mask = plan.draft_mask.empty() ? nullptr : plan.draft_mask.data();
    args.draft_begin = plan.draft_begin.data();
    args.rotation_cos = plan.rotation_cos.data();
    args.rotation_sin = plan.rotation_sin.data();
    int rows = end - begin, group = args.num_heads / args.num_kv_heads;
    if (rows == 0) return;
    int chunk = rows_per_task(rows, group, args.num_kv_heads, thread_pool().num_threads());
    int chunks = (rows + chunk - 1) / chunk;
    size_t scratch_floats = attention_scratch_floats(chunk * group, args.head_dim);
    thread_pool().parallel_for(chunks * args.num_kv_heads, [&](int task, int) {
        static thread_local std::vector<float> scratch;
        // Threads work on the chunks of one head together, so that its blocks come from memory
        // once. Later rows of a long prompt see more keys: they go first.
        int row_begin = begin + (chunks - 1 - task % chunks) * chunk;
        int row_end = std::min(end, row_begin + chunk);
        if (scratch.size() < scratch_floats) scratch.resize(scratch_floats);
        table_->attention(args, {task / chunks, row_begin, row_end}, scratch.data());
    });
}

void CpuOps::rms_norm(const float* x, int64_t x_stride, float* residual, const float* weight,
                      float eps, float* out, int num_rows, int num_columns) const {
    for_rows(num_rows, num_columns, [&](int begin, int end) {
        table_->rms_norm(x, x_stride, residual, weight, eps, out, num_columns, begin, end);
    });
}

void CpuOps::silu_mul(const float* x, int64_t x_stride, float* out, int num_rows,
                      int num_columns) const {
    for_rows(num_rows, 4 * static_cast<int64_t>(num_columns), [&](int begin, int end) {
        table_->silu_mul(x, x_stride, out, num_columns, begin, end);
    });
}

void CpuOps::rope(const RopeArgs& args, int num_rows) const {
    for_rows(num_rows, static_cast<int64_t>(args.num_heads) * args.head_dim,
             [&](int begin, int end) { table_->rope(args, begin, end); });
}

void CpuOps::kv_store(const KvStoreArgs& args, int num_rows) const {
    for_rows(num_rows, 4 * static_cast<int64_t>(args.num_kv_heads) * args.head_dim,
             [&](int begin, int end) { table_->kv_store(args, begin, end); });
}

void CpuOps::logit_stats(const LogitStatsArgs& args, int num_rows) const {
    for_each_row(num_rows, kLogitWork * args.vocab_size,
                 [&](int row, int) { table_->logit_stats(args, row); });
}

void CpuOps::mask_logits(const MaskLogitsArgs& args, int num_rows) const {
    for_each_row(num_rows, args.vocab_size, [&](int row, int) { table_->mask_logits(args, row); });
}

void CpuOps::top_logits(const TopLogitsArgs& args, int num_rows) const {
    for_each_row(num_rows, kLogitWork * args.vocab_size,
                 [&](int row, int) { top_row(*table_, args, row); });
}

void CpuOps::sample(const SampleArgs& args, int num_rows) {
    std::lock_guard<std::mutex> lock(scratch_mutex_);
    sample_scratch_.resize(thread_pool().num_threads());
    for_each_row(num_rows, kLogitWork * args.vocab_size, [&](int row, int thread) {
        sample_row(*table_, args, row, sample_scratch_[thread]);
    });
}

void CpuOps::probabilities(const ProbabilityArgs& args, int num_rows) {
    std::lock_guard<std::mutex> lock(scratch_mutex_);
    sample_scratch_.resize(thread_pool().num_threads());
    for_each_row(num_rows, kLogitWork * args.vocab_size, [&](int row, int thread) {
        probabilities_row(*table_, args, row, sample_scratch_[thread]);
    });
}

void CpuOps::verify_greedy(const DraftArgs& args, const int64_t* argmax) const {
    for (int branch = 0; branch < args.num_branches; ++branch) accept_greedy(args, argmax, branch);
}

void CpuOps::verify_tree(const DraftArgs& args) const {
    thread_pool().parallel_for(args.num_branches,
                               [&](int branch, int) { accept_tree(*table_, args, branch); });
}

void CpuOps::verify_traversal(const DraftArgs& args) const {
    thread_pool().parallel_for(args.num_branches,
                               [&](int branch, int) { accept_traversal(*table_, args, branch); });
}

void CpuOps::verify_typical(const DraftArgs& args, double epsilon, double alpha) const {
    thread_pool().parallel_for(args.num_branches, [&](int branch, int) {
        accept_typical(*table_, args, epsilon, alpha, branch);
    });
}

double CpuOps::float_roofline() const {
    std::vector<float> sink(thread_pool().num_threads());
    return best_rate([&](int t) { return table_->float_roofline(kRooflineRepeats, &sink[t]); });
}

double CpuOps::int8_roofline() const {
    std::vector<float> sink(thread_pool().num_threads());
    return best_rate([&](int t) { return table_->int8_roofline(kRooflineRepeats, &sink[t]); });
}

double CpuOps::read_bandwidth(Arena& arena, int64_t num_bytes) const {
    std::shared_ptr<uint8_t> memory = arena.allocate(num_bytes);
    std::memset(memory.get(), 0, num_bytes);
    int threads = thread_pool().num_threads();
    int64_t share = num_bytes / threads / 64 * 16;  // floats of a thread, whole lines
    std::vector<float> sink(threads);
    return best_rate([&](int t) {
        const float* x = reinterpret_cast<const float*>(memory.get()) + t * share;
        // In pieces that a count of 32 bits holds.
        for (int64_t i = 0; i < share; i += 1 << 20)
            sink[t] +=
                table_->row_max(x + i, static_cast<int>(std::min<int64_t>(1 << 20, share - i)));
        return 4.0 * share;
    });
}
