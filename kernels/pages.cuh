// The store of keys and values of a layer: [kv head][page] of 32 keys, [dim / 8][32][8], so that a lane reads 8 numbers of
// its key at once, and then 32 values, [32][dim].
#pragma once
#include "step.cuh"

constexpr u32 KV_F32 = 0, KV_F16 = 1, KV_BF16 = 2;

DEVICE u64 page_start(u32 head, u32 page, u32 pages, u32 dim) { return ((u64)head * pages + page) * (2 * PAGE * dim); }
DEVICE u32 key_at(u32 lane, u32 e) { return e / 8 * (8 * PAGE) + lane * 8 + e % 8; }
DEVICE u32 value_at(u32 lane, u32 e, u32 dim) { return PAGE * dim + lane * dim + e; }
DEVICE void kv_store(u8* kv, u32 dtype, u64 at, float x) {
    if (dtype == KV_F32) ((float*)kv)[at] = x;
    else ((u16*)kv)[at] = dtype == KV_F16 ? to_f16(x) : to_bf16(x);
}
template <u32 DTYPE> DEVICE float kv_load(const u8* kv, u64 at) {
    if (DTYPE == KV_F32) return ((const float*)kv)[at];
    u16 x = ((const u16*)kv)[at];
    return DTYPE == KV_F16 ? from_f16(x) : from_bf16(x);
}
// Eight neighbours, aligned.
template <u32 DTYPE> DEVICE void kv_load8(const u8* kv, u64 at, float (&x)[8]) {
    if (DTYPE == KV_F32) {
UNROLL
        for (u32 i = 0; i < 8; i++) x[i] = ((const float*)kv)[at + i];
        return;
    }
    const uint4_of v = *(const uint4_of*)((const u16*)kv + at);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
UNROLL
    for (u32 i = 0; i < 8; i++) {
        u16 h = (u16)(words[i / 2] >> (i % 2 * 16));
        x[i] = DTYPE == KV_F16 ? from_f16(h) : from_bf16(h);
    }
}
