// The part of the GPU, played by a C++ compiler: blocks run one after the other, the threads of a block are fibers that
// change places at barriers and warp collectives. For tests: it finds wrong indices, missing barriers and races between
// barriers' sides only by their results, but it runs the very bodies that the GPU runs.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __shared__ static
#define __restrict__
#define DEVICE static inline
#define MEMBER static inline
#define DEVICE_MEMBER inline
#define UNROLL
#define UNROLL_NOT
#define __ldg(p) (*(p))
#define __ldcg(p) (*(p))

namespace gpu {
struct Index { unsigned x, y, z; };
constexpr unsigned MOST = 1024, STACK = 64 * 1024, LANES = 32;
extern Index thread, block, grid;
struct Fiber { void* stack; void* top; bool done, waits; unsigned arrivals; };
struct Warp { unsigned alive, arrived, generation; uint64_t room[2][LANES][4]; };
extern Fiber fibers[MOST];
extern Warp warps[MOST / LANES];
extern unsigned alive, arrived, generation;
void pass();  // let the others run
void meet();  // all lanes of the warp are here
void barrier();
void launch(unsigned x, unsigned y, unsigned z, unsigned threads, void (*body)(const void*), const void* args);
inline uint64_t (*room())[4] { Warp& w = warps[thread.x / LANES]; return w.room[fibers[thread.x].arrivals++ % 2]; }
template <class T> T exchange(T x, unsigned from) {
    static_assert(sizeof(T) <= 8, "one word");
    auto r = room();
    uint64_t word = 0;
    memcpy(&word, &x, sizeof(T));
    r[thread.x % LANES][0] = word;
    meet();
    memcpy(&x, &r[from % LANES][0], sizeof(T));
    return x;
}
}  // namespace gpu

#define threadIdx gpu::thread
#define blockIdx gpu::block
#define gridDim gpu::grid
static inline void __syncthreads() { gpu::barrier(); }
static inline void __syncwarp() { gpu::room(); gpu::meet(); }
static inline void __threadfence() {}
template <class T> T __shfl_xor_sync(unsigned, T x, unsigned step) { return gpu::exchange(x, (gpu::thread.x % 32) ^ step); }
template <class T> T __shfl_sync(unsigned, T x, unsigned from) { return gpu::exchange(x, from); }
static inline unsigned __ballot_sync(unsigned, bool x) {
    auto r = gpu::room();
    r[gpu::thread.x % 32][0] = x;
    gpu::meet();
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++) bits |= unsigned(r[i][0] & 1) << i;
    return bits;
}
static inline unsigned atomicAdd(unsigned* p, unsigned x) { unsigned y = *p; *p += x; return y; }
static inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) { unsigned long long y = *p; *p += x; return y; }
static inline unsigned atomicMin(unsigned* p, unsigned x) { unsigned y = *p; if (x < y) *p = x; return y; }
static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static inline long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, 8); return y; }
static inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

static inline float from_f16(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
    float x;
    if (e == 0) { x = ldexpf(float(m), -24); uint32_t b; memcpy(&b, &x, 4); b |= sign; memcpy(&x, &b, 4); return x; }
    uint32_t b = sign | (e == 31 ? 0x7f800000u | m << 13 : (e + 112) << 23 | m << 13);
    memcpy(&x, &b, 4);
    return x;
}
static inline uint16_t to_f16(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    uint16_t sign = (b >> 16) & 0x8000;
    float a = fabsf(x);
    if (x != x) return 0x7fff;
    if (a >= 65520.0f) return sign | 0x7c00;
    if (a < 6.103515625e-5f) return sign | uint16_t(nearbyintf(a * 16777216.0f));
    b &= 0x7fffffff;
    b += 0xfff + ((b >> 13) & 1);
    return sign | uint16_t((b - (112u << 23)) >> 13);
}

#define KERNEL(name, Args, threads)                                                                                  \
    static void name(const Args& a);                                                                                 \
    static void body_##name(const void* p) { name(*static_cast<const Args*>(p)); }                                   \
    extern "C" unsigned size_##name() { return sizeof(Args); }                                                       \
    extern "C" void run_##name(const void* p, unsigned x, unsigned y, unsigned z) {                                  \
        gpu::launch(x, y, z, threads, body_##name, p);                                                               \
    }                                                                                                                \
    static void name(const Args& a)
