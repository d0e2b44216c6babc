// Matrix products of one warp: c[16, 8] += a[16, k] b[k, 8], operands spread over the lanes as the hardware wants them.
// With g = lane / 4 and t = lane % 4: a0 and a2 are of row g, a1 and a3 of row g + 8, b of column g, c0 and c1 of row g at
// columns 2t and 2t + 1, c2 and c3 of row g + 8.
#pragma once
#include "common.cuh"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
// 32 signed bytes deep, exact. a0, b0: bytes 4t..4t+4; a2, b1: bytes 16+4t..
DEVICE void mma_s8_32(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// 16 signed bytes deep, exact.
DEVICE void mma_s8_16(int (&c)[4], u32 a0, u32 a1, u32 b0) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}
// 16 bf16 deep, f32 sums. a0, b0: values 2t, 2t + 1; a2, b1: values 8 + 2t, 8 + 2t + 1. How the hardware orders and rounds
// the sum of the 16 products is its own matter, but it is the same for every row, column and neighbour.
DEVICE void mma_bf16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#else
struct Pair { u32 low, high; };
static inline u64 both(u32 low, u32 high) { return (u64)low | (u64)high << 32; }
static inline int dot4(u32 a, u32 b) {
    int sum = 0;
    if (a != 0)
        for (int i = 0; i < 32; i += 8) sum += (int)(i8)(a >> i) * (int)(i8)(b >> i);
    return sum;
}
static inline float dot2(u32 a, u32 b, float sum) {
    sum = fmaf(from_bf16((u16)a), from_bf16((u16)b), sum);
    return fmaf(from_bf16((u16)(a >> 16)), from_bf16((u16)(b >> 16)), sum);
}
// f(result index, words of A of its row (low and high half of k), the same of B, lane of the quad)
template <class F> static inline void quads(u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, F f) {
    auto room = gpu::room();
    u32 lane = lane_id(), g = lane / 4, t = lane % 4;
    room[lane][0] = both(a0, a2);
    room[lane][1] = both(a1, a3);
    room[lane][2] = both(b0, b1);
    gpu::meet();
    for (u32 i = 0; i < 4; i++)
        for (u32 q = 0; q < 4; q++) {
            u64 a = room[g * 4 + q][i / 2], b = room[(2 * t + i % 2) * 4 + q][2];
            f(i, (u32)a, (u32)(a >> 32), (u32)b, (u32)(b >> 32));
        }
}
static inline void mma_s8_32(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    quads(a0, a1, a2, a3, b0, b1, [&](u32 i, u32 al, u32 ah, u32 bl, u32 bh) { c[i] += dot4(al, bl) + dot4(ah, bh); });
}
static inline void mma_s8_16(int (&c)[4], u32 a0, u32 a1, u32 b0) {
    quads(a0, a1, 0, 0, b0, 0, [&](u32 i, u32 al, u32, u32 bl, u32) { c[i] += dot4(al, bl); });
}
static inline void mma_bf16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    quads(a0, a1, a2, a3, b0, b1, [&](u32 i, u32 al, u32 ah, u32 bl, u32 bh) { c[i] = dot2(ah, bh, dot2(al, bl, c[i])); });
}
#endif
