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
