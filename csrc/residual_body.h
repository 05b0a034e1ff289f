// What rejected children leave of a distribution, summed up in fp64.
#pragma once

#include "kernel_table.h"

namespace {

// Sixteen sums, each of every sixteenth term, then a tree of them: the same in every instruction
// set. Loops over the lanes are what the compiler makes vectors of.
double residual_mass(const float* p, const float* q, double scale, double c, int n) {
    double sum[kLanes] = {};
    int i = 0;
    if (c == 0.0) {
        for (; i + kLanes <= n; i += kLanes)
            for (int j = 0; j < kLanes; ++j) {
                double w = scale * p[i + j];
                sum[j] += w <= 0.0 ? 0.0 : w;
            }
    } else {
        for (; i + kLanes <= n; i += kLanes)
            for (int j = 0; j < kLanes; ++j) {
                double w = scale * p[i + j] - c * q[i + j];
                sum[j] += w <= 0.0 ? 0.0 : w;
            }
    }
    for (int j = 0; i + j < n; ++j) {
        double w = scale * p[i + j];
        if (c != 0.0) w -= c * q[i + j];
        sum[j] += w <= 0.0 ? 0.0 : w;
    }
    for (int step = kLanes / 2; step > 0; step /= 2)
        for (int j = 0; j < step; ++j) sum[j] += sum[j + step];
    return sum[0];
}

}  // namespace
