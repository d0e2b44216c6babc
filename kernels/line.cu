// Products with float weights.
#include "floats.cuh"

KERNEL(line16, ProductArgs, THREADS) { product<1, Floats>(a); }
KERNEL(line32, ProductArgs, THREADS) { product<2, Floats>(a); }
KERNEL(line64, ProductArgs, THREADS) { product<4, Floats>(a); }
