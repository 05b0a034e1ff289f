#include "suffix_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace {

constexpr int kMaxDraftNodes = 63;  // beside the last token, bits of an attention mask

// SplitMix64 (Steele, Lea, Flood 2014)
uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

template <class T>
void check(bool holds, const char* what, T value) {
    if (!holds) throw std::invalid_argument(what + (", got " + std::to_string(value)));
}

void check_prefix(int64_t length, int64_t num_tokens) {
    if (num_tokens < 0 || num_tokens > length)
        throw std::invalid_argument("a stream of " + std::to_string(length) +
                                    " tokens has no prefix of " + std::to_string(num_tokens));
}

}  // namespace

SuffixIndex::SuffixIndex(int max_tokens, std::vector<int> context_lengths, int max_continuations)
    : max_tokens_(max_tokens),
      context_lengths_(std::move(context_lengths)),
      max_continuations_(max_continuations) {
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

void SuffixIndex::extend(int64_t id, const std::vector<int64_t>& tokens) {
    Stream& grown = stream(id);
    for (int64_t token : tokens)
        check(token >= 0 && token <= std::numeric_limits<int32_t>::max(),
              "a token must be from 0 to 2^31 - 1", token);
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
    check_prefix(cut.num_tokens, num_tokens);
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
          "max_nodes must be from 0 to 64", limits.max_nodes);
    check(limits.min_prob >= 0 && limits.min_prob <= 1, "min_prob must be from 0 to 1",
          limits.min_prob);
    check(limits.factor >= 0 && std::isfinite(limits.factor), "factor must be 0 or more",
          limits.factor);
    check(std::isfinite(limits.offset), "offset must be finite", limits.offset);
    check(limits.unseen >= 0 && std::isfinite(limits.unseen), "unseen must be 0 or more",
          limits.unseen);
    const std::vector<uint64_t>& keys = stream(id).keys;
    SuffixDraft best, tree;
    for (size_t i = keys.size(); i-- > 0;) {
        int gram = find_gram(keys[i]);
        if (gram < 0) continue;
        double depth = std::floor(limits.factor * context_lengths_[i] + limits.offset);
        int max_depth = static_cast<int>(std::clamp(depth, 0.0, double{kMaxDraftNodes}));
        if (max_depth == 0 || limits.max_nodes == 0) break;
        bool is_full = grow_tree(gram, i, max_depth, limits, tree);
        if (tree.score > best.score) {
            tree.match_length = context_lengths_[i];
            std::swap(best, tree);
        }
        if (is_full) break;  // a shorter context is not better known
    }
    return best;
}

// `order`: which of the context lengths the gram has. -> Whether it has max_continuations of them.
bool SuffixIndex::grow_tree(int gram, size_t order, int max_depth, const DraftLimits& limits,
                            SuffixDraft& draft) {
    // Which index is later in the heap; equal paths stay as they were found.
    auto after = [&](int a, int b) {
        double pa = candidates_[a].path_probability, pb = candidates_[b].path_probability;
        return pa != pb ? pa < pb : a > b;
    };
    draft.nodes.clear();
    draft.score = 0;
    candidates_.clear();
    heap_.clear();
    occurrences_.clear();
    size_t stride = context_lengths_.size();
    for (int node = grams_[gram].newest; node >= 0 && occurrences_.size() < max_continuations_;
         node = links_[node * stride + order].older)
        occurrences_.push_back(node);
    int length = context_lengths_[order];
    auto num_occurrences = static_cast<int32_t>(occurrences_.size());
    add_candidates({{-1, -1, num_occurrences, 1}, 1, 0, 0}, -1, length, limits);
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
        draft.nodes.push_back(best.node);
        draft.score += best.path_probability;
        int num_nodes = static_cast<int>(draft.nodes.size());
        if (num_nodes == limits.max_nodes) break;
        if (best.depth < max_depth)
            add_candidates(best, num_nodes - 1, length + best.depth, limits);
    }
    return is_full;
}

// children_: what followed the occurrences of `parent`, the newest first.
void SuffixIndex::find_children(const Candidate& parent) {
    children_.clear();
    for (int i = parent.begin; i < parent.begin + parent.node.count; ++i)
        for (int child = nodes_[occurrences_[i]].newest_child;
             child >= 0 && children_.size() < max_continuations_;
             child = nodes_[child].older_sibling)
            children_.push_back(child);
}

// groups_: the tokens among children_ and their counts, as they are first seen.
void SuffixIndex::group_children() {
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
        int32_t token = nodes_[child].token;
        int32_t group = token == last ? group_of_.back() : group_of(token);
        last = token;
        group_of_.push_back(group);
        ++groups_[group].node.count;
    }
}

int32_t SuffixIndex::group_of(int32_t token) {
    size_t place = mix(token) & (slots_.size() - 1);
    while (slots_[place].round == round_ && slots_[place].token != token)
        place = (place + 1) & (slots_.size() - 1);
    if (slots_[place].round != round_) {
        slots_[place] = {token, static_cast<int32_t>(groups_.size()), round_};
        groups_.push_back({{token, -1, 0, 0}, 0, 0, -1});
    }
    return slots_[place].group;
}

// The tokens behind `parent`, which is node `number` of the draft. `length`: see SuffixDraftNode.
void SuffixIndex::add_candidates(const Candidate& parent, int number, int length,
                                 const DraftLimits& limits) {
    find_children(parent);
    if (children_.empty()) return;
    group_children();
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
