#include "draft_loop.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "philox.h"

namespace {

constexpr double kSpread = 0.05;

class DraftLoop {
  public:
    DraftLoop(const DraftModel& model, const std::vector<DraftBranch>& branches)
        : model_(model), branches_(branches), chains_(branches.size()) {}

    std::vector<DraftChain> run(double min_prob) {
        std::vector<std::vector<int64_t>> next;
        for (size_t i = 0; i < branches_.size(); ++i) {
            if (branches_[i].max_depth < 1) continue;
            active_.push_back(static_cast<int>(i));
            next.push_back(branches_[i].pending);
        }
        if (!has_room(next))
            throw std::length_error("draft_chains: the draft model's pool is full");
        std::vector<double> path(branches_.size(), 1.0);
        while (!active_.empty() && has_room(next)) {
            draw(step(next));
            next.clear();
            std::vector<int> going;
            for (int i : active_) {
                DraftChain& chain = chains_[i];
                path[i] *= chain.probabilities.back();
                if (chain.tokens.back() < 0 || path[i] < min_prob) {
                    chain.tokens.pop_back(), chain.probabilities.pop_back();
                } else if (static_cast<int>(chain.tokens.size()) < branches_[i].max_depth) {
                    going.push_back(i);
                    next.push_back({chain.tokens.back()});
                }
            }
            active_.swap(going);
        }
        return std::move(chains_);
    }

  private:
    bool has_room(const std::vector<std::vector<int64_t>>& tokens) const {
        int needed = 0;
        for (size_t a = 0; a < active_.size(); ++a) {
            const BlockTable& table = *branches_[active_[a]].table;
            needed += table.blocks_needed(static_cast<int>(tokens[a].size()), table.num_tokens());
        }
        return active_.empty() || needed <= branches_[active_[0]].table->pool().num_free();
    }

    // Appends tokens to the tables of the active branches -> logits behind the last of each.
    const float* step(const std::vector<std::vector<int64_t>>& tokens) {
        std::vector<int64_t> ids;
        std::vector<int32_t> counts, positions;
        std::vector<const BlockTable*> tables;
        std::vector<std::pair<int, int>> copies;
        size_t total = 0;
        for (const auto& list : tokens) total += list.size();
        std::vector<int64_t> slots(total);
        for (size_t a = 0; a < active_.size(); ++a) {
            BlockTable& table = *branches_[active_[a]].table;
            int count = static_cast<int>(tokens[a].size()), first = table.num_tokens();
            for (int i = 0; i < count; ++i) positions.push_back(first + i);
            table.append(count, first, slots.data() + ids.size(), copies);
            ids.insert(ids.end(), tokens[a].begin(), tokens[a].end());
            counts.push_back(count);
            tables.push_back(&table);
        }
        copy_blocks(copies);
        AttentionPlan plan =
            make_plan(tables, counts.data(), positions.data(), model_.inverse_frequencies,
                      model_.half_head_dim, nullptr, true);
        int hidden = model_.head.weight->in_features();
        hidden_.resize(ids.size() * hidden);
        model_.decoder->forward(ids.data(), positions.data(), slots.data(), plan, model_.cache,
                                hidden_.data());
        last_.resize(active_.size() * hidden);
        for (size_t a = 0, end = 0; a < active_.size(); ++a) {
            end += tokens[a].size();
            std::memcpy(last_.data() + a * hidden, hidden_.data() + (end - 1) * hidden,
                        hidden * sizeof(float));
        }
        int vocabulary = model_.head.weight->out_features();
        logits_.resize(active_.size() * static_cast<size_t>(vocabulary));
        model_.ops->linear(last_.data(), hidden, *model_.head.weight, model_.head.bias,
                           logits_.data(), vocabulary, static_cast<int>(active_.size()));
        return logits_.data();
    }

    void copy_blocks(const std::vector<std::pair<int, int>>& copies) const {
        const DecoderCache& cache = model_.cache;
        int64_t block_bytes = cache.plane_bytes / model_.num_blocks;
        for (const auto& [from, to] : copies)
            for (int plane = 0; plane < 2 * model_.num_layers; ++plane) {
                char* base = cache.storage + plane * cache.plane_bytes;
                std::memcpy(base + to * block_bytes, base + from * block_bytes, block_bytes);
            }
    }

    // A token for each active branch, and how probably the target draws it, too.
    void draw(const float* logits) {
        int rows = static_cast<int>(active_.size());
        int vocabulary = model_.head.weight->out_features();
        std::vector<float> temperature, top_p, min_p;
        std::vector<int32_t> top_k;
        for (int i : active_) {
            const DraftBranch& b = branches_[i];
            // Of a greedy branch the whole distribution is looked at.
            bool greedy = b.temperature == 0.0f;
            temperature.push_back(greedy ? 1.0f : b.temperature);
            top_k.push_back(greedy ? 0 : b.top_k);
            top_p.push_back(greedy ? 1.0f : b.top_p);
            min_p.push_back(greedy ? 0.0f : b.min_p);
        }
        p_.resize(static_cast<size_t>(rows) * vocabulary);
        ProbabilityArgs args{};
        args.logits = logits;
        args.logits_stride = vocabulary;
        args.vocab_size = vocabulary;
        args.temperature = temperature.data();
        args.top_k = top_k.data();
        args.top_p = top_p.data();
        args.min_p = min_p.data();
        args.p = p_.data();
        model_.ops->probabilities(args, rows);
        for (int row = 0; row < rows; ++row) {
            const DraftBranch& b = branches_[active_[row]];
            DraftChain& chain = chains_[active_[row]];
            const float* p = p_.data() + static_cast<size_t>(row) * vocabulary;
            int64_t token = -1;
            double probability = 0;
            if (b.temperature == 0.0f) {
                token = std::max_element(p, p + vocabulary) - p;
                probability = p[token];
            } else {
                uint64_t number = b.table->num_tokens();
                double u = philox_uniform(b.key, number, 0), reached = 0;
                for (int x = 0; x < vocabulary && token < 0; ++x) {
                    double before = reached;
                    reached += p[x];
                    if (reached <= u) continue;
                    token = x;
                    probability = 1 - std::exp(-std::min(u - before, reached - u) / kSpread);
                }
            }
            if (!std::isfinite(probability)) token = -1, probability = 0;
            chain.tokens.push_back(token);
            chain.probabilities.push_back(probability);
        }
    }

    const DraftModel& model_;
    const std::vector<DraftBranch>& branches_;
    std::vector<DraftChain> chains_;
    std::vector<int> active_;
    std::vector<float> hidden_, last_, logits_, p_;
};

}  // namespace

std::vector<DraftChain> draft_chains(const DraftModel& model,
                                     const std::vector<DraftBranch>& branches, double min_prob) {
    return DraftLoop(model, branches).run(min_prob);
}
