// Activations in the forms that products read.
#pragma once
#include "step.cuh"

// 32 values of a row, one a lane: `z` goes to the product, `x` is what it was before the norm's gain. Beyond the row's end
// both must be 0. True if they are finite.
DEVICE bool prepare(const Acts& to, u32 row, u32 tile, float z, float x) {
    u32 lane = lane_id(), group = row * (to.kp / GROUP) + tile;
    u64 at = (u64)row * to.kp + tile * GROUP + lane;
    float most = warp_max(fabsf(z));
    if (to.squares) {
        float sum = warp_sum(x * x);
        if (lane == 0) to.squares[group] = sum;
    }
    if (to.forms & INT8) {
        float scale = most / 127.0f, inverse = most > 0.0f ? 127.0f / most : 0.0f;
        // A subnormal maximum has no inverse: the row is as good as zero there.
        if (!(inverse < INFINITE)) inverse = scale = 0.0f;
        int code = (int)rintf(z * inverse);
        code = code > 127 ? 127 : code < -127 ? -127 : code;
        u32 quad = lane % 16 / 4, byte = quad * 8 + lane / 16 * 4 + lane % 4;
        to.codes[at - lane + byte] = (i8)code;
        int sum = warp_sum(code);
        if (lane == 0) {
            to.scales[2 * group] = scale;
            to.scales[2 * group + 1] = scale * (float)sum;
        }
    }
    if (to.forms & BF16) to.bf16[at] = to_bf16(z);
    if (to.forms & F32) to.floats[at] = z;
    return most < INFINITE;
}

// 1 / root of the mean square of a row, from the sums of its groups; 1 where there is no norm. For a whole warp.
DEVICE float inverse_rms(const Acts& of, u32 row) {
    if (!of.squares) return 1.0f;
    float sum = 0.0f;
    for (u32 g = lane_id(); g < of.kp / GROUP; g += WARP) sum += of.squares[(u64)row * (of.kp / GROUP) + g];
    return 1.0f / sqrtf(warp_sum(sum) / (float)of.k + of.eps);
}
