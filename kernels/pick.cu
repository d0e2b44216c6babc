// Reductions of rows of logits where they lie: the largest, the k largest, statistics, asked log-probabilities, a choice.
// Twin: crates/kernels/src/pick. Rows are reduced in pieces of PIECE tokens, joined in order; the last block of `peak` finds
// what top-k and top-p leave of its row, where they are asked for.
// geometry: grid (pieces, rows), THREADS; `peak`, then `pick`
// bytes:    a row of logits twice; three times more for top-k, and for top-p
#include "keep.cuh"

DEVICE u64 block_most(u64 x, u64* room) {
    x = warp_most(x);
    __syncthreads();
    if (lane_id() == 0) room[warp_id()] = x;
    __syncthreads();
    for (u32 w = 0; w < WARPS; w++) x = room[w] > x ? room[w] : x;
    return x;
}
DEVICE double block_sum(double x, double* room) {
    for (u32 step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    __syncthreads();
    if (lane_id() == 0) room[warp_id()] = x;
    __syncthreads();
    x = room[0];
    for (u32 w = 1; w < WARPS; w++) x += room[w];
    return x;
}

// The peak of a row, of its pieces'.
DEVICE Peak peak_of(const PickArgs& a, u32 row, u32 pieces) {
    const Peak* peaks = a.peaks + (u64)row * pieces;
    Peak all = {-INFINITE, -INFINITE, 0, 1};
    for (u32 p = 0; p < pieces; p++) {
        Peak peak = {__ldcg(&peaks[p].max), __ldcg(&peaks[p].second), __ldcg(&peaks[p].id), __ldcg(&peaks[p].sound)};
        bool more = p == 0 || peak.max > all.max;
        float low = more ? all.max : peak.max, high = more ? peak.second : all.second;
        if (more) all.max = peak.max, all.id = peak.id;
        all.second = high > low ? high : low;
        all.sound &= peak.sound;
    }
    return all;
}
DEVICE u32 state_of(const Peak& all) { return !all.sound ? 1 : all.max == -INFINITE ? 2 : 0; }
// The first in order that min-p excludes not; tokens at -inf are always excluded.
DEVICE u64 edge_of(const Ask& ask, float max) {
    float cut = -3.40282347e38f;
    if (ask.min_p > 0.0f) {
        // In the logits' own precision, as the twin has it.
        double edge = (double)max + log((double)ask.min_p) * (double)ask.temperature;
        cut = (float)edge < max ? (float)edge : max;
        cut = cut > -3.40282347e38f ? cut : -3.40282347e38f;
    }
    return order(cut, ALL);
}
DEVICE bool runs_race(const Ask& ask) { return (ask.flags & 1) && ask.temperature > 0.0f; }
DEVICE bool takes_top_k(const Ask& ask, u32 vocab) { return ask.top_k > 0 && ask.top_k < vocab; }
DEVICE bool cuts(const Ask& ask, u32 vocab) { return runs_race(ask) && (takes_top_k(ask, vocab) || ask.top_p < 1.0f); }

KERNEL(peak, PickArgs, THREADS) {
    __shared__ u64 room[WARPS];
    __shared__ float kept[PIECE];
    __shared__ Bins bins;
    __shared__ u32 flag;
    if (blockIdx.y >= a.stand->rows) return;
    u32 row = blockIdx.y, from = blockIdx.x * PIECE, n = least(a.vocab - from, PIECE);
    const float* logits = a.logits + (u64)row * a.vocab + from;
    u64 best = 0, second = 0;
    u32 sound = 1;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float x = logits[i];
        kept[i] = x;
        sound &= x < INFINITE;
        u64 key = order(x, from + i);
        second = key > best ? best : key > second ? key : second;
        best = key > best ? key : best;
    }
    u64 first = block_most(best, room);
    // The holder offers its second.
    u64 next = block_most(best == first ? second : best, room);
    u64 unsound = block_most(sound ? 0 : 1, room);
    u64 at = (u64)row * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0) a.peaks[at] = {logit_of(first), next ? logit_of(next) : -INFINITE, id_of(first), unsound ? 0u : 1u};
    u32 top = a.asks[row].top;
    u64 last = first;
    for (u32 k = 0; k < top; k++) {
        if (threadIdx.x == 0) a.candidates[at * TOP + k] = {last ? id_of(last) : ALL, last ? logit_of(last) : -INFINITE};
        u64 mine = 0;
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            u64 key = order(kept[i], from + i);
            if (key < last && key > mine) mine = key;
        }
        last = block_most(mine, room);
    }
    const Ask& ask = a.asks[row];
    if (!cuts(ask, a.vocab) || !last_block(a.counters + row, gridDim.x, &flag)) return;
    Peak all = peak_of(a, row, gridDim.x);
    if (state_of(all) != 0) return;
    u64 edge = edge_of(ask, all.max);
    logits = a.logits + (u64)row * a.vocab;
    if (takes_top_k(ask, a.vocab)) edge = cut<false>(logits, a.vocab, all.max, ask, edge, bins);
    if (ask.top_p < 1.0f) edge = cut<true>(logits, a.vocab, all.max, ask, edge, bins);
    if (threadIdx.x == 0) a.edges[row] = edge;
}

// SplitMix64, as omnidecode_core::noise.
DEVICE u64 mix(u64 x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}
DEVICE double uniform(u64 key, u64 lane) {
    u64 hash = mix(mix(mix(key) ^ (lane << 17 | lane >> 47)));
    return ((double)(hash >> 11) + 0.5) / 9007199254740992.0;
}

KERNEL(pick, PickArgs, THREADS) {
    __shared__ u64 room[WARPS];
    __shared__ double sums[WARPS];
    __shared__ u32 flag;
    if (blockIdx.y >= a.stand->rows) return;
    u32 row = blockIdx.y, pieces = gridDim.x;
    const Ask& ask = a.asks[row];
    const float* logits = a.logits + (u64)row * a.vocab;
    Peak all = peak_of(a, row, pieces);
    u32 state = state_of(all);
    bool runs = runs_race(ask) && state == 0;
    bool sums_up = (ask.flags & 2) && state == 0;
    u32 from = blockIdx.x * PIECE, n = least(a.vocab - from, PIECE);
    u64 edge = cuts(ask, a.vocab) ? a.edges[row] : edge_of(ask, all.max);
    double sum = 0.0, tilt = 0.0, time = 1e308;
    u32 id = ALL;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float x = logits[from + i];
        if (sums_up) {
            float y = x - all.max;
            y = y > -200.0f ? y : -200.0f;
            double e = (double)exp_e(y);
            sum += e;
            tilt += (double)y * e;
        }
        if (runs && order(x, from + i) >= edge) {
            double weight = exp(((double)x - (double)all.max) / (double)ask.temperature);
            double t = -log(uniform(ask.key, from + i)) / weight;
            if (t < time) time = t, id = from + i;
        }
    }
    sum = block_sum(sum, sums);
    tilt = block_sum(tilt, sums);
    // The smallest time, then the lowest id: times are positive, so their bits are in order.
    u64 bits = (u64)__double_as_longlong(time), first = ~block_most(~bits, room);
    id = id_of(block_most(bits == first ? (u64)(u32)~id : 0, room));
    u64 at = (u64)row * pieces + blockIdx.x;
    if (threadIdx.x == 0) a.pieces[at] = {sum, tilt, __longlong_as_double((long long)first), id, 0};
    if (!last_block(a.counters + row, pieces, &flag)) return;
    // The k largest of the pieces' k largest.
    u64 last = ~0ull;
    for (u32 k = 0; k < ask.top; k++) {
        u64 mine = 0;
        for (u32 i = threadIdx.x; i < pieces * ask.top; i += THREADS) {
            Candidate c = a.candidates[((u64)row * pieces + i / ask.top) * TOP + i % ask.top];
            u64 key = c.id == ALL ? 0 : order(c.logit, c.id);
            if (key < last && key > mine) mine = key;
        }
        last = block_most(mine, room);
        if (threadIdx.x == 0) a.tops[row * TOP + k] = {last ? id_of(last) : ALL, last ? logit_of(last) : -INFINITE};
    }
    if (threadIdx.x != 0) return;
    volatile const Piece* piece = a.pieces + (u64)row * pieces;
    sum = 0.0, tilt = 0.0, time = 1e308, id = all.id;
    for (u32 p = 0; p < pieces; p++) {
        sum += piece[p].sum;
        tilt += piece[p].tilt;
        if (runs && piece[p].time < time) time = piece[p].time, id = piece[p].id;
    }
    float lse = sums_up ? (float)((double)all.max + log(sum)) : 0.0f;
    double entropy = sums_up ? log(sum) - tilt / sum : 0.0;
    for (u32 i = ask.asked; i < ask.asked_end; i++) a.logprobs[i] = logits[a.asked[i]] - lse;
    a.found[row] = {all.id, all.max, all.second, lse, (float)(entropy > 0.0 ? entropy : 0.0), id,
                    state == 0 ? logits[id] - lse : 0.0f, state};
}
