// Products of a mixture of experts: the rows that chose an expert with its matrices.
#include "floats.cuh"
#include "quantized.cuh"

KERNEL(experts16, ProductArgs, THREADS) { expert_product<1, Quantized>(a); }
KERNEL(experts64, ProductArgs, THREADS) { expert_product<4, Quantized>(a); }
KERNEL(expert_lines16, ProductArgs, THREADS) { expert_product<1, Floats>(a); }
KERNEL(expert_lines64, ProductArgs, THREADS) { expert_product<4, Floats>(a); }
