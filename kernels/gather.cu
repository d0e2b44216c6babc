// Rows of the residual stream that are to be read, side by side.
// geometry: grid (rows), THREADS
#include "step.cuh"

KERNEL(gather, GatherArgs, THREADS) {
    if (blockIdx.x >= *a.count) return;
    const float* from = a.x + (u64)a.from[2 * blockIdx.x] * a.width;
    float* to = a.out + (u64)a.from[2 * blockIdx.x + 1] * a.width;
    for (u32 c = threadIdx.x; c < a.width; c += THREADS) to[c] = from[c];
}
