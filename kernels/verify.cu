// Walk a draft tree as long as the target's own choice is among the children (sheet 00, V0 and V1): the twin of
// omnidecode_core::verify::target_match. Siblings in draw order: the first that matches.
// geometry: grid (1), one warp
#include "step.cuh"

KERNEL(verify, VerifyArgs, WARP) {
    u32 count = *a.nodes, at = ALL, length = 0, next;
    for (;;) {
        next = a.found[at == ALL ? 0 : at + 1].choice;
        u32 child = ALL;
        for (u32 base = at == ALL ? 0 : at + 1; base < count && child == ALL; base += WARP) {
            u32 node = base + lane_id();
            bool hit = node < count && a.parents[node] == at && a.tokens[node] == next;
            u32 hits = __ballot_sync(ALL, hit);
            if (hits) child = base + (u32)__ffs((int)hits) - 1;
        }
        if (child == ALL) break;
        if (lane_id() == 0) a.verdict[2 + length] = child;
        length++;
        at = child;
    }
    if (lane_id() == 0) {
        a.verdict[0] = length;
        a.verdict[1] = next;
    }
}
