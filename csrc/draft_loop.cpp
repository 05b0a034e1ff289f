#include "draft_loop.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "draft_guess.h"
#include "philox.h"

namespace {

class DraftLoop {
  public:
    DraftLoop(const DraftModel& model, const std::vector<DraftBranch>& branches, double min_prob,
              int num_siblings)
        : model_(model),
          branches_(branches),
          min_prob_(min_prob),
          num_siblings_(num_siblings),
          combs_(branches.size()),
          tips_(branches.size()),
          positions_(branches.size()) {}

    std::vector<DraftColumns> run() {
        std::vector<std::vector<int64_t>> next;
        for (size_t i = 0; i < branches_.size(); ++i) {
            positions_[i] = branches_[i].position;
            if (branches_[i].max_depth < 1) continue;
            active_.push_back(static_cast<int>(i));
            next.push_back(branches_[i].pending);
            features_.insert(features_.end(), branches_[i].features.begin(),
                             branches_[i].features.end());
        }
        if (!has_room(next)) throw std::length_error("draft_combs: the draft model's pool is full");
        while (!active_.empty() && has_room(next)) {
            draw(step(next));
            next.clear();
            features_.clear();
            std::vector<int> going;
            size_t hidden = model_.head.weight->in_features();
            for (size_t a = 0; a < active_.size(); ++a) {
                int i = active_[a];
                if (!grow(i, guesses_[a])) continue;
                going.push_back(i);
                next.push_back({guesses_[a].front().token});
                const float* feature = last_.data() + a * hidden;
                if (model_.decoder->has_fusion())
                    features_.insert(features_.end(), feature, feature + hidden);
            }
            active_.swap(going);
        }
        return std::move(combs_);
    }

  private:
    // The end of a chain.
    struct Tip {
        int node = -1, depth = 0;
        double path = 1.0;
    };

    // Adds a chain's next token, the first of the guesses, and its siblings -> whether it goes on.
    bool grow(int i, const std::vector<DraftGuess>& guesses) {
        DraftColumns& comb = combs_[i];
        Tip& tip = tips_[i];
        int parent = tip.node;
        double path = tip.path;
        if (guesses.empty() || path * guesses.front().probability < min_prob_) return false;
        tip = {static_cast<int>(comb.tokens.size()), tip.depth + 1,
               path * guesses.front().probability};
        for (const DraftGuess& guess : guesses) {
            if (path * guess.probability >= min_prob_)
                comb.add(guess.token, parent, guess.probability);
        }
        return tip.depth < branches_[i].max_depth;
    }

    bool has_room(const std::vector<std::vector<int64_t>>& tokens) const {
        int needed = 0;
        for (size_t a = 0; a < active_.size(); ++a) {
            const BlockTable& table = *branches_[active_[a]].table;
            int position = positions_[active_[a]];
            needed += table.blocks_needed(static_cast<int>(tokens[a].size()), position);
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
            int count = static_cast<int>(tokens[a].size()), first = positions_[active_[a]];
            for (int i = 0; i < count; ++i) positions.push_back(first + i);
            table.append(count, first, slots.data() + ids.size(), copies);
            positions_[active_[a]] += count;
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
        model_.decoder->forward(ids.data(), positions.data(), slots.data(), features_.data(), plan,
                                model_.cache, hidden_.data());
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
        guesses_.clear();
        GuessLimits limits{min_prob_, 1 + num_siblings_};
        for (int row = 0; row < rows; ++row) {
            const DraftBranch& b = branches_[active_[row]];
            const float* p = p_.data() + static_cast<size_t>(row) * vocabulary;
            bool greedy = b.temperature == 0.0f;
            guesses_.push_back(
                greedy ? likeliest_guesses(p, vocabulary, limits)
                       : lucky_guesses(p, vocabulary,
                                       philox_uniform(b.key, b.table->num_tokens(), 0), limits));
        }
    }

    const DraftModel& model_;
    const std::vector<DraftBranch>& branches_;
    double min_prob_;
    int num_siblings_;
    std::vector<DraftColumns> combs_;
    std::vector<Tip> tips_;
    std::vector<int> positions_, active_;
    std::vector<std::vector<DraftGuess>> guesses_;  // of the active branches
    std::vector<float> features_, hidden_, last_, logits_, p_;
};

}  // namespace

std::vector<DraftColumns> draft_combs(const DraftModel& model,
                                      const std::vector<DraftBranch>& branches, double min_prob,
                                      int num_siblings) {
    return DraftLoop(model, branches, min_prob, num_siblings).run();
}
