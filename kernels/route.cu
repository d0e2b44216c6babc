// The experts of rows, where the router's product does not end with them itself.
// geometry: grid (rows), one warp
#include "route.cuh"

KERNEL(route, RouteArgs, WARP) {
    if (blockIdx.x < a.stand->rows) choose_experts(a, blockIdx.x);
}
