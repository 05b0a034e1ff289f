// The operations of the CPU backend: a kernel table, and loops over the thread pool.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "acceptance.h"
#include "attention_plan.h"
#include "kernel_table.h"
#include "packed_weight.h"
#include "sampler.h"

// Instruction sets that were compiled and that this machine has, the best one last.
std::vector<std::string> available_isas();

class CpuOps {
  public:
    // A name of available_isas(), or "best"; throws std::invalid_argument.
    explicit CpuOps(const std::string& isa);

    const std::string& isa() const { return isa_; }

    // y: [num_rows, out_features] = x w^T + bias
    void linear(const float* x, int64_t x_stride, const PackedWeight& w, const float* bias,
                float* y, int64_t y_stride, int num_rows);
    // Of rows [begin, end) of the plan.
    void attention(AttentionArgs args, const AttentionPlan& plan, int begin, int end) const;
    void rms_norm(const float* x, int64_t x_stride, float* residual, const float* weight, float eps,
                  float* out, int num_rows, int num_columns) const;
    void silu_mul(const float* x, int64_t x_stride, float* out, int num_rows,
                  int num_columns) const;
    void rope(const RopeArgs& args, int num_rows) const;
    void kv_store(const KvStoreArgs& args, int num_rows) const;
    void logit_stats(const LogitStatsArgs& args, int num_rows) const;
    void mask_logits(const MaskLogitsArgs& args, int num_rows) const;
    void top_logits(const TopLogitsArgs& args, int num_rows) const;
    void sample(const SampleArgs& args, int num_rows);
    void probabilities(const ProbabilityArgs& args, int num_rows);

    // Each decides about the drafts of all branches; see acceptance.h.
    void verify_greedy(const DraftArgs& args, const int64_t* argmax) const;
    void verify_tree(const DraftArgs& args) const;
    void verify_traversal(const DraftArgs& args) const;
    void verify_typical(const DraftArgs& args, double epsilon, double alpha) const;

    // The limits of this machine, on all threads of the pool: operations per second of fp32 and of
    // int8 products, and bytes per second of reading `num_bytes` of weights from memory.
    double float_roofline() const;
    double int8_roofline() const;
    double read_bandwidth(Arena& arena, int64_t num_bytes) const;

  private:
    void quantized_linear(const float* x, int64_t x_stride, const PackedWeight& w,
                          const float* bias, float* y, int64_t y_stride, int num_rows);

    std::string isa_;
    const KernelTable* table_;
    std::mutex scratch_mutex_;  // one call at a time uses what is below
    std::vector<SampleScratch> sample_scratch_;
    std::vector<int8_t> values_;
    std::vector<float> scales_;
    std::vector<int32_t> offsets_;
};
