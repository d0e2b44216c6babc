// Runs the blocks and threads of host.h. x86-64 changes stacks by hand, others by ucontext.
#include "host.h"
#include <sys/mman.h>
#include <type_traits>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace gpu {
Index thread, block, grid;
Fiber fibers[MOST];
Warp warps[MOST / LANES];
unsigned alive, arrived, generation;
static void (*job)(const void*);
static const void* arguments;

#if defined(__x86_64__)
static void* home;
extern "C" void gpu_switch(void** from, void* to);
asm(R"(
    .text
    .hidden gpu_switch
    .globl gpu_switch
    .type gpu_switch,@function
gpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size gpu_switch,.-gpu_switch
)");
static void leave() { gpu_switch(&fibers[thread.x].top, home); }
static void enter(unsigned t) { gpu_switch(&home, fibers[t].top); }
#else
static ucontext_t home, contexts[MOST];
static void leave() { swapcontext(&contexts[thread.x], &home); }
static void enter(unsigned t) { swapcontext(&home, &contexts[t]); }
#endif

void pass() { leave(); }

static void release(Warp& w) {
    if (w.alive && w.arrived == w.alive) w.arrived = 0, w.generation++;
}
static void open() {
    if (alive && arrived == alive) arrived = 0, generation++;
}
void meet() {
    Warp& w = warps[thread.x / LANES];
    unsigned mine = w.generation;
    w.arrived++;
    release(w);
    while (w.generation == mine) pass();
}
void barrier() {
    unsigned mine = generation;
    arrived++;
    open();
    while (generation == mine) pass();
}
static void main_of_fiber() {
    job(arguments);
    fibers[thread.x].done = true;
    Warp& w = warps[thread.x / LANES];
    w.alive--, alive--;
    release(w), open();
    leave();
    abort();
}

static void prepare(unsigned t) {
    Fiber& f = fibers[t];
    if (!f.stack) {
        f.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (f.stack == MAP_FAILED) abort();
    }
    f.done = false, f.arrivals = 0;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(static_cast<char*>(f.stack) + STACK);
    *--top = nullptr;                                     // keeps the stack as after a call
    *--top = reinterpret_cast<void*>(&main_of_fiber);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f.top = top;
#else
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = f.stack;
    contexts[t].uc_stack.ss_size = STACK;
    makecontext(&contexts[t], main_of_fiber, 0);
#endif
}

void launch(unsigned x, unsigned y, unsigned z, unsigned threads, void (*body)(const void*), const void* args) {
    job = body, arguments = args, grid = {x, y, z};
    for (block.z = 0; block.z < z; block.z++)
        for (block.y = 0; block.y < y; block.y++)
            for (block.x = 0; block.x < x; block.x++) {
                alive = threads, arrived = 0;
                for (unsigned w = 0; w * LANES < threads; w++) warps[w].alive = LANES, warps[w].arrived = 0;
                for (unsigned t = 0; t < threads; t++) prepare(t);
                while (alive)
                    for (unsigned t = 0; t < threads; t++)
                        if (!fibers[t].done) {
                            thread = {t, 0, 0};
                            enter(t);
                        }
            }
}
}  // namespace gpu

// In place of cuBLASLt: the functions that crates/kernels/src/cuda/matmul.rs calls, for products of bf16 with f32 sums, as
// the library's documentation has them. Matrices are stored by columns.
namespace {
struct Desc { int trans_a = 0, trans_b = 0; };
struct Layout { int type; uint64_t rows, cols; int64_t ld; };
struct Algorithm { uint64_t words[8]; size_t workspace; int state; float waves; int reserved[4]; };
enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
float at(const void* p, const Layout& l, uint64_t row, uint64_t col) {
    uint64_t i = col * uint64_t(l.ld) + row;
    if (l.type == 0) return static_cast<const float*>(p)[i];
    uint32_t bits = uint32_t(static_cast<const uint16_t*>(p)[i]) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
bool fits(const Desc& d, const Layout& a, const Layout& b, const Layout& c) {
    uint64_t m = d.trans_a ? a.cols : a.rows, k = d.trans_a ? a.rows : a.cols;
    uint64_t kb = d.trans_b ? b.cols : b.rows, n = d.trans_b ? b.rows : b.cols;
    return a.type == 14 && b.type == 14 && c.type == 0 && m == c.rows && n == c.cols && k == kb && k % 8 == 0;
}
}  // namespace
extern "C" {
int cublasLtCreate(void** handle) { *handle = new int(1); return SUCCESS; }
int cublasLtDestroy(void* handle) { delete static_cast<int*>(handle); return SUCCESS; }
int cublasLtGetProperty(int, int* value) { *value = 0; return SUCCESS; }
int cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
    if (compute != 68 || scale != 0) return NOT_SUPPORTED;
    *desc = new Desc;
    return SUCCESS;
}
int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t size) {
    if (size != 4 || (attribute != 3 && attribute != 4)) return INVALID_VALUE;
    Desc* d = static_cast<Desc*>(desc);
    memcpy(attribute == 3 ? &d->trans_a : &d->trans_b, value, 4);
    return SUCCESS;
}
int cublasLtMatmulDescDestroy(void* desc) { delete static_cast<Desc*>(desc); return SUCCESS; }
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (ld < int64_t(rows)) return INVALID_VALUE;
    *layout = new Layout{type, rows, cols, ld};
    return SUCCESS;
}
int cublasLtMatrixLayoutDestroy(void* layout) { delete static_cast<Layout*>(layout); return SUCCESS; }
int cublasLtMatmulPreferenceCreate(void** preference) { *preference = new uint64_t(0); return SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t size) {
    if (attribute != 1 || size != 8) return INVALID_VALUE;
    memcpy(preference, value, 8);
    return SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(void* preference) { delete static_cast<uint64_t*>(preference); return SUCCESS; }
int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void* c, void*, void*, int, Algorithm* found, int* count) {
    if (!fits(*static_cast<Desc*>(desc), *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(c))) return NOT_SUPPORTED;
    *found = Algorithm{};
    found->words[0] = 42;
    *count = 1;
    return SUCCESS;
}
int cublasLtMatmul(void*, void* desc, const float* alpha, const void* a, void* la, const void* b, void* lb, const float* beta, const void* c,
                   void* lc, void* d, void*, const uint64_t* algorithm, void*, size_t, void*) {
    const Desc& op = *static_cast<Desc*>(desc);
    const Layout &A = *static_cast<Layout*>(la), &B = *static_cast<Layout*>(lb), &C = *static_cast<Layout*>(lc);
    if (!fits(op, A, B, C) || algorithm[0] != 42) return INVALID_VALUE;
    uint64_t k = op.trans_a ? A.rows : A.cols;
    for (uint64_t col = 0; col < C.cols; col++)
        for (uint64_t row = 0; row < C.rows; row++) {
            float sum = 0.0f;
            for (uint64_t i = 0; i < k; i++) sum += (op.trans_a ? at(a, A, i, row) : at(a, A, row, i)) * (op.trans_b ? at(b, B, col, i) : at(b, B, i, col));
            float before = *beta == 0.0f ? 0.0f : *beta * at(c, C, row, col);
            static_cast<float*>(d)[col * uint64_t(C.ld) + row] = *alpha * sum + before;
        }
    return SUCCESS;
}
}
