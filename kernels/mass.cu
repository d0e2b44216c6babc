// Attention weights of some rows, the mean over query heads, of every key that a row sees. Twin: crates/kernels/src/attend,
// weights. The host lists a row's keys; a block takes a head, the last of a row's blocks adds the heads in order.
// geometry: grid (heads, rows that are read), THREADS
// bytes:    the row's keys once a query head
#include "attention.cuh"

template <u32 DTYPE> DEVICE float dot_of(const MassArgs& a, const float* q, u32 kv_head, u32 slot) {
    u64 page = page_start(kv_head, slot / PAGE, a.of.pages, a.of.dim);
    float dot = 0.0f;
    for (u32 e = 0; e < a.of.dim; e += 8) {
        float k[8];
        kv_load8<DTYPE>(a.of.kv, page + key_at(slot % PAGE, e), k);
UNROLL
        for (u32 i = 0; i < 8; i++) dot = fmaf(q[e + i], k[i], dot);
    }
    return dot;
}

KERNEL(mass, MassArgs, THREADS) {
    __shared__ float q[WARP * 8];
    __shared__ float room[WARPS];
    __shared__ u32 flag;
    const Mass m = a.masses[blockIdx.y];
    u32 head = blockIdx.x, kv_head = head / (a.of.heads / a.of.kv_heads);
    for (u32 e = threadIdx.x; e < a.of.dim; e += THREADS) q[e] = a.of.q[((u64)m.row * a.of.heads + head) * a.of.dim + e];
    __syncthreads();
    float* weights = a.weights + ((u64)m.before * a.of.heads + (u64)head * m.keys);
    float max = -INFINITE, sum = 0.0f;
    for (u32 i = threadIdx.x; i < m.keys; i += THREADS) {
        const Visible& key = a.keys[m.key + i];
        float dot = a.of.dtype == KV_F32   ? dot_of<KV_F32>(a, q, kv_head, key.slot)
                    : a.of.dtype == KV_F16 ? dot_of<KV_F16>(a, q, kv_head, key.slot)
                                           : dot_of<KV_BF16>(a, q, kv_head, key.slot);
        float s = score_of(a.of, dot, key.place, head, m.step_row);
        weights[i] = s;
        max = s > max || s != s ? s : max;
    }
    max = warp_max(max);
    __syncthreads();
    if (lane_id() == 0) room[warp_id()] = max;
    __syncthreads();
    for (u32 w = 0; w < WARPS; w++) max = room[w] > max || room[w] != room[w] ? room[w] : max;
    for (u32 i = threadIdx.x; i < m.keys; i += THREADS) {
        weights[i] = exp_e(weights[i] - max);
        sum += weights[i];
    }
    sum = block_sum(sum, room);
    for (u32 i = threadIdx.x; i < m.keys; i += THREADS) weights[i] /= sum;
    if (!last_block(a.counters + blockIdx.y, a.of.heads, &flag)) return;
    weights = a.weights + (u64)m.before * a.of.heads;
    for (u32 i = threadIdx.x; i < m.keys; i += THREADS) {
        float mean = 0.0f;
        for (u32 h = 0; h < a.of.heads; h++) mean = fmaf(1.0f / (float)a.of.heads, __ldcg(weights + (u64)h * m.keys + i), mean);
        a.out[m.out + i] = mean;
    }
}
