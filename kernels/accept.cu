// Copy slots in all layers and heads at once, in order: accepting rows of the tail, copying a page on write.
// geometry: grid (layers * kv heads), THREADS
#include "pages.cuh"

KERNEL(accept, AcceptArgs, THREADS) {
    u64 head = page_start(blockIdx.x, 0, a.pages, a.dim);
    for (u32 i = 0; i < *a.count; i++) {
        u32 from = a.moves[2 * i], to = a.moves[2 * i + 1];
        u64 source = head + (u64)(from / PAGE) * (2 * PAGE * a.dim), target = head + (u64)(to / PAGE) * (2 * PAGE * a.dim);
        for (u32 e = threadIdx.x; e < a.dim; e += THREADS) {
            u64 k[2] = {source + key_at(from % PAGE, e), target + key_at(to % PAGE, e)};
            u64 v[2] = {source + value_at(from % PAGE, e, a.dim), target + value_at(to % PAGE, e, a.dim)};
            if (a.dtype == KV_F32) {
                ((u32*)a.kv)[k[1]] = ((const u32*)a.kv)[k[0]];
                ((u32*)a.kv)[v[1]] = ((const u32*)a.kv)[v[0]];
            } else {
                ((u16*)a.kv)[k[1]] = ((const u16*)a.kv)[k[0]];
                ((u16*)a.kv)[v[1]] = ((const u16*)a.kv)[v[0]];
            }
        }
        __syncthreads();  // a later move may read what this one wrote
    }
}
