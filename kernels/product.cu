// Products with quantized weights.
#include "quantized.cuh"

KERNEL(product16, ProductArgs, THREADS) { product<1, Quantized>(a); }
KERNEL(product32, ProductArgs, THREADS) { product<2, Quantized>(a); }
KERNEL(product64, ProductArgs, THREADS) { product<4, Quantized>(a); }
