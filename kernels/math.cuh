// exp, tanh, erf: the polynomials of crates/kernels/src/math.rs in explicit multiply-adds, so that every compiler and
// every GPU gives the same bits.
#pragma once
#include "common.cuh"

template <int N> DEVICE float poly(float x, const float (&c)[N]) {
    float y = c[N - 1];
UNROLL
    for (int i = N - 2; i >= 0; i--) y = fmaf(y, x, c[i]);
    return y;
}
DEVICE float power2(int n) { return __int_as_float((n + 127) << 23); }
// x * 2^n, n in -252..=254: in two steps, so that results below the normal range are rounded once.
DEVICE float scale2(float x, float n) {
    int i = (int)n, half = i / 2;
    return x * power2(half) * power2(i - half);
}
// 2^x for x <= 127; 0 below -150.
DEVICE float exp_2(float x) {
    const float c[7] = {1.0f, 6.931472e-1f, 2.4022647e-1f, 5.550329e-2f, 9.618489e-3f, 1.3399931e-3f, 1.534581e-4f};
    x = x > -152.0f ? x : -152.0f;
    float n = rintf(x);
    return scale2(poly(x - n, c), n);
}
// e^x; 0 below -104, infinite above 88.73, NaN stays.
DEVICE float exp_e(float x) {
    const float c[6] = {1.0f, 0.5f, 1.66665e-1f, 4.1667155e-2f, 8.369778e-3f, 1.3888872e-3f};
    if (x != x) return x;
    x = x < -105.0f ? -105.0f : x > 89.0f ? 89.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -(355.0f / 512.0f), x);
    r = fmaf(n, 2.1219444e-4f, r);
    return scale2(fmaf(r, poly(r, c), 1.0f), n);
}
DEVICE float tanh_of(float x) {
    const float c[6] = {-3.3333334e-1f, 1.3333305e-1f, -5.395955e-2f, 2.1770996e-2f, -8.350008e-3f, 2.2989417e-3f};
    float a = fabsf(x);
    if (a < 0.625f) {
        float z = x * x;
        return fmaf(x * z, poly(z, c), x);
    }
    float large = 1.0f - 2.0f / (exp_e(a + a) + 1.0f);
    return x < 0.0f ? -large : large;
}
DEVICE float erf_of(float x) {
    const float s[7] = {1.12837917f, -3.7612626e-1f, 1.1283585e-1f, -2.6853812e-2f, 5.1883277e-3f, -8.010193e-4f, 7.853861e-5f};
    const float l[8] = {-1.8803708e-4f, 1.1295784f, 6.332199e-1f, 1.0841855e-1f, -2.520824e-2f, 4.2045563e-3f, -4.413353e-4f, 2.1686764e-5f};
    float a = fabsf(x);
    if (a < 1.0f) return x * poly(x * x, s);
    float large = 1.0f - exp_e(-poly(a < 4.0f ? a : 4.0f, l));
    return x < 0.0f ? -large : large;
}

enum Act : u32 { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU_SQUARED = 4 };
DEVICE float activate(u32 act, float x) {
    float half = 0.5f * x;
    float positive = x > 0.0f || x != x ? x : 0.0f;
    switch (act) {
    case SILU: return x / (1.0f + exp_e(-x));
    case GELU: return fmaf(half, erf_of(x * 0.70710678f), half);
    case GELU_TANH: return fmaf(half, tanh_of(fmaf(x * x * x, 0.044715f, x) * 0.7978846f), half);
    case RELU: return positive;
    default: return positive * positive;
    }
}
