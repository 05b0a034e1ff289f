#include "acceptance.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "philox.h"

namespace {

// Streams of kernels/acceptance.py.
constexpr uint32_t kNextStream = 1, kTraversalStream = 1 << 15, kAcceptStream = 1 << 16;
constexpr int kStretch = 512;  // weights whose sum is skipped at once in the search for the token

// One branch's part of the arguments.
struct Draft {
    Draft(const DraftArgs& args, int branch)
        : args(args),
          branch(branch),
          begin(args.cu_nodes[branch]),
          num_nodes(args.cu_nodes[branch + 1] - begin) {}

    int64_t token(int node) const { return args.tokens[begin + node]; }
    int parent(int node) const { return args.parents ? args.parents[begin + node] : node - 1; }
    bool is_known(int node) const { return token(node) >= 0 && token(node) < args.vocab_size; }
    bool is_drawn(int node) const {
        return args.q && !(args.deterministic && args.deterministic[begin + node]);
    }
    const float* p(int node) const { return args.p + (begin + branch + 1 + node) * args.p_stride; }
    const float* q(int node) const { return args.q + (begin + node) * args.q_stride; }
    double uniform(int64_t offset, uint32_t stream) const {
        return philox_uniform(static_cast<uint64_t>(args.keys[branch]),
                              static_cast<uint64_t>(args.positions[branch] + offset), stream);
    }

    // The path to `node`, `depth` long, and the next token; without one there is no path.
    void finish(int node, int depth, int64_t next_token) const {
        if (next_token < 0) depth = 0;
        int32_t* path = args.path + static_cast<int64_t>(branch) * args.max_depth;
        std::fill(path + depth, path + args.max_depth, -1);
        for (int place = depth - 1; place >= 0; --place, node = parent(node)) path[place] = node;
        args.num_accepted[branch] = depth;
        args.next_token[branch] = next_token;
    }

    const DraftArgs& args;
    int branch;
    int64_t begin;
    int num_nodes;
};

// P behind a node of weight a, of which its rejected children leave w / m, where
// kernels/residual.py has the formulas: w(x) = max(a p(x) - c q(x), 0), and 0 at rejected
// deterministic tokens; m = sum_x w(x) + 1 - a. From the root down all nodes have a = 1.
class Residual {
  public:
    Residual(const KernelTable& kernels, const Draft& draft, int node, double a)
        : kernels_(kernels), draft_(draft), p_(draft.p(node)), a_(a), failure_(1 - a), rest_(a) {}

    // What rejections have left of a, times m, and m itself: before any of them a and 1.
    double rest() const { return rest_; }
    double m() const { return m_; }

    double weight(int64_t x) const {
        double w = a_ * p_[x];
        if (c_ != 0) w -= c_ * q_[x];
        w = w <= 0 ? 0 : w;  // a NaN stays one
        return std::binary_search(zeros_.begin(), zeros_.end(), x) ? w * 0 : w;
    }

    // A child is drawn from q' = q(x) / z. Returns q(x); 0 is no draw.
    double drawn(int child, double* z) const {
        *z = 1;
        if (!draft_.is_drawn(child)) return 1;
        const float* q = draft_.q(child);
        double q_x = q[draft_.token(child)];
        if (draft_.args.replacement || rejected_.empty()) return q_x;
        if (std::binary_search(rejected_.begin(), rejected_.end(), draft_.token(child))) q_x *= 0;
        if (q_x != 0) *z = mass(q, nullptr, 1, 0, rejected_, 0, draft_.args.vocab_size);
        return q_x;
    }

    // Takes q' = q / z from P. False where nothing is left, which leaves all as it was; NaN is
    // kept.
    bool reject(int child, double z) {
        double old_c = c_;
        std::vector<int64_t> old_zeros = zeros_;
        int64_t x = draft_.token(child);
        insert(rejected_, x);
        if (draft_.is_drawn(child)) {
            c_ += m_ / z;
            q_ = draft_.q(child);
        } else {
            insert(zeros_, x);
        }
        double rest = total();
        if (rest == 0) {
            c_ = old_c;
            zeros_ = old_zeros;
            sums_.clear();
            return false;
        }
        rest_ = rest;
        m_ = rest + failure_;
        return true;
    }

    // The first x with sum_{y <= x} w(y) > u sum_y w(y); -1 where there is no weight or a NaN.
    int64_t choose(double u) {
        double sum_of_all = sums_.empty() ? total() : rest_;
        if (!(sum_of_all > 0 && std::isfinite(sum_of_all))) return -1;
        double target = u * sum_of_all, reached = 0;
        int n = draft_.args.vocab_size;
        int64_t token = -1;
        for (int i = 0; i < n; i += kStretch) {
            double sum = sums_[i / kStretch];
            // Where rounding leaves the target beyond the sum, the last token with weight is taken.
            if (sum == 0 || (reached + sum <= target && reached + sum < sum_of_all)) {
                reached += sum;
                continue;
            }
            for (int x = i; x < std::min(n, i + kStretch); ++x) {
                double w = weight(x);
                if (w == 0) continue;
                reached += w;
                token = x;
                if (reached > target) return token;
            }
        }
        return token;
    }

  private:
    static void insert(std::vector<int64_t>& sorted, int64_t x) {
        auto place = std::lower_bound(sorted.begin(), sorted.end(), x);
        if (place == sorted.end() || *place != x) sorted.insert(place, x);
    }

    // sum_x max(scale p(x) - c q(x), 0) over [begin, end), without what is 0 there.
    double mass(const float* p, const float* q, double scale, double c,
                const std::vector<int64_t>& zeros, int begin, int end) const {
        double sum = 0;
        for (auto it = std::lower_bound(zeros.begin(), zeros.end(), begin);
             it != zeros.end() && *it < end; ++it) {
            int x = static_cast<int>(*it);
            sum += kernels_.residual_mass(p + begin, c == 0 ? q : q + begin, scale, c, x - begin);
            sum += kernels_.residual_mass(p + x, c == 0 ? q : q + x, scale, c, 1) * 0;
            begin = x + 1;
        }
        return sum +
               kernels_.residual_mass(p + begin, c == 0 ? q : q + begin, scale, c, end - begin);
    }

    double total() {
        int n = draft_.args.vocab_size;
        sums_.clear();
        double sum = 0;
        for (int i = 0; i < n; i += kStretch) {
            sums_.push_back(mass(p_, q_, a_, c_, zeros_, i, std::min(n, i + kStretch)));
            sum += sums_.back();
        }
        return sum;
    }

    const KernelTable& kernels_;
    const Draft& draft_;
    const float *p_, *q_ = nullptr;
    double a_, c_ = 0, failure_, m_ = 1, rest_;
    std::vector<int64_t> zeros_, rejected_;  // sorted
    std::vector<double> sums_;               // of each stretch, where they were needed
};

// One node's visit ends the walk, fails, or meets a NaN, which ends it without a result.
class Traversal {
  public:
    Traversal(const KernelTable& kernels, const Draft& draft) : kernels_(kernels), draft_(draft) {}

    // True where the walk ends at or below `node`; `a` is the weight of the node.
    bool visit(int node, int depth, double a) const {
        Residual law(kernels_, draft_, node, a);
        bool may_end_here = true;
        for (int child = node + 1; child < draft_.num_nodes; ++child) {
            if (depth == draft_.args.max_depth) break;
            if (draft_.parent(child) != node || !draft_.is_known(child)) continue;
            double z, q_x = law.drawn(child, &z);
            if (q_x == 0) continue;
            double weight = law.weight(draft_.token(child)) * z / (q_x * law.m());
            // A NaN is none, and is seen in what the child leaves.
            if (weight > 0 && visit(child, depth + 1, std::min(1.0, weight))) return true;
            if (!law.reject(child, z)) {
                // Nothing is left. That of a = 1 is rounding.
                may_end_here = a == 1;
                break;
            }
            if (std::isnan(law.m())) return no_result();
        }
        if (node >= 0) {
            double u = draft_.uniform(0, kTraversalStream + node);
            if (!may_end_here || !(u * law.m() < law.rest())) return false;
        }
        draft_.finish(node, depth, law.choose(draft_.uniform(depth, kNextStream)));
        return true;
    }

  private:
    bool no_result() const {
        draft_.finish(-1, 0, -1);
        return true;
    }

    const KernelTable& kernels_;
    const Draft& draft_;
};

// The end of the longest path of nodes that pass(node, parent), the first of equally long ones.
template <class Pass>
void longest_path(const Draft& draft, const Pass& pass, int* end, int* length) {
    std::vector<int> depth(draft.num_nodes + 1, -1);  // of the branch itself first
    depth[0] = *length = 0;
    *end = -1;
    for (int node = 0; node < draft.num_nodes; ++node) {
        int above = depth[1 + draft.parent(node)];
        if (above < 0 || above >= draft.args.max_depth || !pass(node, draft.parent(node))) continue;
        depth[1 + node] = above + 1;
        if (above + 1 > *length) {
            *length = above + 1;
            *end = node;
        }
    }
}

// -sum p ln p
double entropy(const float* p, int n) {
    double sum = 0;
    for (int i = 0; i < n; ++i) {
        double x = p[i];
        if (!(x <= 0)) sum -= x * std::log(x);  // a NaN stays one
    }
    return sum;
}

}  // namespace

int checked_depth(const int32_t* parents, const int32_t* cu_nodes, int num_branches,
                  int num_nodes) {
    bool rises = cu_nodes[0] == 0 && cu_nodes[num_branches] == num_nodes;
    for (int b = 0; b < num_branches; ++b) rises = rises && cu_nodes[b] <= cu_nodes[b + 1];
    if (!rises) {
        std::string bounds;
        for (int b = 0; b <= num_branches; ++b)
            bounds += (b ? ", " : "") + std::to_string(cu_nodes[b]);
        throw std::invalid_argument("cu_nodes must rise from 0 to " + std::to_string(num_nodes) +
                                    ", got [" + bounds + "]");
    }
    int deepest = 0;
    std::vector<int> depth;
    for (int b = 0; b < num_branches; ++b) {
        depth.assign(1, 0);
        for (int node = 0; node < cu_nodes[b + 1] - cu_nodes[b]; ++node) {
            int parent = parents ? parents[cu_nodes[b] + node] : node - 1;
            if (parent < -1 || parent >= node)
                throw std::invalid_argument("node " + std::to_string(node) +
                                            " of a tree can't be a child of node " +
                                            std::to_string(parent));
            depth.push_back(depth[1 + parent] + 1);
            deepest = std::max(deepest, depth.back());
        }
    }
    return deepest;
}

void accept_greedy(const DraftArgs& args, const int64_t* argmax, int branch) {
    Draft draft(args, branch);
    const int64_t* best = argmax + draft.begin + branch + 1;  // of the branch itself at -1
    int end, length;
    longest_path(
        draft,
        [&](int node, int parent) {
            return best[parent] >= 0 && draft.token(node) == best[parent];
        },
        &end, &length);
    draft.finish(end, length, best[end]);
}

void accept_tree(const KernelTable& kernels, const DraftArgs& args, int branch) {
    Draft draft(args, branch);
    int current = -1, depth = 0, rank = 0;
    std::optional<Residual> law(std::in_place, kernels, draft, current, 1.0);
    for (int node = 0; node < draft.num_nodes && depth < args.max_depth; ++node) {
        if (draft.parent(node) != current) continue;
        uint32_t stream = kAcceptStream + rank++;
        if (!draft.is_known(node)) continue;
        double z, q_x = law->drawn(node, &z);
        if (q_x == 0) continue;
        double u = draft.uniform(depth, stream);
        if (u * q_x * law->m() < law->weight(draft.token(node)) * z) {
            current = node;
            ++depth;
            rank = 0;
            law.emplace(kernels, draft, current, 1.0);
        } else if (!law->reject(node, z) || std::isnan(law->m())) {
            break;  // nothing is left, or a NaN
        }
    }
    draft.finish(current, depth, law->choose(draft.uniform(depth, kNextStream)));
}

void accept_traversal(const KernelTable& kernels, const DraftArgs& args, int branch) {
    Draft draft(args, branch);
    Traversal(kernels, draft).visit(-1, 0, 1.0);
}

void accept_typical(const KernelTable& kernels, const DraftArgs& args, double epsilon, double alpha,
                    int branch) {
    Draft draft(args, branch);
    // exp(-H) behind each node, where it was needed.
    std::vector<double> typical(draft.num_nodes + 1, -1.0);
    int end, length;
    longest_path(
        draft,
        [&](int node, int parent) {
            if (!draft.is_known(node)) return false;
            const float* p = draft.p(parent);
            double p_x = p[draft.token(node)], &e = typical[1 + parent];
            if (p_x > epsilon) return true;
            if (e < 0) e = std::exp(-entropy(p, args.vocab_size));
            return p_x > alpha * e;
        },
        &end, &length);
    Residual law(kernels, draft, end, 1.0);
    draft.finish(end, length, law.choose(draft.uniform(length, kNextStream)));
}
