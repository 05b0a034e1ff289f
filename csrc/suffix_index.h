// What followed the last tokens of a sequence wherever they were seen before, grown to a draft tree
// (Oliaro et al. 2024, SuffixDecoding).
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gram_table.h"
#include "suffix_draft.h"

// The tokens of many sequences ("streams"), each a path in one forest. A fork shares its prefix's
// nodes, and so a shared prefix counts once; tokens that two streams add by themselves count twice.
//
// A node that is followed by others is an occurrence of the contexts that end with it: its last k
// tokens, for each k of context_lengths. Every context (a "gram") has a list of its occurrences,
// the one that was continued last in front. Nothing is searched: adding a token takes one hash and
// one list entry per context length, whatever the tokens are.
//
// Memory: the forest holds the `max_tokens` tokens that were added last. The oldest token goes
// first, whoever's it is, and those behind it become the beginning of what is known. A stream that
// is released leaves its tokens until then; one that has lost all of its tokens to others goes on
// with its last context. Rolled back tokens keep their room until it is their turn.
class SuffixIndex {
  public:
    // context_lengths: rising. max_continuations: how many a node's counts are taken from, those
    // of the occurrences that were continued last.
    SuffixIndex(int max_tokens, std::vector<int> context_lengths, int max_continuations);

    // All functions throw std::invalid_argument where there is no such stream. To fork or truncate
    // takes as long as there are tokens behind the new end, everything else has its bounds.
    int64_t open();
    int64_t fork(int64_t stream, int64_t num_tokens);  // of its first `num_tokens` tokens
    // The stream has `num_tokens` tokens now, the last of them `newest`; as many as it lacks are
    // added. Where it had more, the others leave the index as far as no other stream has them, open
    // or released.
    void follow(int64_t stream, int64_t num_tokens, const std::vector<int64_t>& newest);
    void release(int64_t stream);

    // Grows a tree for each context length, from the longest context that was seen before to the
    // first with max_continuations of them, and keeps the one with the best score.
    SuffixDraft draft(int64_t stream, const DraftLimits& limits);

    int64_t num_tokens(int64_t id) { return stream(id).num_tokens; }  // of the whole stream
    int64_t num_stored() const { return num_stored_; }
    int64_t num_streams() const { return static_cast<int64_t>(streams_.size()); }
    int64_t num_bytes() const;

  private:
    // Neighbours in the list of one gram; `newer` is ~gram in front.
    struct Link {
        int32_t older, newer;
    };
    struct Stream {
        int64_t end = -1;  // number of its last node, counted from the first that was ever added
        int64_t num_tokens = 0;
        std::vector<int32_t> recent;  // its last tokens, as many as a context has and some more
        std::vector<uint64_t> keys;   // of its end's contexts, as many as it is long enough for
    };

    Stream& stream(int64_t id);
    int node_of(const Stream& stream) const;  // -1: none, or it is gone
    void end_at(Stream& stream, int node);
    void push(Stream& stream, int32_t token);
    void truncate(Stream& stream, int64_t num_tokens);
    int add_node();
    void remove(int node);
    void evict(int node);
    void leave_siblings(int node);
    void add_contexts(int node, const std::vector<uint64_t>& keys);
    void leave_contexts(int node);
    void hash_contexts(Stream& stream) const;

    size_t max_tokens_;
    std::vector<int> context_lengths_;
    size_t max_continuations_;
    std::vector<uint64_t> multipliers_;  // [longest context]

    std::vector<SuffixNode> nodes_;  // number n is at n % max_tokens
    std::vector<Link> links_;        // [nodes, context lengths]
    int64_t num_added_ = 0, num_stored_ = 0;
    GramTable grams_;
    std::unordered_map<int64_t, Stream> streams_;
    int64_t next_stream_ = 0;

    SuffixDraftGrower grower_;
    // Used by one call.
    std::vector<int32_t> occurrences_;
    SuffixDraft best_, tree_;
};
