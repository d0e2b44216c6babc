// Some columns of a row of queries (0), keys (1) or values (2), whole heads, by one warp: norm of each piece (a head or the
// whole projection), rotation, and keys and values go to the row's slot. Angles come from a table that the host made as the
// CPU twin makes them.
#pragma once
#include "pages.cuh"

// Columns that are done at once: whole heads, whole tiles of a product, whole norms.
DEVICE u32 unit_of(const RopeArgs& a, u32 which) { return which == 0 ? a.q_unit : which == 1 ? a.k_unit : a.v_unit; }
DEVICE u32 columns_of(const RopeArgs& a, u32 which) { return (which == 0 ? a.heads : a.kv_heads) * a.dim; }
DEVICE u32 units_of(const RopeArgs& a, u32 which) {
    u32 unit = unit_of(a, which);
    return (columns_of(a, which) + unit - 1) / unit;
}

DEVICE void rotate(float* x, const RopeArgs& a, const float* angles) {
    u32 half = a.rotary / 2;
    for (u32 i = lane_id(); i < half; i += WARP) {
        u32 at = a.interleaved ? 2 * i : i, other = a.interleaved ? at + 1 : at + half;
        float c = angles[i], s = angles[half + i], u = __ldcg(x + at), v = __ldcg(x + other);
        x[at] = u * c - v * s;
        x[other] = v * c + u * s;
    }
    __syncwarp();
}
// Divide by the root of the mean square.
DEVICE void norm_piece(float* x, u32 piece, const float* weight, float eps) {
    float sum = 0.0f;
    for (u32 c = lane_id(); c < piece; c += WARP) {
        float v = __ldcg(x + c);
        sum = fmaf(v, v, sum);
    }
    float scale = 1.0f / sqrtf(warp_sum(sum) / (float)piece + eps);
    for (u32 c = lane_id(); c < piece; c += WARP) x[c] = __ldcg(x + c) * scale * weight[c];
    __syncwarp();
}

// Unit `unit` of a row.
DEVICE void rope_unit(const RopeArgs& a, u32 which, u32 row, u32 unit) {
    u32 width = unit_of(a, which), columns = columns_of(a, which), from = unit * width, to = least(from + width, columns);
    const Row& own = a.rows[a.index[row]];
    float* x = (which == 0 ? a.q : which == 1 ? a.k : a.v) + (u64)row * columns;
    const float* weight = which == 0 ? a.q_norm : which == 1 ? a.k_norm : nullptr;
    u32 piece = which == 0 ? a.q_piece : a.k_piece;
    if (weight)
        for (u32 c = from; c < to; c += piece) norm_piece(x + c, piece, weight, a.eps);
    const float* angles = a.angles ? a.angles + (u64)least(own.position, a.positions - 1) * a.rotary : nullptr;
    for (u32 head = from / a.dim; head < to / a.dim; head++) {
        float* h = x + head * a.dim;
        if (which < 2 && angles) rotate(h, a, angles);
        if (which == 0) continue;
        u64 start = page_start(head, own.slot / PAGE, a.pages, a.dim);
        u32 lane = own.slot % PAGE;
        for (u32 e = lane_id(); e < a.dim; e += WARP)
            kv_store(a.kv, a.dtype, start + (which == 1 ? key_at(lane, e) : value_at(lane, e, a.dim)), __ldcg(h + e));
    }
}
