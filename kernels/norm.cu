// Norms with a launch of their own: of rows that begin a stretch of layers, of layer norms and norms behind a branch where
// rows are many, of the head.
// geometry: grid (rows), THREADS
#include "norm.cuh"

KERNEL(norm_rows, NormArgs, THREADS) {
    __shared__ float room[WARPS];
    if (blockIdx.x < a.stand->rows) norm_row(a, blockIdx.x, room);
}
