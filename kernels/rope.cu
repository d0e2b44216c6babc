// Queries and keys of a row: norm of each head (or of the whole projection), rotation, and the row's keys and values go to
// their slot. Angles come from a table that the host made as the CPU twin makes them.
// geometry: grid (rows), THREADS; a warp takes a head
#include "pages.cuh"

DEVICE void rotate(float* x, const RopeArgs& a, const float* angles) {
    u32 half = a.rotary / 2;
    for (u32 i = lane_id(); i < half; i += WARP) {
        u32 at = a.interleaved ? 2 * i : i, other = a.interleaved ? at + 1 : at + half;
        float c = angles[i], s = angles[half + i], u = x[at], v = x[other];
        x[at] = u * c - v * s;
        x[other] = v * c + u * s;
    }
    __syncwarp();
}
// Divide each piece by its root mean square.
DEVICE void norm_pieces(float* x, u32 width, u32 piece, const float* weight, float eps, float* room) {
    if (piece == width) {
        float sum = 0.0f;
        for (u32 c = threadIdx.x; c < width; c += THREADS) sum = fmaf(x[c], x[c], sum);
        float scale = 1.0f / sqrtf(block_sum(sum, room) / (float)width + eps);
        for (u32 c = threadIdx.x; c < width; c += THREADS) x[c] = x[c] * scale * weight[c];
    } else {
        for (u32 p = warp_id(); p < width / piece; p += WARPS) {
            float sum = 0.0f;
            for (u32 c = lane_id(); c < piece; c += WARP) sum = fmaf(x[p * piece + c], x[p * piece + c], sum);
            float scale = 1.0f / sqrtf(warp_sum(sum) / (float)piece + eps);
            for (u32 c = lane_id(); c < piece; c += WARP) x[p * piece + c] = x[p * piece + c] * scale * weight[c];
        }
    }
    __syncthreads();
}

KERNEL(rope, RopeArgs, THREADS) {
    __shared__ float room[WARPS];
    if (blockIdx.x >= a.stand->rows) return;
    const Row& row = a.rows[a.index[blockIdx.x]];
    float* q = a.q + (u64)blockIdx.x * a.heads * a.dim;
    float* k = a.k + (u64)blockIdx.x * a.kv_heads * a.dim;
    const float* v = a.v + (u64)blockIdx.x * a.kv_heads * a.dim;
    if (a.q_norm) norm_pieces(q, a.heads * a.dim, a.q_piece, a.q_norm, a.eps, room);
    if (a.k_norm) norm_pieces(k, a.kv_heads * a.dim, a.k_piece, a.k_norm, a.eps, room);
    const float* angles = a.angles ? a.angles + (u64)least(row.position, a.positions - 1) * a.rotary : nullptr;
    if (angles)
        for (u32 h = warp_id(); h < a.heads; h += WARPS) rotate(q + h * a.dim, a, angles);
    u32 lane = row.slot % PAGE;
    for (u32 h = warp_id(); h < a.kv_heads; h += WARPS) {
        if (angles) rotate(k + h * a.dim, a, angles);
        u64 start = page_start(h, row.slot / PAGE, a.pages, a.dim);
        for (u32 e = lane_id(); e < a.dim; e += WARP) {
            kv_store(a.kv, a.dtype, start + key_at(lane, e), k[h * a.dim + e]);
            kv_store(a.kv, a.dtype, start + value_at(lane, e, a.dim), v[h * a.dim + e]);
        }
    }
}
