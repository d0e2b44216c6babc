// A quantized matrix as bf16, [n, kp], for products of many rows by the library. Twin: crates/kernels/src/dtype, rounded.
// geometry: grid (n / 8), THREADS; a warp takes 64 inputs of 8 outputs
// bytes:    the matrix once, 2 * n * kp written
#include "weights.cuh"

template <u32 FORMAT> DEVICE void unpack(const UnpackArgs& a) {
    u32 lane = lane_id(), column = lane / 4, t = lane % 4, strip = blockIdx.x, chunks = a.w.kp / CHUNK;
    u64 all = (u64)((a.w.n + 31) / 32 * 4) * chunks * WARP;
    bool inside = strip * 8 + column < a.w.n;
    u16* row = a.out + (u64)(strip * 8 + column) * a.w.kp;
    for (u32 chunk = warp_id(); chunk < chunks; chunk += WARPS) {
        Codes c = codes_of<FORMAT>(a.w, ((u64)strip * chunks + chunk) * WARP + lane, all);
UNROLL
        for (u32 h = 0; h < 2; h++) {
            Scale s = scale_of<FORMAT>(a.w, strip, chunk * 2 + h, column);
            const u32 words[2] = {c.low[h], c.high[h]};
UNROLL
            for (u32 half = 0; half < 2; half++) {
                u32 two[2] = {0, 0};
UNROLL
                for (u32 i = 0; i < 4; i++) {
                    float v = (half ? s.t : s.s) * (float)(i8)(words[half] >> (i * 8)) - s.m;
                    two[i / 2] |= (u32)to_bf16(v) << (i % 2 * 16);
                }
                if (inside) *(uint2_of*)(row + chunk * CHUNK + h * GROUP + half * 16 + t * 4) = {two[0], two[1]};
            }
        }
    }
}

KERNEL(unpack, UnpackArgs, THREADS) {
    switch (a.w.format) {
    case W_Q8: return unpack<W_Q8>(a);
    case W_Q4: return unpack<W_Q4>(a);
    case W_Q4K: return unpack<W_Q4K>(a);
    case W_Q6K: return unpack<W_Q6K>(a);
    default: return unpack<W_W8>(a);
    }
}
