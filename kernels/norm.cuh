// A row's norm and what goes with it: x += scale * norm(h), and the row ready for the next product. One block a row, sums
// over strided threads: the bits depend on the width alone. `room` holds WARPS floats of shared memory.
#pragma once
#include "prepare.cuh"

DEVICE void norm_row(const NormArgs& a, u32 row, float* room) {
    u32 step_row = a.index[row];
    const float* from = a.h ? a.h + (u64)row * a.stride : a.x + (u64)step_row * a.k;
    // Other blocks of the same launch may have written it.
    auto value = [&](u32 c) { return __ldcg(from + c); };
    float mean = 0.0f, scale = 1.0f;
    if (a.weight) {
        float sum = 0.0f;
        if (a.kind == 1) {
            for (u32 c = threadIdx.x; c < a.k; c += THREADS) sum += value(c);
            mean = block_sum(sum, room) / (float)a.k;
            sum = 0.0f;
        }
        for (u32 c = threadIdx.x; c < a.k; c += THREADS) {
            float v = value(c) - mean;
            sum = fmaf(v, v, sum);
        }
        scale = 1.0f / sqrtf(block_sum(sum, room) / (float)a.k + a.eps);
    }
    bool fine = true;
    for (u32 tile = warp_id(); tile < (a.k + GROUP - 1) / GROUP; tile += WARPS) {
        u32 col = tile * GROUP + lane_id();
        bool inside = col < a.k;
        float v = 0.0f, z = 0.0f;
        if (inside) {
            v = (value(col) - mean) * scale;
            if (a.weight) v *= a.weight[col];
            if (a.bias) v += a.bias[col];
            if (a.add) {
                float* to = a.add + (u64)step_row * a.k + col;
                v = fmaf(a.scale, v, *to);
                *to = v;
            }
            if (a.out) a.out[(u64)row * a.k + col] = v;
            z = a.gain ? v * a.gain[col] : v;
        }
        fine &= prepare(a.next, row, tile, z, v);
    }
    if (!fine && lane_id() == 0) atomicMin(&a.bad[step_row], a.layer);
}
