// The frame of a product y[rows, n] = x[rows, k] W[n, k]^T: a block owns 32 outputs of up to 16 * MT rows, its warps share
// K, their sums are added in the order of warps, then the rows are finished. Which inputs a warp takes and in which order
// depends on k alone: a row's bits do not depend on how many rows there are.
//
// geometry: grid (tiles of 32 outputs over all matrices, rows / (16 * MT)), THREADS
// bytes:    the weights once for 16 * MT rows, 32 * kp activations a row from L2
#pragma once
#include "math.cuh"
#include "prepare.cuh"

constexpr u32 TILE = 32;

template <u32 MT> struct Frame {
    float y[2][16 * MT][TILE + 1];
};

// What happens to a row of 32 outputs: `row` is compact, `r` its place in the block, `col` the first output.
template <u32 MT> DEVICE void finish(const ProductArgs& a, const Frame<MT>& f, u32 which, u32 tile, u32 r, u32 row) {
    u32 lane = lane_id(), col = tile * TILE + lane;
    bool inside = col < a.w[which].n;
    float norm = inverse_rms(a.in, row);
    auto value = [&](u32 m, u32 pass) {
        float v = f.y[pass][r][lane] * norm;
        return a.bias[m] && inside ? v + a.bias[m][col] : v;
    };
    if (a.mode == STORE) {
        float v = value(which, 0) * a.scale;
        if (a.cap > 0.0f) v = a.cap * tanh_of(v / a.cap);
        if (inside) a.out[which][(u64)row * a.w[which].n + col] = v;
        return;
    }
    float z = 0.0f, x = 0.0f;
    if (a.mode == ADD) {
        float* to = a.x + (u64)a.index[row] * a.w[0].n + col;
        if (inside) {
            x = fmaf(a.scale, value(0, 0), *to);
            *to = x;
            z = a.gain ? x * a.gain[col] : x;
        }
    } else if (inside) {
        z = activate(a.act, value(0, 0));
        if (a.mode == GATED) z *= value(1, 1);
    }
    bool fine = prepare(a.next, row, tile, z, x);
    if (!fine && lane == 0) atomicMin(&a.bad[a.index[row]], a.layer);
}

// `Inner::multiply(weights, in, first row, rows, tile, y)` leaves 32 sums of each row in y, for all threads of the block.
template <u32 MT, class Inner> DEVICE void product(const ProductArgs& a) {
    __shared__ Frame<MT> f;
    u32 rows = a.stand->rows, first = blockIdx.y * 16 * MT;
    if (first >= rows) return;
    u32 count = least(rows - first, 16 * MT), which = 0, tile = blockIdx.x;
    if (a.mode == STORE) {
        while (tile >= a.ends[which]) which++;
        tile -= which ? a.ends[which - 1] : 0;
    }
    u32 passes = a.mode == GATED ? 2 : 1;
UNROLL_NOT  // one body, not two
    for (u32 pass = 0; pass < passes; pass++)
        Inner::template multiply<MT>(a.w[which + pass], a.in, first, count, tile, f.y[pass]);
    for (u32 r = warp_id(); r < count; r += WARPS) finish<MT>(a, f, which, tile, r, first + r);
}

// Add the warps' sums in the order of warps. acc[strip][m][i]: strip of 8 columns, 16 rows each m, i as in mma.cuh.
template <u32 MT> DEVICE void gather_warps(const float (&acc)[4][MT][4], float (*y)[TILE + 1]) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
    for (u32 w = 0; w < WARPS; w++) {
        if (warp_id() == w) {
UNROLL
            for (u32 s = 0; s < 4; s++)
UNROLL
                for (u32 m = 0; m < MT; m++)
UNROLL
                    for (u32 i = 0; i < 4; i++) {
                        float& to = y[m * 16 + g + i / 2 * 8][s * 8 + 2 * t + i % 2];
                        to = w ? to + acc[s][m][i] : acc[s][m][i];
                    }
        }
        __syncthreads();
    }
}
