#include "suffix_draft.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "split_mix.h"

void DraftLimits::check() const {
    ::check(max_nodes >= 0 && max_nodes <= kMaxDraftNodes, "max_nodes must be from 0 to 63",
            max_nodes);
    ::check(min_prob >= 0 && min_prob <= 1, "min_prob must be from 0 to 1", min_prob);
    ::check(factor >= 0 && std::isfinite(factor), "factor must be 0 or more", factor);
    ::check(std::isfinite(offset), "offset must be finite", offset);
    ::check(unseen >= 0 && std::isfinite(unseen), "unseen must be 0 or more", unseen);
}

int DraftLimits::max_depth(int match_length) const {
    double depth = std::floor(factor * match_length + offset);
    return static_cast<int>(std::clamp(depth, 0.0, static_cast<double>(max_nodes)));
}

bool SuffixDraftGrower::grow(const std::vector<SuffixNode>& forest,
                             const std::vector<int32_t>& occurrences, int match_length,
                             int max_depth, const DraftLimits& limits, SuffixDraft& draft) {
    // Which index is later in the heap; equal paths stay as they were found.
    auto after = [&](int a, int b) {
        double pa = candidates_[a].path_probability, pb = candidates_[b].path_probability;
        return pa != pb ? pa < pb : a > b;
    };
    draft.clear();
    draft.match_length = match_length;
    candidates_.clear();
    heap_.clear();
    occurrences_ = occurrences;
    auto num_occurrences = static_cast<int32_t>(occurrences.size());
    add_candidates(forest, {{-1, -1, num_occurrences, 1}, 1, 0, 0}, -1, match_length, limits);
    bool is_full = children_.size() == max_continuations_;
    for (size_t next = 0;;) {
        for (; next < candidates_.size(); ++next) {
            heap_.push_back(static_cast<int32_t>(next));
            std::push_heap(heap_.begin(), heap_.end(), after);
        }
        if (heap_.empty()) break;
        std::pop_heap(heap_.begin(), heap_.end(), after);
        const Candidate best = candidates_[heap_.back()];
        heap_.pop_back();
        draft.add(best.node.token, best.node.parent, best.node.probability);
        draft.counts.push_back(best.node.count);
        draft.score += best.path_probability;
        int num_nodes = draft.size();
        if (num_nodes == limits.max_nodes) break;
        if (best.depth < max_depth)
            add_candidates(forest, best, num_nodes - 1, match_length + best.depth, limits);
    }
    return is_full;
}

// children_: what followed the occurrences of `parent`, the newest first.
void SuffixDraftGrower::find_children(const std::vector<SuffixNode>& forest,
                                      const Candidate& parent) {
    children_.clear();
    for (int i = parent.begin; i < parent.begin + parent.node.count; ++i)
        for (int child = forest[occurrences_[i]].newest_child;
             child >= 0 && children_.size() < max_continuations_;
             child = forest[child].older_sibling)
            children_.push_back(child);
}

// groups_: the tokens among children_ and their counts, as they are first seen.
void SuffixDraftGrower::group_children(const std::vector<SuffixNode>& forest) {
    groups_.clear();
    group_of_.clear();
    if (slots_.size() < 2 * children_.size() || ++round_ == 0) {
        size_t num_slots = 64;
        while (num_slots < 2 * children_.size()) num_slots *= 2;
        slots_.assign(num_slots, {0, 0, 0});
        round_ = 1;
    }
    int32_t last = -1;
    for (int child : children_) {
        int32_t token = forest[child].token;
        int32_t group = token == last ? group_of_.back() : group_of(token);
        last = token;
        group_of_.push_back(group);
        ++groups_[group].node.count;
    }
}

int32_t SuffixDraftGrower::group_of(int32_t token) {
    size_t place = split_mix(token) & (slots_.size() - 1);
    while (slots_[place].round == round_ && slots_[place].token != token)
        place = (place + 1) & (slots_.size() - 1);
    if (slots_[place].round != round_) {
        slots_[place] = {token, static_cast<int32_t>(groups_.size()), round_};
        groups_.push_back({{token, -1, 0, 0}, 0, 0, -1});
    }
    return slots_[place].group;
}

// The tokens behind `parent`, which is node `number` of the draft. `length`: see SuffixDraftNode.
void SuffixDraftGrower::add_candidates(const std::vector<SuffixNode>& forest,
                                       const Candidate& parent, int number, int length,
                                       const DraftLimits& limits) {
    find_children(forest, parent);
    if (children_.empty()) return;
    group_children(forest);
    double sum = children_.size() + limits.unseen * groups_.size() / std::sqrt(length);
    kept_.clear();
    for (size_t i = 0; i < groups_.size(); ++i) {
        Candidate& group = groups_[i];
        group.node.parent = number;
        group.node.probability = group.node.count / sum;
        group.path_probability = parent.path_probability * group.node.probability;
        group.depth = parent.depth + 1;
        if (group.path_probability >= limits.min_prob) kept_.push_back(static_cast<int32_t>(i));
    }
    std::sort(kept_.begin(), kept_.end(), [this](int a, int b) {
        const SuffixDraftNode &left = groups_[a].node, &right = groups_[b].node;
        return left.count != right.count ? left.count > right.count : left.token < right.token;
    });
    size_t end = occurrences_.size();
    for (int i : kept_) {
        groups_[i].begin = static_cast<int32_t>(end);
        candidates_.push_back(groups_[i]);
        end += groups_[i].node.count;
    }
    occurrences_.resize(end);
    for (size_t i = 0; i < children_.size(); ++i) {
        int32_t& place = groups_[group_of_[i]].begin;
        if (place >= 0) occurrences_[place++] = children_[i];
    }
}
