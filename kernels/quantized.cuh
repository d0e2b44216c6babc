// Products with quantized weights: exact integer products of 32 values on tensor cores, joined in f32 group by group as
// the CPU twin does (crates/kernels/src/product): sum += d_x d_w (x . w) - m_w d_x sum(x).
#pragma once
#include "mma.cuh"
#include "product.cuh"
#include "weights.cuh"

template <u32 FORMAT, u32 MT, class Rows>
DEVICE void strips(const Weights& w, const Acts& in, Rows rows, u32 count, u32 tile, float (*y)[TILE + 1]) {
    float acc[4][MT][4] = {};
    u32 lane = lane_id(), g = lane / 4, t = lane % 4;
    u32 chunks = w.kp / CHUNK, groups = w.kp / GROUP;
    u64 all = (u64)((w.n + 31) / 32 * 4) * chunks * WARP;
    for (u32 chunk = warp_id(); chunk < chunks; chunk += WARPS) {
        Codes codes[4];
UNROLL
        for (u32 s = 0; s < 4; s++) codes[s] = codes_of<FORMAT>(w, ((u64)(tile * 4 + s) * chunks + chunk) * WARP + lane, all);
UNROLL
        for (u32 h = 0; h < 2; h++) {
            u32 group = chunk * 2 + h;
            // Rows one block of 16 at a time: their fragments need not all be in registers.
UNROLL
            for (u32 m = 0; m < MT; m++) {
                uint2_of a[2];
                float d[2], sum[2];
UNROLL
                for (u32 i = 0; i < 2; i++) {
                    u32 r = m * 16 + i * 8 + g;
                    bool here = r < count;
                    u64 row = rows(here ? r : 0);
                    uint2_of none = {0, 0};
                    a[i] = here ? *(const uint2_of*)(in.codes + row * in.kp + group * GROUP + t * 8) : none;
                    const float* scales = in.scales + (row * groups + group) * 2;
                    d[i] = here ? scales[0] : 0.0f;
                    sum[i] = here ? scales[1] : 0.0f;
                }
UNROLL
                for (u32 s = 0; s < 4; s++) {
                    Scale c0 = scale_of<FORMAT>(w, tile * 4 + s, group, 2 * t);
                    Scale c1 = scale_of<FORMAT>(w, tile * 4 + s, group, 2 * t + 1);
                    int p[4] = {0, 0, 0, 0}, q[4] = {0, 0, 0, 0};
                    if (Format<FORMAT>::HALVES) {
                        mma_s8_16(p, a[0].x, a[1].x, codes[s].low[h]);
                        mma_s8_16(q, a[0].y, a[1].y, codes[s].high[h]);
                    } else {
                        mma_s8_32(p, a[0].x, a[1].x, a[0].y, a[1].y, codes[s].low[h], codes[s].high[h]);
                    }
UNROLL
                    for (u32 i = 0; i < 4; i++) {
                        const Scale& c = i % 2 ? c1 : c0;
                        float& to = acc[s][m][i];
                        to = fmaf(d[i / 2] * c.s, (float)p[i], to);
                        if (Format<FORMAT>::HALVES) to = fmaf(d[i / 2] * c.t, (float)q[i], to);
                        if (Format<FORMAT>::MINIMA) to = fmaf(-sum[i / 2], c.m, to);
                    }
                }
            }
        }
    }
    gather_warps<MT>(acc, y);
}

struct Quantized {
    template <u32 MT, class Rows>
    MEMBER void multiply(const Weights& w, const Acts& in, Rows rows, u32 count, u32 tile, float (*y)[TILE + 1]) {
        switch (w.format) {
        case W_Q8: return strips<W_Q8, MT>(w, in, rows, count, tile, y);
        case W_Q4: return strips<W_Q4, MT>(w, in, rows, count, tile, y);
        case W_Q4K: return strips<W_Q4K, MT>(w, in, rows, count, tile, y);
        case W_Q6K: return strips<W_Q6K, MT>(w, in, rows, count, tile, y);
        default: return strips<W_W8, MT>(w, in, rows, count, tile, y);
        }
    }
};
