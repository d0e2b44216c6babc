// What stands between a dot product of query and key and the softmax; the law of crates/kernels/src/attend.
#pragma once
#include "math.cuh"
#include "pages.cuh"

// The score of a key at `place`, for a row of the step and a query head: scaled, capped, moved by the request's biases.
DEVICE float score_of(const Attention& of, float dot, u32 place, u32 head, u32 step_row) {
    float s = dot * of.scale;
    if (of.softcap > 0.0f) s = of.softcap * tanh_of(s / of.softcap);
    for (u32 b = 0; b < *of.bias_count; b++) {
        const KeyBias& bias = of.biases[b];
        if (bias.place == place && bias.head == head && step_row >= bias.first && step_row < bias.end) s += bias.add;
    }
    return s;
}
