// The frame of a product y[rows, n] = x[rows, k] W[n, k]^T: a block owns 32 outputs of up to 16 * MT rows, its warps share
// K, their sums are added in the order of warps, then the rows are finished. Which inputs a warp takes and in which order
// depends on k alone: a row's bits do not depend on how many rows there are.
//
// geometry: grid (tiles of 32 outputs over all matrices, rows / (16 * MT)), THREADS
// bytes:    the weights once for 16 * MT rows, 32 * kp activations a row from L2
#pragma once
#include "math.cuh"
#include "norm.cuh"
#include "rope.cuh"
#include "route.cuh"

constexpr u32 TILE = 32;

template <u32 MT> struct Frame {
    float y[2][16 * MT][TILE + 1];
};

// A neuron as the requests' clamps leave it: before the gate's product, or (`POST`) the product itself.
template <bool POST> DEVICE float clamped(const ProductArgs& a, u32 step_row, u32 neuron, float v) {
    u32 count = a.clamp_count ? *a.clamp_count : 0;
    for (u32 i = 0; i < count; i++) {
        const Clamp& c = a.clamps[i];
        bool here = c.neuron == neuron && step_row >= c.first && step_row < c.end && a.rows[step_row].place >= c.from;
        if (!here || POST != (c.action == CLAMP_POST)) continue;
        v = c.action == CLAMP_ADD ? v + c.value : c.action == CLAMP_SCALE ? v * c.value : c.value;
    }
    return v;
}

// What happens to 32 outputs of a row, one a lane: `sum(pass)` is what the product left. `row` is where they go, `source` the
// row that runs.
template <class Sum> DEVICE void finish(const ProductArgs& a, u32 which, u32 tile, u32 row, u32 source, Sum sum) {
    u32 lane = lane_id(), col = tile * TILE + lane;
    bool inside = col < a.w[which].n;
    float norm = inverse_rms(a.in, source);
    auto value = [&](u32 m, u32 pass) {
        float v = sum(pass) * norm;
        return a.bias[m] && inside ? v + a.bias[m][col] : v;
    };
    if (a.mode == STORE) {
        float v = value(which, 0) * a.scale;
        if (a.cap > 0.0f) v = a.cap * tanh_of(v / a.cap);
        if (inside) a.out[which][(u64)row * a.w[which].n + col] = v;
        return;
    }
    u32 step_row = a.index[source];
    float z = 0.0f, x = 0.0f;
    if (a.mode == ADD) {
        float* to = a.x + (u64)step_row * a.w[0].n + col;
        if (inside) {
            x = fmaf(a.scale, value(0, 0), *to);
            *to = x;
            z = a.gain ? x * a.gain[col] : x;
        }
    } else if (inside) {
        z = value(0, 0);
        if (a.mode == GATED) z = activate(a.act, z) * clamped<false>(a, step_row, col, value(1, 1));
        else z = activate(a.act, clamped<false>(a, step_row, col, z));
        z = clamped<true>(a, step_row, col, z);
    }
    bool fine = prepare(a.next, row, tile, z, x);
    if (!fine && lane == 0) atomicMin(&a.bad[step_row], a.layer);
}

// What a warp does when it was the last to leave outputs of a row: the rest of a layer's work between two products.
DEVICE void follow(const ProductArgs& a, u32 which, u32 tile, u32 row) {
    if (a.tail == CHOSEN) {
        if (last_warp(a.counters + row, a.ends[0])) choose_experts(a.route, row);
    } else if (a.tail == ROTATED) {
        u32 width = unit_of(a.rope, which), unit = tile * TILE / width, at = unit, from = unit * width;
        for (u32 w = 0; w < which; w++) at += units_of(a.rope, w);
        u32 columns = least(columns_of(a.rope, which) - from, width);
        if (last_warp(a.counters + row * a.rope.units + at, (columns + TILE - 1) / TILE)) rope_unit(a.rope, which, row, unit);
    }
}

// Which rows of activations a block multiplies: neighbours, or those that `of` lists.
struct Neighbours {
    u32 first;
    DEVICE_MEMBER u32 operator()(u32 r) const { return first + r; }
};
struct Listed {
    const u32* of;
    DEVICE_MEMBER u32 operator()(u32 r) const { return of[r]; }
};

// `Inner::multiply(weights, in, rows, count, tile, y)` leaves 32 sums of each row in y, for all threads of the block.
template <u32 MT, class Inner> DEVICE void product(const ProductArgs& a) {
    __shared__ Frame<MT> f;
    __shared__ u32 flag;
    u32 rows = a.stand->rows, first = blockIdx.y * 16 * MT;
    if (first >= rows) return;
    u32 count = least(rows - first, 16 * MT), which = 0, tile = blockIdx.x;
    if (a.mode == STORE) {
        while (tile >= a.ends[which]) which++;
        tile -= which ? a.ends[which - 1] : 0;
    }
    u32 passes = a.mode == GATED ? 2 : 1;
UNROLL_NOT  // one body, not two
    for (u32 pass = 0; pass < passes; pass++)
        Inner::template multiply<MT>(a.w[which + pass], a.in, Neighbours{first}, count, tile, f.y[pass]);
    for (u32 r = warp_id(); r < count; r += WARPS) {
        finish(a, which, tile, first + r, first + r, [&](u32 pass) { return f.y[pass][r][lane_id()]; });
        follow(a, which, tile, first + r);
    }
    if (a.tail == NORMED) {
        u32 blocks = gridDim.x * ((rows + 16 * MT - 1) / (16 * MT));
        last_blocks(a.counters, blocks, rows, &flag, [&](u32 row) { norm_row(a.norm, row, f.y[0][0]); });
    }
}

// The same with the matrices of one expert, of the rows that chose it. Row `r`'s choice `c` is the pair r * per + c: what is
// lifted (GATED, LIFT) is read by row and written by pair. What comes down is read by pair; the warp that leaves the last part
// of a row adds them all, in the order of the experts' ids, and ends the row as a product of its own would.
//
// geometry: grid (tiles of 32 outputs, rows / (16 * MT), experts), THREADS: a block without pairs ends at once
template <u32 MT, class Inner> DEVICE void expert_product(const ProductArgs& a) {
    __shared__ Frame<MT> f;
    __shared__ u32 pairs[16 * MT], sources[16 * MT], votes[WARPS];
    u32 all = a.stand->rows * a.per, expert = blockIdx.z, first = blockIdx.y * 16 * MT, seen = 0;
    bool down = a.shares != nullptr;
    // The expert's pairs in order, those of rank first..first + 16 * MT. All threads agree on `seen`.
    for (u32 base = 0; base < all && seen < first + 16 * MT; base += THREADS) {
        u32 pair = base + threadIdx.x;
        bool mine = pair < all && a.chosen[pair] == expert;
        u32 vote = __ballot_sync(ALL, mine), rank = seen + (u32)__popc(vote & ((1u << lane_id()) - 1u));
        if (lane_id() == 0) votes[warp_id()] = (u32)__popc(vote);
        __syncthreads();
        for (u32 w = 0; w < WARPS; w++) {
            rank += w < warp_id() ? votes[w] : 0;
            seen += votes[w];
        }
        if (mine && rank >= first && rank < first + 16 * MT) {
            pairs[rank - first] = pair;
            sources[rank - first] = down ? pair : pair / a.per;
        }
        __syncthreads();
    }
    if (seen <= first) return;
    u32 count = least(seen - first, 16 * MT), tile = blockIdx.x, passes = a.mode == GATED ? 2 : 1;
UNROLL_NOT
    for (u32 pass = 0; pass < passes; pass++) {
        const Weights w = a.bank[pass * a.experts + expert];
        Inner::template multiply<MT>(w, a.in, Listed{sources}, count, tile, f.y[pass]);
    }
    for (u32 r = warp_id(); r < count; r += WARPS) {
        u32 pair = pairs[r], row = pair / a.per;
        if (!down) {
            finish(a, 0, tile, pair, row, [&](u32 pass) { return f.y[pass][r][lane_id()]; });
            continue;
        }
        u32 n = a.w[0].n, col = tile * TILE + lane_id();
        if (col < n) a.parts[(u64)pair * n + col] = f.y[0][r][lane_id()];
        if (!last_warp(a.arrived + row * gridDim.x + tile, a.per)) continue;
        finish(a, 0, tile, row, row, [&](u32) {
            float sum = 0.0f;
            for (u32 c = row * a.per; c < (row + 1) * a.per; c++)
                if (col < n) sum = fmaf(a.shares[c], __ldcg(a.parts + (u64)c * n + col), sum);
            return sum;
        });
    }
}

// Add the warps' sums in the order of warps. acc[strip][m][i]: strip of 8 columns, 16 rows each m, i as in mma.cuh.
template <u32 MT> DEVICE void gather_warps(const float (&acc)[4][MT][4], float (*y)[TILE + 1]) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
    for (u32 w = 0; w < WARPS; w++) {
        if (warp_id() == w) {
UNROLL
            for (u32 s = 0; s < 4; s++)
UNROLL
                for (u32 m = 0; m < MT; m++)
UNROLL
                    for (u32 i = 0; i < 4; i++) {
                        float& to = y[m * 16 + g + i / 2 * 8][s * 8 + 2 * t + i % 2];
                        to = w ? to + acc[s][m][i] : acc[s][m][i];
                    }
        }
        __syncthreads();
    }
}
