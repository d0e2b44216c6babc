// What every kernel needs: types, number formats, sums in a fixed order. Compiles with nvcc, with NVRTC (no standard
// header) and with a C++ compiler, where host.h plays the part of the GPU.
#pragma once
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define DEVICE __device__ __forceinline__
#define MEMBER static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_NOT _Pragma("unroll 1")
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Args a)
#else
#include "host.h"
#endif

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Loads of 8 and 16 bytes at once.
struct alignas(8) uint2_of {
    u32 x, y;
};
struct alignas(16) uint4_of {
    u32 x, y, z, w;
};

constexpr u32 WARP = 32;
constexpr u32 PAGE = 32;      // places of a page, and of a block of attention
constexpr u32 STRETCH = 256;  // places whose softmax is formed in one go
constexpr u32 GROUP = 32;     // values that share a scale
constexpr u32 CHUNK = 64;     // inputs that a warp takes at a time
constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 ALL = 0xffffffffu;
#define INFINITE __int_as_float(0x7f800000)

DEVICE u32 lane_id() { return threadIdx.x % WARP; }
DEVICE u32 warp_id() { return threadIdx.x / WARP; }
DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }

// 2-byte floats, without the toolkit's headers, which NVRTC has not at hand.
DEVICE float from_bf16(u16 x) { return __int_as_float((int)((u32)x << 16)); }
DEVICE u16 to_bf16(float x) {
    u32 b = (u32)__float_as_int(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
DEVICE float from_f16(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
DEVICE u16 to_f16(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif

// Butterflies: every lane gets the same bits, whatever runs in other warps.
DEVICE float warp_sum(float x) {
    for (u32 step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}
DEVICE int warp_sum(int x) {
    for (u32 step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}
DEVICE float warp_max(float x) {
    for (u32 step = 16; step > 0; step /= 2) {
        float y = __shfl_xor_sync(ALL, x, step);
        x = y > x || y != y ? y : x;  // NaN stays
    }
    return x;
}
// The sum over a block of THREADS threads, in the order of warps. `room` holds WARPS floats.
DEVICE float block_sum(float x, float* room) {
    x = warp_sum(x);
    __syncthreads();
    if (lane_id() == 0) room[warp_id()] = x;
    __syncthreads();
    float sum = room[0];
    for (u32 w = 1; w < WARPS; w++) sum += room[w];
    return sum;
}
// Whether this block is the last of `count` to come here; what the others wrote before is seen. Leaves the counter at
// zero, so that a captured graph can run again. `flag` is shared memory.
DEVICE bool last_block(u32* counter, u32 count, u32* flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 before = atomicAdd(counter, 1u);
        *flag = before == count - 1;
        if (*flag) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return *flag;
}
// Whether this warp is the last of `count` to come here, as last_block is for blocks.
DEVICE bool last_warp(u32* counter, u32 count) {
    __threadfence();
    __syncwarp();
    u32 before = 0;
    if (lane_id() == 0) {
        before = atomicAdd(counter, 1u);
        if (before == count - 1) *counter = 0;
    }
    before = __shfl_sync(ALL, before, 0);
    __threadfence();
    return before == count - 1;
}
// Share `items` out to the last of `blocks` blocks that come here, when all have come: `each(i)` for those of this block.
// No more than SHARE blocks wait, fewer than any GPU runs at once, so that those they wait for can run. `counters`: two
// zeros, which are left so.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
constexpr u32 SHARE = 8;
#else
constexpr u32 SHARE = 1;  // the host runs block after block: none can wait for another
#endif
template <class Each> DEVICE void last_blocks(u32* counters, u32 blocks, u32 items, u32* flag, Each each) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *flag = atomicAdd(counters, 1u);
    __syncthreads();
    u32 some = least(least(items, blocks), SHARE), before = *flag;
    if (before + some < blocks) return;
    if (threadIdx.x == 0)
        while (*(volatile u32*)counters < blocks) {
        }
    __syncthreads();
    __threadfence();
    for (u32 i = before + some - blocks; i < items; i += some) each(i);
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(counters + 1, 1u) == some - 1) counters[0] = counters[1] = 0;
}
