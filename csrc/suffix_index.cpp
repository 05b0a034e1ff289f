#include "suffix_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace {

constexpr int kMaxDraftNodes = 64;  // bits of an attention mask

// SplitMix64 (Steele, Lea, Flood 2014)
uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

void check(bool holds, const std::string& what, const std::string& value) {
    if (!holds) throw std::invalid_argument(what + ", got " + value);
}

}  // namespace

SuffixIndex::SuffixIndex(int max_tokens, std::vector<int> context_lengths, int max_continuations)
    : max_tokens_(max_tokens),
      context_lengths_(std::move(context_lengths)),
      max_continuations_(max_continuations) {
    check(max_tokens > 0, "max_tokens must be positive", std::to_string(max_tokens));
    check(max_continuations > 0, "max_continuations must be positive",
          std::to_string(max_continuations));
    check(!context_lengths_.empty(), "there must be a context length", "none");
    int last = 0;
    for (int length : context_lengths_) {
        check(length > last, "context_lengths must be positive and rise", std::to_string(length));
        last = length;
    }
    check(last <= 1024, "a context may have 1024 tokens", std::to_string(last));
    for (int i = 0; i < last; ++i) multipliers_.push_back(mix(i + 1) | 1);
    buckets_.assign(64, -1);
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
    check(num_tokens >= 0 && num_tokens <= child.num_tokens,
          "a stream of " + std::to_string(child.num_tokens) + " tokens has no such prefix",
          std::to_string(num_tokens));
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

void SuffixIndex::extend(int64_t id, const std::vector<int64_t>& tokens) {
    Stream& grown = stream(id);
    for (int64_t token : tokens)
        check(token >= 0 && token <= std::numeric_limits<int32_t>::max(),
              "a token must be from 0 to 2^31 - 1", std::to_string(token));
    for (int64_t token : tokens) push(grown, static_cast<int32_t>(token));
}

void SuffixIndex::push(Stream& grown, int32_t token) {
    int node = add_node();  // which may take the place of the stream's own end
    int parent = node_of(grown);
    Node added{token, parent, -1, -1, -1, 1, 0};
    if (parent >= 0) {
        Node& above = nodes_[parent];
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

void SuffixIndex::truncate(int64_t id, int64_t num_tokens) {
    Stream& cut = stream(id);
    check(num_tokens >= 0 && num_tokens <= cut.num_tokens,
          "a stream of " + std::to_string(cut.num_tokens) + " tokens has no such prefix",
          std::to_string(num_tokens));
    if (num_tokens == cut.num_tokens) return;
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
    const Node left = nodes_[node];
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

// keys[i] = mix(Σ_j (token_j + 1) m_j), j < context_lengths[i], token_0 the last one
void SuffixIndex::hash_contexts(Stream& hashed) const {
    hashed.keys.clear();
    int num_recent = static_cast<int>(hashed.recent.size());
    const int32_t* end = hashed.recent.data() + num_recent;
    uint64_t sum = 0;
    int j = 0;
    for (int length : context_lengths_) {
        if (length > num_recent) return;
        for (; j < length; ++j) sum += (static_cast<uint64_t>(end[-1 - j]) + 1) * multipliers_[j];
        uint64_t key = mix(sum ^ static_cast<uint64_t>(length) << 48);
        hashed.keys.push_back(key);
        // What is hashed now is looked for by the next call.
        __builtin_prefetch(&buckets_[key & (buckets_.size() - 1)]);
    }
}

void SuffixIndex::add_contexts(int node, const std::vector<uint64_t>& keys) {
    nodes_[node].num_contexts = static_cast<int32_t>(keys.size());
    // The first in a bucket is mostly the right one, and all are on their way before one is read.
    for (uint64_t key : keys) {
        int first = buckets_[key & (buckets_.size() - 1)];
        if (first >= 0) __builtin_prefetch(&grams_[first]);
    }
    size_t stride = context_lengths_.size();
    for (size_t i = 0; i < keys.size(); ++i) {
        int gram = find_gram(keys[i]);
        if (gram < 0) gram = add_gram(keys[i]);
        int32_t& newest = grams_[gram].newest;
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
            grams_[~newer].newest = older;
        else
            remove_gram(~newer);
    }
    nodes_[node].num_contexts = 0;
}

int SuffixIndex::find_gram(uint64_t key) const {
    int gram = buckets_[key & (buckets_.size() - 1)];
    while (gram >= 0 && grams_[gram].key != key) gram = grams_[gram].next;
    return gram;
}

int SuffixIndex::add_gram(uint64_t key) {
    int gram = free_gram_;
    if (gram >= 0) {
        free_gram_ = grams_[gram].next;
    } else {
        if (grams_.size() == buckets_.size()) rehash();
        gram = static_cast<int>(grams_.size());
        grams_.emplace_back();
    }
    int32_t& bucket = buckets_[key & (buckets_.size() - 1)];
    grams_[gram] = {key, -1, bucket};
    bucket = gram;
    return gram;
}

void SuffixIndex::remove_gram(int gram) {
    int32_t* place = &buckets_[grams_[gram].key & (buckets_.size() - 1)];
    while (*place != gram) place = &grams_[*place].next;
    *place = grams_[gram].next;
    grams_[gram].next = free_gram_;
    free_gram_ = gram;
}

// Called where no gram is free: all of grams_ are in use.
void SuffixIndex::rehash() {
    buckets_.assign(2 * buckets_.size(), -1);
    for (size_t gram = 0; gram < grams_.size(); ++gram) {
        int32_t& bucket = buckets_[grams_[gram].key & (buckets_.size() - 1)];
        grams_[gram].next = bucket;
        bucket = static_cast<int32_t>(gram);
    }
}

int64_t SuffixIndex::num_bytes() const {
    return nodes_.capacity() * sizeof(Node) + links_.capacity() * sizeof(Link) +
           grams_.capacity() * sizeof(Gram) + buckets_.capacity() * sizeof(int32_t);
}

// ---- drafts ----

SuffixDraft SuffixIndex::draft(int64_t id, const DraftLimits& limits) {
    check(limits.max_nodes >= 0 && limits.max_nodes <= kMaxDraftNodes,
          "max_nodes must be from 0 to 64", std::to_string(limits.max_nodes));
    check(limits.min_prob >= 0 && limits.min_prob <= 1, "min_prob must be from 0 to 1",
          std::to_string(limits.min_prob));
    check(limits.factor >= 0 && std::isfinite(limits.factor), "factor must be 0 or more",
          std::to_string(limits.factor));
    check(std::isfinite(limits.offset), "offset must be finite", std::to_string(limits.offset));
    check(limits.unseen >= 0 && std::isfinite(limits.unseen), "unseen must be 0 or more",
          std::to_string(limits.unseen));
    const std::vector<uint64_t>& keys = stream(id).keys;
    SuffixDraft best, tree;
    for (size_t i = keys.size(); i-- > 0;) {
        int gram = find_gram(keys[i]);
        if (gram < 0) continue;
        double depth = std::floor(limits.factor * context_lengths_[i] + limits.offset);
        int max_depth = static_cast<int>(std::clamp(depth, 0.0, double{kMaxDraftNodes}));
        // The probabilities of a level sum to 1: no tree scores more, nor does a shorter context's.
        if (best.score >= std::min(max_depth, limits.max_nodes)) break;
        grow_tree(gram, i, max_depth, limits, tree);
        if (tree.score > best.score) {
            tree.match_length = context_lengths_[i];
            std::swap(best, tree);
        }
    }
    return best;
}

// `order`: which of the context lengths the gram has.
void SuffixIndex::grow_tree(int gram, size_t order, int max_depth, const DraftLimits& limits,
                            SuffixDraft& draft) {
    // Which index is later in the heap; equal paths stay as they were found.
    auto after = [&](int a, int b) {
        double pa = candidates_[a].path_probability, pb = candidates_[b].path_probability;
        return pa != pb ? pa < pb : a > b;
    };
    draft = {};
    candidates_.clear();
    heap_.clear();
    occurrences_.clear();
    size_t stride = context_lengths_.size();
    for (int node = grams_[gram].newest; node >= 0 && occurrences_.size() < max_continuations_;
         node = links_[node * stride + order].older)
        occurrences_.push_back(node);
    add_candidates({1, 1, -1, -1, 0, static_cast<int32_t>(occurrences_.size()), 0}, -1,
                   context_lengths_[order], limits);
    size_t first = 0;
    for (;;) {
        for (; first < candidates_.size(); ++first) {
            heap_.push_back(static_cast<int32_t>(first));
            std::push_heap(heap_.begin(), heap_.end(), after);
        }
        if (heap_.empty()) return;
        std::pop_heap(heap_.begin(), heap_.end(), after);
        const Candidate node = candidates_[heap_.back()];
        heap_.pop_back();
        draft.tokens.push_back(node.token);
        draft.parents.push_back(node.parent);
        draft.counts.push_back(node.count);
        draft.probabilities.push_back(node.probability);
        draft.score += node.path_probability;
        int number = static_cast<int>(draft.tokens.size()) - 1;
        if (number + 1 == limits.max_nodes) return;
        if (node.depth < max_depth)
            add_candidates(node, number, context_lengths_[order] + node.depth, limits);
    }
}

// The tokens behind `node`, which is node `number` of the draft: from the children of its
// occurrences, the newest first. `length` tokens before them are known.
void SuffixIndex::add_candidates(const Candidate& node, int number, int length,
                                 const DraftLimits& limits) {
    children_.clear();
    for (int i = node.begin; i < node.begin + node.count; ++i)
        for (int child = nodes_[occurrences_[i]].newest_child;
             child >= 0 && children_.size() < max_continuations_;
             child = nodes_[child].older_sibling)
            children_.push_back(child);
    if (children_.empty()) return;
    found_.clear();
    bool alike = true;
    for (int child : children_) {
        int32_t token = nodes_[child].token;
        found_.push_back({token, static_cast<int32_t>(found_.size())});
        alike = alike && token == found_[0].first;
    }
    if (!alike) std::sort(found_.begin(), found_.end());
    groups_.clear();
    for (size_t i = 0; i < found_.size(); ++i) {
        if (i == 0 || found_[i].first != found_[i - 1].first)
            groups_.push_back(
                {0, 0, found_[i].first, number, node.depth + 1, 0, static_cast<int32_t>(i)});
        ++groups_.back().count;
    }
    std::stable_sort(groups_.begin(), groups_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.count > b.count; });
    double sum = found_.size() + limits.unseen * groups_.size() / std::sqrt(length);
    for (Candidate& group : groups_) {
        group.probability = group.count / sum;
        group.path_probability = node.path_probability * group.probability;
        if (group.path_probability < limits.min_prob) break;
        int begin = static_cast<int>(occurrences_.size());
        for (int i = group.begin; i < group.begin + group.count; ++i)
            occurrences_.push_back(children_[found_[i].second]);
        group.begin = begin;
        candidates_.push_back(group);
    }
}
