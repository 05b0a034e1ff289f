// A tree of tokens that may come next, from places of a forest where the same was seen before
// (Oliaro et al. 2024, SuffixDecoding).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "draft_tree.h"

// A token of the forest. Siblings are a list, the one that was added last in front.
struct SuffixNode {
    int32_t token;  // -1: nothing is stored here
    int32_t parent;
    int32_t newest_child, older_sibling, newer_sibling;
    int32_t num_ends;      // streams that end here or were released here
    int32_t num_contexts;  // lists that hold it, those of the first context lengths
};

// A token that may come behind node `parent` of its draft, or right behind the sequence where that
// is -1. Of `total` continuations of its parent's path, which have `distinct` tokens, `count` have
// this one. What follows few or short contexts is often something new:
//
//     probability = count / (total + unseen * distinct / sqrt(length)),
//
// where the last `length` tokens before it are known to be the same. With unseen = 0 these are the
// paper's frequencies; with 1 and without the root, the estimate of Witten and Bell 1991 (PPM's
// method C).
struct SuffixDraftNode {
    int32_t token, parent, count;
    double probability;
};

// Siblings stand in order: the most probable first, then the lowest token.
struct SuffixDraft : DraftColumns {
    std::vector<int32_t> counts;  // [num_nodes]
    int match_length = 0;         // tokens at the sequence's end that were found again
    // Tokens that are expected to be right: the sum over its nodes of the product of probabilities
    // on the path.
    double score = 0;

    void clear() {
        DraftColumns::clear();
        counts.clear();
        match_length = 0;
        score = 0;
    }
};

struct DraftLimits {
    int max_nodes;
    double min_prob;        // of a node's path
    double factor, offset;  // at most factor * match_length + offset tokens behind each other
    double unseen;          // 0: probabilities are frequencies

    void check() const;                     // throws std::invalid_argument
    int max_depth(int match_length) const;  // 0: there can be no nodes
};

// Grows drafts, one after the other, in memory that it keeps.
class SuffixDraftGrower {
  public:
    // max_continuations: how many a node's counts are taken from, those of the occurrences that
    // were continued last.
    explicit SuffixDraftGrower(int max_continuations) : max_continuations_(max_continuations) {}

    // occurrences: nodes of the forest behind which the sequence may go on, at most
    // max_continuations, the one that was continued last in front; the last `match_length` tokens
    // are the same. -> Whether they have max_continuations.
    //
    // The most probable paths come first, equal ones as they were found. A draft ends where the
    // sequences end that it follows.
    bool grow(const std::vector<SuffixNode>& forest, const std::vector<int32_t>& occurrences,
              int match_length, int max_depth, const DraftLimits& limits, SuffixDraft& draft);

  private:
    // A node that the draft may get.
    struct Candidate {
        SuffixDraftNode node;
        double path_probability;
        int32_t depth;
        int32_t begin;  // of its node.count occurrences in occurrences_; -1: it is left out
    };
    struct Slot {
        int32_t token, group;
        uint32_t round;  // of another one: the slot is free
    };

    void find_children(const std::vector<SuffixNode>& forest, const Candidate& parent);
    void group_children(const std::vector<SuffixNode>& forest);
    int32_t group_of(int32_t token);
    void add_candidates(const std::vector<SuffixNode>& forest, const Candidate& parent, int number,
                        int length, const DraftLimits& limits);

    size_t max_continuations_;

    // Used by one call.
    std::vector<Candidate> candidates_, groups_;
    std::vector<int32_t> heap_, occurrences_, children_;
    std::vector<int32_t> group_of_;  // [children]
    std::vector<int32_t> kept_;      // groups
    std::vector<Slot> slots_;
    uint32_t round_ = 0;
};
