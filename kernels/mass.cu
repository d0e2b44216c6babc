// Attention weights of some rows, the mean over query heads, of every key that a row sees. Twin: crates/kernels/src/attend,
// weights. The host lists a row's keys; a block takes a head, the last of a row's blocks adds the heads in order.
// geometry: grid (heads, rows that are read), THREADS
// bytes:    the row's keys once a query head
#include "math.cuh"
#include "pages.cuh"

template <u32 DTYPE> DEVICE float score_of(const MassArgs& a, const float* q, u32 kv_head, u32 slot) {
    u64 page = page_start(kv_head, slot / PAGE, a.pages, a.dim);
    float dot = 0.0f;
    for (u32 e = 0; e < a.dim; e += 8) {
        float k[8];
        kv_load8<DTYPE>(a.kv, page + key_at(slot % PAGE, e), k);
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
    u32 head = blockIdx.x, kv_head = head / (a.heads / a.kv_heads);
    for (u32 e = threadIdx.x; e < a.dim; e += THREADS) q[e] = a.q[((u64)m.row * a.heads + head) * a.dim + e];
    __syncthreads();
    float* weights = a.weights + ((u64)m.before * a.heads + (u64)head * m.keys);
    float max = -INFINITE, sum = 0.0f;
    for (u32 i = threadIdx.x; i < m.keys; i += THREADS) {
        const Visible& key = a.keys[m.key + i];
        float s = a.dtype == KV_F32   ? score_of<KV_F32>(a, q, kv_head, key.slot)
                  : a.dtype == KV_F16 ? score_of<KV_F16>(a, q, kv_head, key.slot)
                                      : score_of<KV_BF16>(a, q, kv_head, key.slot);
        s *= a.scale;
        if (a.softcap > 0.0f) s = a.softcap * tanh_of(s / a.softcap);
        for (u32 b = 0; b < *a.bias_count; b++) {
            const KeyBias& bias = a.biases[b];
            if (bias.place == key.place && bias.head == head && m.step_row >= bias.first && m.step_row < bias.end) s += bias.add;
        }
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
    if (!last_block(a.counters + blockIdx.y, a.heads, &flag)) return;
    weights = a.weights + (u64)m.before * a.heads;
    for (u32 i = threadIdx.x; i < m.keys; i += THREADS) {
        float mean = 0.0f;
        for (u32 h = 0; h < a.heads; h++) mean = fmaf(1.0f / (float)a.heads, __ldcg(weights + (u64)h * m.keys + i), mean);
        a.out[m.out + i] = mean;
    }
}
