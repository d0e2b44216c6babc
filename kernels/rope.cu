// Queries, keys and values of rows, ready for attention: where the product that gave them does not end so itself.
// geometry: grid (rows), THREADS; a warp takes a unit
#include "rope.cuh"

KERNEL(rope, RopeArgs, THREADS) {
    if (blockIdx.x >= a.stand->rows) return;
    for (u32 which = 0; which < 3; which++)
        for (u32 unit = warp_id(); unit < units_of(a, which); unit += WARPS) rope_unit(a, which, blockIdx.x, unit);
}
