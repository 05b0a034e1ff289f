#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace {

float kth_largest(const std::vector<float>& values, int k) {
    std::vector<float> copy(values);
    std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<float>());
    return copy[k - 1];
}

// The smallest value of the shortest descending run that holds `share` of the mass of `values`.
float nucleus_cut(std::vector<float> values, double share) {
    double total = 0;
    for (float v : values) total += v;
    double reached = 0;
    size_t sorted = 0;
    for (size_t width = 64; sorted < values.size(); width *= 4) {
        size_t end = std::min(values.size(), sorted + width);
        auto begin = values.begin() + sorted;
        if (end < values.size())
            std::nth_element(begin, values.begin() + end, values.end(), std::greater<float>());
        std::sort(begin, values.begin() + end, std::greater<float>());
        for (; sorted < end; ++sorted) {
            reached += values[sorted];
            if (reached >= share * total) return values[sorted];
        }
    }
    return 0.0f;
}

}  // namespace

void sample_row(const KernelTable& kernels, const SampleArgs& a, int row) {
    const float* x = a.logits + row * a.logits_stride;
    int n = a.vocab_size;
    a.token[row] = -1;
    float best = kernels.row_max(x, n), scale = 1.0f / a.temperature[row];
    if (!std::isfinite(best)) return;
    if (!std::isfinite(scale)) {  // temperature 0, or so little that nothing else has a chance
        a.token[row] = std::find(x, x + n, best) - x;
        return;
    }
    std::vector<float> e(n);
    float total = kernels.exp_shifted(x, n, scale, best, e.data());
    if (!std::isfinite(total)) return;

    float cut = a.min_p[row];
    if (a.top_k[row] > 0 && a.top_k[row] < n) cut = std::max(cut, kth_largest(e, a.top_k[row]));
    if (a.top_p[row] < 1.0f) {
        // top-p looks at what top-k left; min-p comes after it and is a cut of its own.
        float k_cut = a.top_k[row] > 0 && a.top_k[row] < n ? kth_largest(e, a.top_k[row]) : 0.0f;
        std::vector<float> kept;
        for (float v : e)
            if (v >= k_cut && v > 0.0f) kept.push_back(v);
        cut = std::max(cut, nucleus_cut(std::move(kept), a.top_p[row]));
    }
    double mass = 0;
    for (float v : e)
        if (v >= cut) mass += v;
    double target = a.uniform[row] * mass, reached = 0;
    int64_t last = -1;
    for (int i = 0; i < n; ++i) {
        if (e[i] < cut || e[i] == 0.0f) continue;
        reached += e[i];
        last = i;
        if (reached > target) break;
    }
    a.token[row] = last;
}
