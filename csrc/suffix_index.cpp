#include "suffix_index.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "check.h"
#include "split_mix.h"

namespace {

void check_prefix(int64_t length, int64_t num_tokens) {
    if (num_tokens < 0 || num_tokens > length)
        throw std::invalid_argument("a stream of " + std::to_string(length) +
                                    " tokens has no prefix of " + std::to_string(num_tokens));
}

}  // namespace

SuffixIndex::SuffixIndex(int max_tokens, std::vector<int> context_lengths, int max_continuations)
    : max_tokens_(max_tokens),
      context_lengths_(std::move(context_lengths)),
      max_continuations_(max_continuations),
      grower_(max_continuations) {
    check(max_tokens > 0, "max_tokens must be positive", max_tokens);
    check(max_continuations > 0, "max_continuations must be positive", max_continuations);
    check(!context_lengths_.empty(), "there must be context lengths", 0);
    int last = 0;
    for (int length : context_lengths_) {
        check(length > last, "context_lengths must be positive and rise", length);
        last = length;
    }
    check(last <= 1024, "a context may have 1024 tokens", last);
    // Contexts are numbered by int32.
    check(max_tokens_ <= std::numeric_limits<int32_t>::max() / context_lengths_.size(),
          "max_tokens is too large for so many context lengths", max_tokens);
    for (int i = 0; i < last; ++i) multipliers_.push_back(split_mix(i + 1) | 1);
}

// ---- streams ----

SuffixIndex::Stream& SuffixIndex::stream(int64_t id) {
    auto found = streams_.find(id);
    if (found == streams_.end())
        throw std::invalid_argument("stream " + std::to_string(id) + " is not open");
    return found->second;
}

int64_t SuffixIndex::open() {
    streams_[next_stream_];
    return next_stream_++;
}

int64_t SuffixIndex::fork(int64_t id, int64_t num_tokens) {
    Stream child = stream(id);
    check_prefix(child.num_tokens, num_tokens);
    int node = node_of(child);
    if (num_tokens == child.num_tokens) {
        if (node >= 0) ++nodes_[node].num_ends;
    } else {
        for (int64_t i = child.num_tokens; i > num_tokens && node >= 0; --i)
            node = nodes_[node].parent;
        child.num_tokens = num_tokens;
        end_at(child, node);
    }
    streams_[next_stream_] = std::move(child);
    return next_stream_++;
}

void SuffixIndex::follow(int64_t id, int64_t num_tokens, const std::vector<int64_t>& newest) {
    Stream& moved = stream(id);
    int64_t missing = num_tokens - moved.num_tokens;
    if (missing <= 0) {
        check_prefix(moved.num_tokens, num_tokens);
        if (missing < 0) truncate(moved, num_tokens);
        return;
    }
    auto given = static_cast<int64_t>(newest.size());
    if (missing > given)
        throw std::invalid_argument("a stream of " + std::to_string(moved.num_tokens) +
                                    " tokens does not grow to " + std::to_string(num_tokens) +
                                    " with " + std::to_string(given));
    auto first = newest.end() - missing;
    std::for_each(first, newest.end(), [](int64_t token) {
        check(token >= 0 && token <= std::numeric_limits<int32_t>::max(),
              "a token must be from 0 to 2^31 - 1", token);
    });
    for (; first != newest.end(); ++first) push(moved, static_cast<int32_t>(*first));
}

void SuffixIndex::push(Stream& grown, int32_t token) {
    int node = add_node();  // which may take the place of the stream's own end
    int parent = node_of(grown);
    SuffixNode added{token, parent, -1, -1, -1, 1, 0};
    if (parent >= 0) {
        SuffixNode& above = nodes_[parent];
        if (above.newest_child < 0)
            add_contexts(parent, grown.keys);
        else
            nodes_[above.newest_child].newer_sibling = node;
        added.older_sibling = above.newest_child;
        above.newest_child = node;
        --above.num_ends;
    }
    nodes_[node] = added;
    ++num_stored_;
    grown.end = num_added_ - 1;
    ++grown.num_tokens;
    std::vector<int32_t>& recent = grown.recent;
    size_t length = multipliers_.size();
    if (recent.size() == 2 * length) recent.erase(recent.begin(), recent.end() - (length - 1));
    recent.push_back(token);
    hash_contexts(grown);
}

void SuffixIndex::truncate(Stream& cut, int64_t num_tokens) {
    int node = node_of(cut);
    if (node >= 0) --nodes_[node].num_ends;
    for (int64_t i = cut.num_tokens; i > num_tokens && node >= 0; --i) {
        int above = nodes_[node].parent;
        if (nodes_[node].num_ends == 0 && nodes_[node].newest_child < 0) remove(node);
        node = above;
    }
    cut.num_tokens = num_tokens;
    end_at(cut, node);
}

void SuffixIndex::release(int64_t id) {
    stream(id);
    streams_.erase(id);
}

int SuffixIndex::node_of(const Stream& of) const {
    auto max_tokens = static_cast<int64_t>(max_tokens_);
    if (of.end < 0 || of.end + max_tokens < num_added_) return -1;
    return static_cast<int>(of.end % max_tokens);
}

void SuffixIndex::end_at(Stream& moved, int node) {
    moved.recent.clear();
    moved.keys.clear();
    moved.end = -1;
    if (node < 0) return;
    ++nodes_[node].num_ends;
    auto max_tokens = static_cast<int64_t>(max_tokens_);
    int64_t last = num_added_ - 1;
    moved.end = last - (last - node) % max_tokens;
    for (; node >= 0 && moved.recent.size() < multipliers_.size(); node = nodes_[node].parent)
        moved.recent.push_back(nodes_[node].token);
    std::reverse(moved.recent.begin(), moved.recent.end());
    hash_contexts(moved);
}

// ---- nodes ----

int SuffixIndex::add_node() {
    size_t node = num_added_++ % max_tokens_;
    if (node < nodes_.size()) {
        evict(static_cast<int>(node));
        return static_cast<int>(node);
    }
    if (nodes_.size() == nodes_.capacity()) {
        size_t room = std::min(max_tokens_, std::max<size_t>(64, 2 * nodes_.size()));
        nodes_.reserve(room);
        links_.reserve(room * context_lengths_.size());
    }
    nodes_.emplace_back();
    links_.resize(links_.size() + context_lengths_.size());
    return static_cast<int>(node);
}

void SuffixIndex::leave_siblings(int node) {
    const SuffixNode left = nodes_[node];
    if (left.older_sibling >= 0) nodes_[left.older_sibling].newer_sibling = left.newer_sibling;
    if (left.newer_sibling >= 0)
        nodes_[left.newer_sibling].older_sibling = left.older_sibling;
    else if (left.parent >= 0)
        nodes_[left.parent].newest_child = left.older_sibling;
    if (left.parent >= 0 && nodes_[left.parent].newest_child < 0) leave_contexts(left.parent);
}

void SuffixIndex::remove(int node) {
    leave_siblings(node);
    nodes_[node].token = -1;
    --num_stored_;
}

void SuffixIndex::evict(int node) {
    if (nodes_[node].token < 0) return;
    leave_contexts(node);
    for (int child = nodes_[node].newest_child; child >= 0; child = nodes_[child].older_sibling)
        nodes_[child].parent = -1;
    remove(node);
}

// ---- contexts ----

// keys[i] = split_mix(Σ_j (token_j + 1) m_j), j < context_lengths[i], token_0 the last one
void SuffixIndex::hash_contexts(Stream& hashed) const {
    hashed.keys.clear();
    int num_recent = static_cast<int>(hashed.recent.size());
    const int32_t* end = hashed.recent.data() + num_recent;
    uint64_t sum = 0;
    int j = 0;
    for (int length : context_lengths_) {
        if (length > num_recent) return;
        for (; j < length; ++j) sum += (static_cast<uint64_t>(end[-1 - j]) + 1) * multipliers_[j];
        uint64_t key = split_mix(sum ^ static_cast<uint64_t>(length) << 48);
        hashed.keys.push_back(key);
        // What is hashed now is looked for by the next call.
        grams_.prefetch_bucket(key);
    }
}

void SuffixIndex::add_contexts(int node, const std::vector<uint64_t>& keys) {
    nodes_[node].num_contexts = static_cast<int32_t>(keys.size());
    // The first in a bucket is mostly the right one, and all are on their way before one is read.
    for (uint64_t key : keys) grams_.prefetch_first(key);
    size_t stride = context_lengths_.size();
    for (size_t i = 0; i < keys.size(); ++i) {
        int gram = grams_.find(keys[i]);
        if (gram < 0) gram = grams_.add(keys[i]);
        int32_t& newest = grams_.newest(gram);
        links_[node * stride + i] = {newest, ~gram};
        if (newest >= 0) links_[newest * stride + i].newer = node;
        newest = node;
    }
}

void SuffixIndex::leave_contexts(int node) {
    size_t stride = context_lengths_.size();
    for (int i = 0; i < nodes_[node].num_contexts; ++i) {
        auto [older, newer] = links_[node * stride + i];
        if (older >= 0) links_[older * stride + i].newer = newer;
        if (newer >= 0)
            links_[newer * stride + i].older = older;
        else if (older >= 0)
            grams_.newest(~newer) = older;
        else
            grams_.remove(~newer);
    }
    nodes_[node].num_contexts = 0;
}

int64_t SuffixIndex::num_bytes() const {
    return nodes_.capacity() * sizeof(SuffixNode) + links_.capacity() * sizeof(Link) +
           grams_.num_bytes();
}

// ---- drafts ----

SuffixDraft SuffixIndex::draft(int64_t id, const DraftLimits& limits) {
    limits.check();
    const std::vector<uint64_t>& keys = stream(id).keys;
    size_t stride = context_lengths_.size();
    best_.clear();
    for (size_t i = keys.size(); i-- > 0;) {
        int gram = grams_.find(keys[i]);
        if (gram < 0) continue;
        int max_depth = limits.max_depth(context_lengths_[i]);
        if (max_depth == 0) break;
        occurrences_.clear();
        for (int node = grams_.newest(gram); node >= 0 && occurrences_.size() < max_continuations_;
             node = links_[node * stride + i].older)
            occurrences_.push_back(node);
        bool is_full =
            grower_.grow(nodes_, occurrences_, context_lengths_[i], max_depth, limits, tree_);
        if (tree_.score > best_.score) std::swap(best_, tree_);
        if (is_full) break;  // a shorter context is not better known
    }
    return best_;
}
