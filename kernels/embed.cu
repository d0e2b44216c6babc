// What rows enter with: x = embedding (or a mix of embeddings, or a given vector), ready for the first layer.
// geometry: grid (rows), THREADS
#include "prepare.cuh"
#include "weights.cuh"

KERNEL(embed, EmbedArgs, THREADS) {
    if (blockIdx.x >= a.stand->rows) return;
    u32 step_row = a.index[blockIdx.x];
    const Row& row = a.rows[step_row];
    float* x = a.x + (u64)step_row * a.hidden;
    if (threadIdx.x == 0) a.bad[step_row] = ALL;
    __syncthreads();
    bool fine = true;
    for (u32 tile = warp_id(); tile < (a.hidden + GROUP - 1) / GROUP; tile += WARPS) {
        u32 col = tile * GROUP + lane_id();
        bool inside = col < a.hidden;
        float v = 0.0f;
        if (inside) {
            if (row.kind == 0) {
                v = weight_at(a.table, row.at, col);
            } else if (row.kind == 2) {
                for (u32 i = 0; i < row.count; i++) {
                    const Mix& mix = a.mixes[row.at + i];
                    v += mix.weight * weight_at(a.table, mix.token, col);
                }
            } else {
                v = a.vectors[(u64)row.at + col];
            }
            if (row.kind != 3) {
                if (a.scale != 1.0f) v *= a.scale;
                if (a.positions) v += a.positions[(u64)least(row.position, a.learned - 1) * a.hidden + col];
            }
            x[col] = v;
        }
        fine &= prepare(a.next, blockIdx.x, tile, inside && a.gain ? v * a.gain[col] : v, v);
    }
    if (!fine && lane_id() == 0) atomicMin(&a.bad[step_row], a.layer);
}
