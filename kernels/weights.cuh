// Weights as crates/kernels/src/cuda/pack.rs lays them out. A value is `scale * code - minimum`, scale and minimum of 32
// (Q6_K: 16) values.
//
//   codes: [n / 8][kp / 64][lane] of 16 bytes (Q8, W8) or 8 bytes (Q4, Q4K, Q6K; there followed by a plane of high bits,
//   [n / 8][kp / 64][lane] of 4 bytes). Lane 4g + t has column g and, in each of the two groups, the values 4t..4t+4 and
//   16+4t..16+4t+4.
//   scales: [n / 8][kp / 32][8 columns] of: Q8 f16 d · Q4 f16 d, f16 m · Q4K u8 scale, u8 minimum · Q6K i8, i8 (16 values
//   each) · W8 f32 d, f32 m
//   supers: [n / 8][kp / 256 up][8 columns] of: Q4K f16 d, f16 m · Q6K f16 d
//   floats: [n][kp] of f32, f16, bf16
#pragma once
#include "step.cuh"

// Codes of one lane: signed bytes of values 4t.. (low) and 16+4t.. (high) of both groups.
struct Codes {
    u32 low[2], high[2];
};
DEVICE u32 two_bits(u32 h) { return ((h & 3u) | (h & 0xcu) << 6 | (h & 0x30u) << 12 | (h & 0xc0u) << 18) << 4; }
DEVICE u32 minus32(u32 x) { return ((x | 0x80808080u) - 0x20202020u) ^ 0x80808080u; }

// How the formats differ.
template <u32 FORMAT> struct Format {
    static constexpr bool WIDE = FORMAT == W_Q8 || FORMAT == W_W8;
    static constexpr bool HALVES = FORMAT == W_Q6K;
    static constexpr bool MINIMA = FORMAT == W_Q4 || FORMAT == W_Q4K || FORMAT == W_W8;
};

// `at` = ((n / 8) * (kp / 64) + chunk) * 32 + lane; `all` = n / 8 * kp / 64 * 32, padded n.
template <u32 FORMAT> DEVICE Codes codes_of(const Weights& w, u64 at, u64 all) {
    Codes c;
    if (Format<FORMAT>::WIDE) {
        const uint4_of& v = ((const uint4_of*)w.codes)[at];
        c.low[0] = v.x, c.high[0] = v.y, c.low[1] = v.z, c.high[1] = v.w;
    } else {
        const uint2_of& v = ((const uint2_of*)w.codes)[at];
        c.low[0] = v.x & 0x0f0f0f0fu, c.high[0] = v.x >> 4 & 0x0f0f0f0fu;
        c.low[1] = v.y & 0x0f0f0f0fu, c.high[1] = v.y >> 4 & 0x0f0f0f0fu;
        if (FORMAT == W_Q6K) {
            u32 bits = ((const u32*)(w.codes + all * 8))[at];
            c.low[0] = minus32(c.low[0] | two_bits(bits));
            c.high[0] = minus32(c.high[0] | two_bits(bits >> 8));
            c.low[1] = minus32(c.low[1] | two_bits(bits >> 16));
            c.high[1] = minus32(c.high[1] | two_bits(bits >> 24));
        }
    }
    return c;
}

// Scale of the first half, of the second half, minimum.
struct Scale {
    float s, t, m;
};
// Column `column` of the strip of 8, group `group`.
template <u32 FORMAT> DEVICE Scale scale_of(const Weights& w, u32 strip, u32 group, u32 column) {
    u64 at = ((u64)strip * (w.kp / GROUP) + group) * 8 + column;
    Scale r;
    r.m = 0.0f;
    if (FORMAT == W_Q8) {
        r.s = r.t = from_f16(((const u16*)w.scales)[at]);
    } else if (FORMAT == W_Q4) {
        u32 both = ((const u32*)w.scales)[at];
        r.s = r.t = from_f16((u16)both);
        r.m = from_f16((u16)(both >> 16));
    } else if (FORMAT == W_W8) {
        const uint2_of& v = ((const uint2_of*)w.scales)[at];
        r.s = r.t = __int_as_float((int)v.x);
        r.m = __int_as_float((int)v.y);
    } else {
        u64 super = ((u64)strip * ((w.kp + 255) / 256) + group / 8) * 8 + column;
        u32 pair = ((const u16*)w.scales)[at];
        if (FORMAT == W_Q4K) {
            u32 both = ((const u32*)w.supers)[super];
            r.s = r.t = from_f16((u16)both) * (float)(pair & 255u);
            r.m = from_f16((u16)(both >> 16)) * (float)(pair >> 8);
        } else {
            float d = from_f16(((const u16*)w.supers)[super]);
            r.s = d * (float)(i8)(pair & 255u);
            r.t = d * (float)(i8)(pair >> 8);
        }
    }
    return r;
}

template <u32 FORMAT> DEVICE float quantized_at(const Weights& w, u32 n, u32 k) {
    u32 strip = n / 8, column = n % 8, chunk = k / CHUNK, group = k / GROUP, inner = k % GROUP;
    u64 all = (u64)((w.n + 31) / 32 * 4) * (w.kp / CHUNK) * WARP;
    u64 at = ((u64)strip * (w.kp / CHUNK) + chunk) * WARP + column * 4 + inner % 16 / 4;
    Codes c = codes_of<FORMAT>(w, at, all);
    u32 word = inner < 16 ? c.low[group % 2] : c.high[group % 2];
    Scale s = scale_of<FORMAT>(w, strip, group, column);
    return (inner < 16 ? s.s : s.t) * (float)(i8)(word >> (inner % 4 * 8)) - s.m;
}
// One weight.
DEVICE float weight_at(const Weights& w, u32 n, u32 k) {
    u64 at = (u64)n * w.kp + k;
    switch (w.format) {
    case W_F32: return ((const float*)w.codes)[at];
    case W_F16: return from_f16(((const u16*)w.codes)[at]);
    case W_BF16: return from_bf16(((const u16*)w.codes)[at]);
    case W_Q8: return quantized_at<W_Q8>(w, n, k);
    case W_Q4: return quantized_at<W_Q4>(w, n, k);
    case W_Q4K: return quantized_at<W_Q4K>(w, n, k);
    case W_Q6K: return quantized_at<W_Q6K>(w, n, k);
    default: return quantized_at<W_W8>(w, n, k);
    }
}
