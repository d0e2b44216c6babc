// Attention of rows over the keys that they see, in pages and in the tail; the law of crates/kernels/src/attend.
//
// A row's keys are walked in blocks of PAGE absolute places. Within a block its visible keys are numbered in place order
// (at one place the page's key first), and key i takes part the same way wherever it lies: lane i forms its score by one
// chain of multiply-adds over the head, its value is the i-th to be added. The softmax is formed over a stretch of eight
// blocks, one a warp; their sums are added in the order of blocks; stretches are joined in order, by the block that walked
// them or, where stretches are shared out, by the last of the blocks that did. So the bits of a row depend on its query
// and the keys that it sees, not on other rows, nor on tiles, nor on where keys lie.
//
// A block holds up to QUERIES queries: some rows of one sequence times heads of one kv head. Keys that all of them see in
// the same order are loaded once for all, else once a row.
//
// geometry: grid (stretches or 1, kv heads * head groups, tiles of rows), THREADS
// bytes:    keys and values of the rows' places once a tile; split: partials [rows, heads, stretches, dim + 2] floats
#include "attention.cuh"
#include "prepare.cuh"

constexpr u32 QUERIES = 8;
constexpr float LOG2E = 1.44269504f;

template <u32 PER> struct Room {
    float q[QUERIES][WARP * PER];
    float acc[QUERIES][WARP * PER];
    float score[QUERIES][STRETCH];
    u32 slots[QUERIES][STRETCH];  // by row of the tile
    u32 seen[QUERIES][WARPS];     // keys of the round, by row of the tile and block
    float max[QUERIES], sum[QUERIES];
    u32 rounds[WARPS];
    u32 flag;
};

// A running softmax of one output number.
struct Running {
    float acc, max, sum;
};
DEVICE void join(Running& all, float acc, float max, float sum) {
    if (max == -INFINITE) return;
    if (all.max == -INFINITE) {
        all = {acc, max, sum};
        return;
    }
    float high = max > all.max ? max : all.max;
    float a = exp_2(all.max - high), b = exp_2(max - high);
    all.acc = fmaf(acc, b, all.acc * a);
    all.sum = fmaf(sum, b, all.sum * a);
    all.max = high + (max - max);  // NaN must not get lost in a comparison
}

// List the keys of a row in a block, those of rank 32 * round and up: one warp. Places go where scores will be.
DEVICE u32 list(const AttendArgs& a, const Row& row, u32 block, u32 round, u32* slots, float* places, u32* rounds) {
    u32 lane = lane_id(), low = block * PAGE, high = low + PAGE;
    u32 first = a.of.window && row.place + 1 > a.of.window ? row.place + 1 - a.of.window : 0;
    u32 mask = 0;
    for (u32 s = row.span + lane; s < row.span_end; s += WARP) {
        u32 from = a.spans[2 * s], to = least(a.spans[2 * s + 1], high);
        from = from > low ? from : low;
        from = from > first ? from : first;
        if (from < to) mask |= (ALL >> (PAGE - (to - from))) << (from - low);
    }
    for (u32 step = 16; step > 0; step /= 2) mask |= __shfl_xor_sync(ALL, mask, step);
    u32 bound = low > first ? low : first;
    int before = 0, within = 0;
    for (u32 e = row.extra + lane; e < row.extra_end; e += WARP) {
        before += a.extras[e].place < bound;
        within += a.extras[e].place >= bound && a.extras[e].place < high;
    }
    u32 extra = row.extra + (u32)warp_sum(before), extras = (u32)warp_sum(within), count = (u32)__popc(mask) + extras;
    *rounds = (count + WARP - 1) / WARP;
    if (mask >> lane & 1u) {
        u32 rank = (u32)__popc(mask & ((1u << lane) - 1u));
        for (u32 e = extra; e < extra + extras; e++) rank += a.extras[e].place < low + lane;
        if (rank / WARP == round) {
            slots[rank % WARP] = a.table[row.page + block] * PAGE + lane;
            places[rank % WARP] = __int_as_float((int)(low + lane));
        }
    }
    for (u32 e = lane; e < extras; e += WARP) {
        Visible key = a.extras[extra + e];
        u32 rank = e + (u32)__popc(mask & (ALL >> (PAGE - 1 - (key.place - low))));
        if (rank / WARP == round) {
            slots[rank % WARP] = key.slot;
            places[rank % WARP] = __int_as_float((int)key.place);
        }
    }
    __syncwarp();
    u32 left = count > round * WARP ? count - round * WARP : 0;
    return least(left, WARP);
}

template <u32 DTYPE, u32 PER> DEVICE void attend(const AttendArgs& a, Room<PER>& room) {
    u32 lane = lane_id(), warp = warp_id();
    if (blockIdx.z >= a.stand->tiles || (a.split && blockIdx.x >= a.stand->stretches)) return;
    u32 per = a.of.heads / a.of.kv_heads, wide = least(per, QUERIES), parts = (per + wide - 1) / wide;
    u32 kv_head = blockIdx.y / parts, within = blockIdx.y % parts * wide, heads = least(wide, per - within);
    u32 head = kv_head * per + within;
    Tile tile = a.tiles[blockIdx.z];
    u32 queries = tile.count * heads;  // query j: row j / heads of the tile, head j % heads
    for (u32 i = threadIdx.x; i < queries * a.of.dim; i += THREADS) {
        u32 j = i / a.of.dim, e = i % a.of.dim;
        room.q[j][e] = a.of.q[((u64)(tile.first + j / heads) * a.of.heads + head + j % heads) * a.of.dim + e];
    }
    Running total[PER];
UNROLL
    for (u32 i = 0; i < PER; i++) total[i] = {0.0f, -INFINITE, 0.0f};
    u32 from = a.split ? blockIdx.x : 0, to = a.split ? from + 1 : a.stand->stretches;
    for (u32 stretch = from; stretch < to; stretch++) {
        // Rounds are joined by themselves first: as where the stretch is another block's.
        Running own[PER];
UNROLL
        for (u32 i = 0; i < PER; i++) own[i] = {0.0f, -INFINITE, 0.0f};
        u32 rounds = 1;
        for (u32 round = 0; round < rounds; round++) {
            __syncthreads();  // the queries are there; the last round is done with the room
            u32 most = 0, same = 1, shared_keys = 0;
            for (u32 r = 0; r < tile.count; r++) {
                const Row& row = a.rows[a.index[tile.first + r]];
                u32 own, at = warp * WARP;
                u32 n = list(a, row, stretch * WARPS + warp, round, room.slots[r] + at, room.score[r * heads] + at, &own);
                most = own > most ? own : most;
                if (lane == 0) room.seen[r][warp] = n;
                if (r == 0) shared_keys = n;
                bool alike = n == shared_keys && (lane >= n || room.slots[r][at + lane] == room.slots[0][at + lane]);
                same &= __ballot_sync(ALL, alike) == ALL;
            }
            if (lane == 0) room.rounds[warp] = most;
            __syncwarp();  // `seen` is there for all lanes
            // Scores, [query][block, key].
            u32 step = same ? tile.count : 1;
            for (u32 r = 0; r < tile.count; r += step) {
                u32 n = same ? shared_keys : room.seen[r][warp], at = warp * WARP + lane, some = step * heads;
                u32 place = (u32)__float_as_int(room.score[r * heads][at]);
                float dot[QUERIES] = {};
                if (lane < n) {
                    u32 slot = room.slots[r][at];
                    u64 page = page_start(kv_head, slot / PAGE, a.of.pages, a.of.dim);
                    for (u32 e = 0; e < a.of.dim; e += 8) {
                        float k[8];
                        kv_load8<DTYPE>(a.of.kv, page + key_at(slot % PAGE, e), k);
UNROLL
                        for (u32 j = 0; j < QUERIES; j++)
                            if (j < some)
UNROLL
                                for (u32 i = 0; i < 8; i++) dot[j] = fmaf(room.q[r * heads + j][e + i], k[i], dot[j]);
                    }
                }
UNROLL
                for (u32 j = 0; j < QUERIES; j++)
                    if (j < some) room.score[r * heads + j][at] = dot[j];
UNROLL_NOT
                for (u32 query = r * heads; query < r * heads + some; query++) {
                    u32 own = a.index[tile.first + query / heads];
                    float s = score_of(a.of, room.score[query][at], place, head + query % heads, own);
                    room.score[query][at] = lane < n ? s * LOG2E : -INFINITE;
                }
            }
            __syncthreads();
            for (u32 w = 0; w < WARPS; w++) rounds = room.rounds[w] > rounds ? room.rounds[w] : rounds;
            // Weights: a warp for each query.
            if (warp < queries) {
                float* score = room.score[warp];
                float max = -INFINITE, sum = 0.0f;
                for (u32 b = 0; b < WARPS; b++) {
                    float s = score[b * WARP + lane];
                    max = s > max || s != s ? s : max;
                }
                max = warp_max(max);
                float high = max == -INFINITE ? 0.0f : max;
                for (u32 b = 0; b < WARPS; b++) {
                    float weight = exp_2(score[b * WARP + lane] - high);
                    score[b * WARP + lane] = weight;
                    sum += weight;
                }
                sum = warp_sum(sum);
                if (lane == 0) room.max[warp] = max, room.sum[warp] = sum;
            }
            __syncthreads();
            // Values: a warp for each block, all queries.
            float acc[QUERIES][PER] = {};
            for (u32 r = 0; r < tile.count; r += step) {
                u32 n = same ? shared_keys : room.seen[r][warp], some = step * heads;
                for (u32 i = 0; i < n; i++) {
                    u32 slot = room.slots[r][warp * WARP + i];
                    u64 page = page_start(kv_head, slot / PAGE, a.of.pages, a.of.dim);
                    float v[PER];
UNROLL
                    for (u32 c = 0; c < PER; c++) {
                        u32 e = lane + c * WARP;
                        v[c] = e < a.of.dim ? kv_load<DTYPE>(a.of.kv, page + value_at(slot % PAGE, e, a.of.dim)) : 0.0f;
                    }
UNROLL
                    for (u32 j = 0; j < QUERIES; j++)
                        if (j >= r * heads && j < r * heads + some) {
                            float weight = room.score[j][warp * WARP + i];
UNROLL
                            for (u32 c = 0; c < PER; c++) acc[j][c] = fmaf(weight, v[c], acc[j][c]);
                        }
                }
            }
            for (u32 w = 0; w < WARPS; w++) {
                if (warp == w)
UNROLL
                    for (u32 j = 0; j < QUERIES; j++)
UNROLL
                        for (u32 c = 0; c < PER; c++) {
                            float& sum = room.acc[j][lane + c * WARP];
                            sum = w ? sum + acc[j][c] : acc[j][c];
                        }
                __syncthreads();
            }
UNROLL
            for (u32 i = 0; i < PER; i++) {
                u32 at = threadIdx.x + i * THREADS, j = at / (WARP * PER);
                join(own[i], room.acc[j][at % (WARP * PER)], j < queries ? room.max[j] : -INFINITE, j < queries ? room.sum[j] : 0.0f);
            }
        }
UNROLL
        for (u32 i = 0; i < PER; i++) join(total[i], own[i].acc, own[i].max, own[i].sum);
    }
    if (a.split && a.stand->stretches > 1) {
        u32 stride = a.of.dim + 2;
        auto partial = [&](u32 j, u32 s) {
            return a.partials + (((u64)(tile.first + j / heads) * a.of.heads + head + j % heads) * gridDim.x + s) * stride;
        };
UNROLL
        for (u32 i = 0; i < PER; i++) {
            u32 at = threadIdx.x + i * THREADS, j = at / (WARP * PER), e = at % (WARP * PER);
            if (j >= queries || e >= a.of.dim) continue;
            float* p = partial(j, blockIdx.x);
            p[e] = total[i].acc;
            if (e == 0) p[a.of.dim] = total[i].max, p[a.of.dim + 1] = total[i].sum;
        }
        if (!last_block(a.counters + blockIdx.z * (a.of.kv_heads * parts) + blockIdx.y, a.stand->stretches, &room.flag)) return;
UNROLL
        for (u32 i = 0; i < PER; i++) {
            u32 at = threadIdx.x + i * THREADS, j = at / (WARP * PER), e = at % (WARP * PER);
            total[i] = {0.0f, -INFINITE, 0.0f};
            if (j >= queries || e >= a.of.dim) continue;
            for (u32 s = 0; s < a.stand->stretches; s++) {
                const float* p = partial(j, s);
                join(total[i], __ldcg(p + e), __ldcg(p + a.of.dim), __ldcg(p + a.of.dim + 1));
            }
        }
    }
UNROLL
    for (u32 i = 0; i < PER; i++) {
        // 32 neighbours of a query lie in one warp.
        u32 at = threadIdx.x + i * THREADS, j = at / (WARP * PER), e = at % (WARP * PER);
        if (j >= queries || e - lane >= a.of.dim) continue;
        u32 row = tile.first + j / heads, col = (head + j % heads) * a.of.dim + e;
        float v = total[i].max == -INFINITE ? 0.0f : total[i].acc * (1.0f / total[i].sum);
        bool fine = true;
        if (a.of.dim % WARP == 0) fine = prepare(a.out, row, col / WARP, v, 0.0f);
        else if (e < a.of.dim) {
            a.out.floats[(u64)row * a.out.kp + col] = v;
            fine = fabsf(v) < INFINITE;
        }
        if (!fine) atomicMin(&a.bad[a.index[row]], a.layer);
    }
}

template <u32 PER> DEVICE void attend_per(const AttendArgs& a) {
    __shared__ Room<PER> room;
    switch (a.of.dtype) {
    case KV_F32: return attend<KV_F32, PER>(a, room);
    case KV_F16: return attend<KV_F16, PER>(a, room);
    default: return attend<KV_BF16, PER>(a, room);
    }
}

KERNEL(attend64, AttendArgs, THREADS) { attend_per<2>(a); }
KERNEL(attend128, AttendArgs, THREADS) { attend_per<4>(a); }
KERNEL(attend256, AttendArgs, THREADS) { attend_per<8>(a); }
