// The experts of a row: those of the largest softmax weight, the lower id first on a tie, in the order of their ids.
// geometry: grid (rows), one warp
#include "math.cuh"
#include "order.cuh"
#include "step.cuh"

KERNEL(route, RouteArgs, WARP) {
    __shared__ u32 ids[TOP];
    __shared__ float weights[TOP];
    u32 row = blockIdx.x, lane = lane_id();
    if (row >= a.stand->rows) return;
    const float* scores = a.scores + (u64)row * a.experts;
    float max = -INFINITE, sum = 0.0f, taken = 0.0f;
    for (u32 e = lane; e < a.experts; e += WARP) max = scores[e] > max ? scores[e] : max;
    max = warp_max(max);
    for (u32 e = lane; e < a.experts; e += WARP) sum += exp_e(scores[e] - max);
    sum = warp_sum(sum);
    u64 last = ~0ull;
    for (u32 k = 0; k < a.per; k++) {
        u64 mine = 0;
        for (u32 e = lane; e < a.experts; e += WARP) {
            u64 key = order(exp_e(scores[e] - max), e);
            if (key < last && key > mine) mine = key;
        }
        last = warp_most(mine);
        taken += logit_of(last);
        if (lane == 0) ids[k] = id_of(last), weights[k] = logit_of(last);
    }
    __syncwarp();
    float total = a.normalize ? taken : sum;
    for (u32 k = lane; k < a.per; k += WARP) {
        u32 rank = 0;
        for (u32 i = 0; i < a.per; i++) rank += ids[i] < ids[k];
        a.chosen[row * a.per + rank] = ids[k];
        a.shares[row * a.per + rank] = weights[k] / total;
    }
}
