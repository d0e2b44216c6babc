// Products with float weights, [n][kp]. bf16: tensor cores, activations rounded to bf16, f32 sums. f32 and f16: one chain of
// multiply-adds a lane, activations in f32: for small models and for references, not tuned.
#pragma once
#include "mma.cuh"
#include "product.cuh"

template <u32 MT, class Rows>
DEVICE void tensor(const Weights& w, const Acts& in, Rows rows, u32 count, u32 tile, float (*y)[TILE + 1]) {
    float acc[4][MT][4] = {};
    u32 g = lane_id() / 4, t = lane_id() % 4;
    for (u32 chunk = warp_id(); chunk < w.kp / CHUNK; chunk += WARPS) {
        u32 at = chunk * CHUNK + t * 16;  // this lane's 16 values: two loads of 16 bytes from each row
        uint4_of b[4][2];
UNROLL
        for (u32 s = 0; s < 4; s++)
UNROLL
            for (u32 i = 0; i < 2; i++)
                b[s][i] = *(const uint4_of*)((const u16*)w.codes + (u64)(tile * TILE + s * 8 + g) * w.kp + at + i * 8);
UNROLL
        for (u32 i = 0; i < 2; i++) {
            uint4_of a[MT][2];
UNROLL
            for (u32 m = 0; m < MT; m++)
UNROLL
                for (u32 j = 0; j < 2; j++) {
                    u32 r = m * 16 + j * 8 + g;
                    uint4_of none = {0, 0, 0, 0};
                    a[m][j] = r < count ? *(const uint4_of*)(in.bf16 + (u64)rows(r) * in.kp + at + i * 8) : none;
                }
UNROLL
            for (u32 s = 0; s < 4; s++)
UNROLL
                for (u32 m = 0; m < MT; m++) {
                    mma_bf16(acc[s][m], a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y, b[s][i].x, b[s][i].y);
                    mma_bf16(acc[s][m], a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w, b[s][i].z, b[s][i].w);
                }
        }
    }
    gather_warps<MT>(acc, y);
}

template <bool HALF, class Rows>
DEVICE void chain(const Weights& w, const Acts& in, Rows rows, u32 count, u32 tile, float (*y)[TILE + 1]) {
    constexpr u32 SOME = 8;
    for (u32 c = 0; c < TILE / WARPS; c++) {
        u32 column = warp_id() * (TILE / WARPS) + c;
        u64 weights = (u64)(tile * TILE + column) * w.kp;
        for (u32 r = 0; r < count; r += SOME) {
            float acc[SOME] = {};
            for (u32 k = lane_id(); k < w.kp; k += WARP) {
                float v = HALF ? from_f16(((const u16*)w.codes)[weights + k]) : ((const float*)w.codes)[weights + k];
UNROLL
                for (u32 i = 0; i < SOME; i++)
                    if (r + i < count) acc[i] = fmaf(v, in.floats[(u64)rows(r + i) * in.kp + k], acc[i]);
            }
UNROLL
            for (u32 i = 0; i < SOME; i++) {
                float sum = warp_sum(acc[i]);
                if (r + i < count && lane_id() == 0) y[r + i][column] = sum;
            }
        }
    }
    __syncthreads();
}

struct Floats {
    template <u32 MT, class Rows>
    MEMBER void multiply(const Weights& w, const Acts& in, Rows rows, u32 count, u32 tile, float (*y)[TILE + 1]) {
        switch (w.format) {
        case W_BF16: return tensor<MT>(w, in, rows, count, tile, y);
        case W_F16: return chain<true>(w, in, rows, count, tile, y);
        default: return chain<false>(w, in, rows, count, tile, y);
        }
    }
};
