// The experts of a row, by one warp: those of the largest softmax weight, the lower id first on a tie, in the order of
// their ids.
#pragma once
#include "math.cuh"
#include "order.cuh"
#include "step.cuh"

DEVICE void choose_experts(const RouteArgs& a, u32 row) {
    u32 lane = lane_id();
    const float* scores = a.scores + (u64)row * a.experts;
    float max = -INFINITE, sum = 0.0f, taken = 0.0f;
    for (u32 e = lane; e < a.experts; e += WARP) {
        float s = __ldcg(scores + e);
        max = s > max ? s : max;
    }
    max = warp_max(max);
    for (u32 e = lane; e < a.experts; e += WARP) sum += exp_e(__ldcg(scores + e) - max);
    sum = warp_sum(sum);
    // Choice k is kept by lane k % 32.
    u64 last = ~0ull, low = 0, high = 0;
    for (u32 k = 0; k < a.per; k++) {
        u64 mine = 0;
        for (u32 e = lane; e < a.experts; e += WARP) {
            u64 key = order(exp_e(__ldcg(scores + e) - max), e);
            if (key < last && key > mine) mine = key;
        }
        last = warp_most(mine);
        taken += logit_of(last);
        if (k % WARP == lane) (k < WARP ? low : high) = last;
    }
    float total = a.normalize ? taken : sum;
    u32 first = 0, second = 0;  // their ranks
    for (u32 k = 0; k < a.per; k++) {
        u32 id = __shfl_sync(ALL, id_of(k < WARP ? low : high), k % WARP);
        first += id < id_of(low);
        second += id < id_of(high);
    }
    for (u32 k = lane; k < a.per; k += WARP) {
        u64 key = k < WARP ? low : high;
        u32 at = row * a.per + (k < WARP ? first : second);
        a.chosen[at] = id_of(key);
        a.shares[at] = logit_of(key) / total;
    }
}
