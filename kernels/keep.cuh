// What top-k and top-p leave of a row of logits: the first in order, by logit and then the lower id, until their number or
// their mass reaches what is wanted. Found by counting digits of the order from the top, in integers, so that nothing
// depends on which thread adds first: a pass over the row a digit, by one block. Twin: crates/kernels/src/pick/keep.rs.
#pragma once
#include "math.cuh"
#include "order.cuh"
#include "step.cuh"

constexpr u32 BINS = 2048;
struct Bins {
    u64 weight[BINS];
    u64 room[WARPS];
    u64 found[3];  // the digit, the weight above it, its own weight
};

// Probability over the largest, in units of 2^-40.
DEVICE u64 share_of(float x, float max, float temperature) {
    return (u64)((double)exp_e((x - max) / temperature) * 1099511627776.0);
}

// The digit from the top at which the sum of weights reaches `wanted`, given what lies `above` all digits; for all threads.
DEVICE void find_digit(Bins& bins, u64 wanted, u64 above) {
    u32 lane = lane_id(), warp = warp_id();
    constexpr u32 EACH = BINS / THREADS;
    // Thread t has bins from BINS - 1 - t * EACH down.
    u32 top = BINS - 1 - threadIdx.x * EACH;
    u64 own = 0;
    for (u32 i = 0; i < EACH; i++) own += bins.weight[top - i];
    u64 sum = own;
    for (u32 step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
    if (lane == 0) bins.room[warp] = sum;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) above += bins.room[w];
    if (above < wanted && above + bins.room[warp] >= wanted) {  // the same for all lanes
        for (u32 l = 0; l < WARP; l++) {
            u64 before = __shfl_sync(ALL, own, l);
            above += l < lane ? before : 0;
        }
        if (above < wanted && above + own >= wanted) {
            for (u32 i = 0;; i++) {
                u64 here = bins.weight[top - i];
                if (above + here >= wanted) {
                    bins.found[0] = top - i, bins.found[1] = above, bins.found[2] = here;
                    break;
                }
                above += here;
            }
        }
    }
    __syncthreads();
}

// Cut what `edge` lets through to the first whose weights reach a share of all (MASS) or a number: the new edge. `share` in
// 0..1, `number` at least 1.
template <bool MASS> DEVICE u64 cut(const float* logits, u32 vocab, float max, const Ask& ask, u64 edge, Bins& bins) {
    u64 low = edge, wanted = MASS ? 0 : ask.top_k, above = 0;
    edge = 0;
    // Digits of an order: the logit's 32 bits, then the id's 22.
    for (u32 level = 0; level < 5; level++) {
        const u32 shift = level == 0 ? 53 : level == 1 ? 42 : level == 2 ? 32 : level == 3 ? 11 : 0;
        const u32 width = level == 2 ? 10 : 11;
        for (u32 i = threadIdx.x; i < BINS; i += THREADS) bins.weight[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < vocab; i += THREADS) {
            float x = logits[i];
            u64 key = order(x, i);
            if (key < low || (level > 0 && key >> (shift + width) != edge >> (shift + width))) continue;
            u64 weight = MASS ? share_of(x, max, ask.temperature) : 1;
            if (weight) atomicAdd(&bins.weight[key >> shift & (BINS - 1) >> (11 - width)], weight);
        }
        __syncthreads();
        if (level == 0) {
            u64 all = 0;
            for (u32 i = threadIdx.x; i < BINS; i += THREADS) all += bins.weight[i];
            for (u32 step = 16; step > 0; step /= 2) all += __shfl_xor_sync(ALL, all, step);
            if (lane_id() == 0) bins.room[warp_id()] = all;
            __syncthreads();
            all = 0;
            for (u32 w = 0; w < WARPS; w++) all += bins.room[w];
            __syncthreads();
            if (MASS) {
                float share = ask.top_p > 0.0f ? ask.top_p : 0.0f;
                wanted = (u64)((double)share * (double)all);
                wanted = wanted ? wanted : 1;
            }
            if (all < wanted) return low;
        }
        find_digit(bins, wanted, above);
        edge |= bins.found[0] << shift;
        above = bins.found[1];
        u64 here = bins.found[2];
        __syncthreads();
        // All of it is kept; or there is one of this logit.
        if (above + here == wanted) break;
        if (level == 2) {
            if (here == (MASS ? share_of(logit_of(edge), max, ask.temperature) : 1)) break;
            edge |= 0xffc00000u;  // of an id, complemented
        }
    }
    return edge > low ? edge : low;
}
