// What the host and the kernels share, laid out as in crates/kernels/src/cuda/args.rs: a test compares every size.
#pragma once
#include "common.cuh"

// Forms of activations.
constexpr u32 INT8 = 1, BF16 = 2, F32 = 4;
// Formats of weights; crates/kernels/src/cuda/pack.rs writes them.
constexpr u32 W_F32 = 0, W_F16 = 1, W_BF16 = 2, W_Q8 = 3, W_Q4 = 4, W_Q4K = 5, W_Q6K = 6, W_W8 = 7;

// A matrix [n, k]. `kp` is k rounded up to CHUNK, zeros behind k; n is padded to 32 rows of zeros.
struct Weights {
    const u8* codes;
    const u8* scales;
    const u8* supers;
    u32 format, n, k, kp;
};
// Rows of activations [rows, k], ready for a product. The row stride is kp, what lies behind k is zero.
// `codes` are permuted inside a group: lane t of a quad has bytes 8t..8t+8, the values 4t..4t+4 and 16+4t..16+4t+4.
// With `squares` ([rows, kp / 32], sums over 32 values of the squares before the gain), rows are to be divided by the
// root of the mean square: the product does so at its end.
struct Acts {
    i8* codes;
    float* scales;  // [rows, kp / 32, 2]: d, d * sum of codes
    u16* bf16;
    float* floats;
    float* squares;
    u32 k, kp, forms;
    float eps;
};
// The rows that run in a stretch of layers.
struct Stand {
    u32 rows, tiles, stretches, reserved;
};
// A row of the step. Ranges are of the arrays beside it.
struct Row {
    u32 kind, at, count;  // 0 token `at`, 1 embedding at float `at`, 2 mix of `count` from `at`, 3 hidden at float `at`
    u32 position, place, slot;
    u32 span, span_end, extra, extra_end, page, page_end;
};
struct Tile {
    u32 first, count;
};
struct Visible {
    u32 place, slot;
};
struct Mix {
    u32 token;
    float weight;
};
// Added to the score of keys at one place, for rows of `first..end` (compact) and one query head.
struct KeyBias {
    u32 first, end, head, place;
    float add;
};

// A neuron of the feed-forward part that rows of `first..end` (of the step) move, from place `from` on.
struct Clamp {
    u32 first, end, neuron, from, action;
    float value;
};
constexpr u32 CLAMP_SET = 0, CLAMP_ADD = 1, CLAMP_SCALE = 2, CLAMP_POST = 3;

struct UnpackArgs {
    Weights w;
    u16* out;  // [n, kp] of bf16
};
struct EmbedArgs {
    Weights table;
    Acts next;
    const float* positions;  // [count, hidden], or null
    const float* gain;
    const float* vectors;
    const Mix* mixes;
    const Row* rows;
    const u32* index;
    const Stand* stand;
    float* x;
    u32* bad;
    u32 hidden, learned;
    float scale;
    u32 layer;
};
struct NormArgs {
    Acts next;
    const float* x;       // [step rows, k], read through `index`; with `h`, [rows, k] of h is normed instead
    const float* h;
    float* add;           // with h: add[index] += scale * norm(h), and that is what goes on
    const float* weight;  // null: no norm
    const float* bias;
    const float* gain;    // of the norm behind the sum, for `next`
    float* out;           // the normed rows in f32, or null
    const u32* index;
    const Stand* stand;
    u32* bad;
    u32 kind, k, layer;   // kind 0 RMS, 1 layer norm
    float eps, scale;
    u32 stride;           // of h
};
struct RouteArgs {
    const float* scores;  // [rows, experts]
    u32* chosen;          // [rows, per], ascending
    float* shares;        // [rows, per]
    const Stand* stand;
    u32 experts, per, normalize, reserved;
};

struct RopeArgs {
    float* q;
    float* k;
    float* v;
    const float* q_norm;
    const float* k_norm;
    const float* angles;  // [positions, rotary]: cosines, then sines; or null
    u8* kv;               // this layer's keys and values
    const Row* rows;
    const u32* index;
    const Stand* stand;
    u32 heads, kv_heads, dim, rotary;
    u32 q_piece, k_piece;  // what is normed together: a head or all of them
    u32 q_unit, k_unit, v_unit, units;  // columns that a warp does at once: whole heads, tiles, norms; how many in all
    u32 interleaved, dtype, pages, reserved;
    float eps;
    u32 positions;
};
struct ProductArgs {
    Weights w[3];
    const float* bias[3];
    float* out[3];
    Acts in;
    Acts next;
    const float* gain;
    float* x;
    const u32* index;
    const Stand* stand;
    u32* bad;
    const Row* rows;            // with clamps: all rows of the step
    const Clamp* clamps;        // of the layer
    const u32* clamp_count;     // or null
    const float* sums[3];       // `epilogue`: [rows, n] of each matrix
    const Weights* bank;        // `experts*`: matrices of all experts, `w` says their size
    const u32* chosen;          // [rows, per]: the experts of each row
    u32 ends[3];  // tiles of 32 outputs: where each matrix ends
    u32 mode, act, layer;
    float scale, cap;
    u32 per, experts;
    const float* shares;        // `experts*`, what comes down: [rows, per]; the last expert of a row adds them all up
    float* parts;               // [rows, per, n]: what each gives
    u32* arrived;               // a zero for each row and tile
    // What follows when the outputs of a row (ROTATED: of a unit of it) are there.
    u32* counters;              // zeros: of rows or units; NORMED: two
    u32 tail, reserved;
    NormArgs norm;
    RopeArgs rope;
    RouteArgs route;
};
constexpr u32 STORE = 0, ADD = 1, GATED = 2, LIFT = 3;
constexpr u32 NOTHING = 0, NORMED = 1, ROTATED = 2, CHOSEN = 3;

// A layer's queries, its store, and what bends the scores.
struct Attention {
    const float* q;
    const u8* kv;
    const KeyBias* biases;
    const u32* bias_count;
    u32 heads, kv_heads, dim, dtype, pages, window;
    float scale, softcap;
};
struct AttendArgs {
    Attention of;
    Acts out;
    const Row* rows;
    const u32* index;
    const Stand* stand;
    const Tile* tiles;
    const u32* spans;  // start and end
    const Visible* extras;
    const u32* table;
    float* partials;
    u32* counters;
    u32* bad;
    u32 split, layer;
};
// A row whose attention weights are read.
struct Mass {
    u32 row, step_row;  // among those that run, of the step
    u32 key, keys;      // its keys, in place order
    u32 out;            // where its weights go
    u32 before;         // keys of the masses before it in this launch
};
struct MassArgs {
    Attention of;
    const Mass* masses;
    const Visible* keys;
    float* weights;  // [keys of all masses, heads]: heads of one mass one after the other
    float* out;
    u32* counters;   // a zero for each mass
};
struct GatherArgs {
    const float* x;
    const u32* from;  // row of x, row of out
    float* out;
    const u32* count;
    u32 width, reserved;
};

// What is asked of a row of logits.
struct Ask {
    u64 key;
    float temperature, min_p, top_p;
    u32 top_k;                         // 0: all
    u32 top, asked, asked_end, flags;  // flags: 1 choose, 2 statistics
};
struct Peak {
    float max, second;
    u32 id, sound;
};
struct Found {
    u32 argmax;
    float max, second, lse, entropy;
    u32 choice;
    float logprob;
    u32 state;  // 0 fine, 1 not finite, 2 nothing left
};
struct Candidate {
    u32 id;
    float logit;
};
struct Piece {
    double sum, tilt, time;
    u32 id, reserved;
};
struct PickArgs {
    const float* logits;
    const Ask* asks;
    const u32* asked;
    const Stand* stand;
    Peak* peaks;            // [rows, pieces]
    Piece* pieces;          // [rows, pieces]
    Candidate* candidates;  // [rows, pieces, TOP]
    Candidate* tops;        // [rows, TOP]
    float* logprobs;        // of the asked
    Found* found;
    u64* edges;             // [rows]: the last in order that may be chosen, where top-k or top-p cut
    u32* counters;
    u32 vocab, count;
};
constexpr u32 TOP = 64, PIECE = 4096;

struct VerifyArgs {
    const u32* tokens;   // of the nodes
    const u32* parents;  // ALL: the root
    const Found* found;  // row 0 is the root, row i + 1 node i
    const u32* nodes;    // how many
    u32* verdict;        // accepted, next token, then the path
};
struct AcceptArgs {
    u8* kv;
    const u32* moves;  // from, to
    const u32* count;
    u32 dim, dtype, pages, reserved;
};
