// Floats with their ids as integers, so that the largest is found by comparing words.
#pragma once
#include "common.cuh"

// Orders floats as integers; larger first, then the lower id. Both zeros are one.
DEVICE u64 order(float x, u32 id) {
    u32 b = (u32)__float_as_int(x + 0.0f);
    b = b >> 31 ? ~b : b | 0x80000000u;
    return (u64)b << 32 | (u32)~id;
}
DEVICE float logit_of(u64 key) {
    u32 b = (u32)(key >> 32);
    return __int_as_float((int)(b >> 31 ? b & 0x7fffffffu : ~b));
}
DEVICE u32 id_of(u64 key) { return ~(u32)key; }
DEVICE u64 warp_most(u64 x) {
    for (u32 step = 16; step > 0; step /= 2) {
        u64 y = __shfl_xor_sync(ALL, x, step);
        x = y > x ? y : x;
    }
    return x;
}
