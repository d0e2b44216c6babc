// What a product of many rows by the library leaves: biases, norms, gates and residual sums, as the own products end.
// geometry: grid (tiles of 32 outputs, rows / WARPS), THREADS; a warp takes a row
// bytes:    the sums once
#include "product.cuh"

KERNEL(epilogue, ProductArgs, THREADS) {
    u32 row = blockIdx.y * WARPS + warp_id(), which = 0, tile = blockIdx.x;
    if (row >= a.stand->rows) return;
    if (a.mode == STORE) {
        while (tile >= a.ends[which]) which++;
        tile -= which ? a.ends[which - 1] : 0;
    }
    u32 col = tile * TILE + lane_id(), n = a.w[which].n;
    finish(a, which, tile, row, row, [&](u32 pass) { return col < n ? a.sums[which + pass][(u64)row * n + col] : 0.0f; });
}
