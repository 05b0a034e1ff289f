#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

namespace {

constexpr int kChunk = 64;     // weights whose largest stands for them in the search for top-k
constexpr int kStretch = 512;  // weights whose sum is skipped at once in the search for the token

// The k-th largest of n weights, k <= n. The k-th largest of the chunks' maxima is a lower bound.
float kth_largest(const KernelTable& kernels, const float* e, int n, int k,
                  std::vector<float>& kept) {
    int chunks = (n + kChunk - 1) / kChunk, count = n;
    float bound = 0.0f;
    if (k <= chunks) {
        for (int i = 0; i < chunks; ++i)
            kept[i] = kernels.row_max(e + i * kChunk, std::min(kChunk, n - i * kChunk));
        auto begin = kept.begin();
        std::nth_element(begin, begin + (k - 1), begin + chunks, std::greater<float>());
        bound = kept[k - 1];
    }
    // Whole chunks may have rounded to nothing: then the largest stand together.
    if (bound > 0.0f)
        count = kernels.keep(e, n, bound, kept.data());
    else
        std::copy(e, e + n, kept.begin());
    auto begin = kept.begin();
    std::nth_element(begin, begin + (k - 1), begin + count, std::greater<float>());
    return kept[k - 1];
}

// Weights of one bucket agree in their sign, exponent and upper seven bits of the fraction.
int bucket_of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return static_cast<int>(bits >> 16);
}

// The smallest weight of the shortest descending run of those at least `k_cut` that holds `share`
// of their mass.
float nucleus_cut(const KernelTable& kernels, const float* e, int n, float k_cut, double share,
                  SampleScratch& scratch) {
    double total = kernels.kept_mass(e, n, k_cut);
    // Weights below this one hold less than the rest of the mass: the run ends before them.
    float bound = static_cast<float>((1.0 - share) * total / n * 0.999);
    bound = std::max({k_cut, bound, 1e-37f});
    int count = kernels.keep(e, n, bound, scratch.kept.data());
    auto begin = scratch.kept.begin(), end = begin + count;
    int lowest = bucket_of(bound);
    scratch.bucket_mass.assign(bucket_of(1.0f) - lowest + 1, 0.0);
    for (auto it = begin; it != end; ++it) scratch.bucket_mass[bucket_of(*it) - lowest] += *it;
    double reached = 0;
    for (int i = static_cast<int>(scratch.bucket_mass.size()) - 1; i >= 0; --i) {
        double mass = scratch.bucket_mass[i];
        if (mass == 0.0 || reached + mass < share * total) {
            reached += mass;
            continue;
        }
        // The run ends in this bucket: only its weights need an order.
        auto last = std::partition(begin, end, [&](float v) { return bucket_of(v) - lowest == i; });
        std::sort(begin, last, std::greater<float>());
        for (auto it = begin; it != last; ++it) {
            reached += *it;
            if (reached >= share * total || it + 1 == last) return *it;
        }
    }
    return 0.0f;
}

bool has_nan(const float* x, int n) {
    unsigned found = 0;
    for (int i = 0; i < n; ++i) found |= x[i] != x[i];
    return found != 0;
}

enum class Row { broken, greedy, drawn };

// Weights of a row and the cut from which on they are kept; `token` is that of a greedy one.
Row filter_row(const KernelTable& kernels, const FilterArgs& a, int row, SampleScratch& scratch,
               float* kept_from, int64_t* token) {
    const float* x = a.logits + row * a.logits_stride;
    int n = a.vocab_size;
    float best = kernels.row_max(x, n), scale = 1.0f / a.temperature[row];
    if (!std::isfinite(best)) return Row::broken;
    if (!std::isfinite(scale)) {  // temperature 0, or so little that nothing else has a chance
        if (has_nan(x, n)) return Row::broken;
        *token = std::find(x, x + n, best) - x;
        return Row::greedy;
    }
    scratch.weights.resize(n + kLanes);
    scratch.kept.resize(n + kLanes);
    float* e = scratch.weights.data();
    if (!std::isfinite(kernels.exp_shifted(x, n, scale, best, e))) return Row::broken;

    float k_cut = 0.0f, cut = a.min_p[row];
    if (a.top_k[row] > 0 && a.top_k[row] < n)
        k_cut = kth_largest(kernels, e, n, a.top_k[row], scratch.kept);
    // top-p looks at what top-k left; min-p is a cut of its own.
    if (a.top_p[row] < 1.0f)
        cut = std::max(cut, nucleus_cut(kernels, e, n, k_cut, a.top_p[row], scratch));
    *kept_from = std::max(cut, k_cut);
    return Row::drawn;
}

// The sum of what is kept, and of each stretch in scratch.kept.
double kept_stretches(const KernelTable& kernels, int n, float cut, SampleScratch& scratch) {
    double mass = 0;
    for (int i = 0; i < n; i += kStretch) {
        float sum = kernels.kept_mass(scratch.weights.data() + i, std::min(kStretch, n - i), cut);
        scratch.kept[i / kStretch] = sum;
        mass += sum;
    }
    return mass;
}

}  // namespace

void sample_row(const KernelTable& kernels, const SampleArgs& a, int row, SampleScratch& scratch) {
    int n = a.vocab_size;
    float cut = 0.0f;
    a.token[row] = -1;
    if (filter_row(kernels, a, row, scratch, &cut, &a.token[row]) != Row::drawn) return;
    const float* e = scratch.weights.data();
    double mass = kept_stretches(kernels, n, cut, scratch);
    double target = a.uniform[row] * mass, reached = 0;
    for (int i = 0; i < n; i += kStretch) {
        int end = std::min(n, i + kStretch);
        float sum = scratch.kept[i / kStretch];
        // The last stretch with any weight is looked into even where rounding left the target out.
        if (reached + sum <= target && reached + sum < mass) {
            reached += sum;
            continue;
        }
        for (int j = i; j < end; ++j) {
            if (e[j] < cut || e[j] == 0.0f) continue;
            reached += e[j];
            a.token[row] = j;
            if (reached > target) return;
        }
        if (a.token[row] >= 0) return;
    }
}

void probabilities_row(const KernelTable& kernels, const ProbabilityArgs& a, int row,
                       SampleScratch& scratch) {
    int n = a.vocab_size;
    float* p = a.p + static_cast<int64_t>(row) * n;
    float cut = 0.0f;
    int64_t token = -1;
    switch (filter_row(kernels, a, row, scratch, &cut, &token)) {
        case Row::broken:
            std::fill(p, p + n, std::numeric_limits<float>::quiet_NaN());
            return;
        case Row::greedy:
            std::fill(p, p + n, 0.0f);
            p[token] = 1.0f;
            return;
        case Row::drawn:
            double mass = kept_stretches(kernels, n, cut, scratch);
            kernels.scale_kept(scratch.weights.data(), n, cut, static_cast<float>(1.0 / mass), p);
    }
}

void top_row(const KernelTable& kernels, const TopLogitsArgs& a, int row) {
    const float* x = a.logits + row * a.stride;
    using Entry = std::pair<float, int>;
    auto before = [](const Entry& p, const Entry& q) {
        return p.first > q.first || (p.first == q.first && p.second < q.second);
    };
    std::vector<Entry> heap;  // the best so far, the last of them on top
    heap.reserve(a.k);
    int i = 0;
    for (; i < a.k; ++i) heap.emplace_back(x[i], i);
    std::make_heap(heap.begin(), heap.end(), before);
    while (i < a.vocab_size) {
        int end = std::min(a.vocab_size, (i / kChunk + 1) * kChunk);
        // What equals the last of the best has a higher id than it, and comes behind.
        bool any = kernels.row_max(x + i, end - i) > heap.front().first;
        for (; any && i < end; ++i) {
            if (!(x[i] > heap.front().first)) continue;
            std::pop_heap(heap.begin(), heap.end(), before);
            heap.back() = {x[i], i};
            std::push_heap(heap.begin(), heap.end(), before);
        }
        i = end;
    }
    std::sort_heap(heap.begin(), heap.end(), before);
    for (int rank = 0; rank < a.k; ++rank) {
        a.values[static_cast<int64_t>(row) * a.k + rank] = heap[rank].first;
        a.tokens[static_cast<int64_t>(row) * a.k + rank] = heap[rank].second;
    }
}
