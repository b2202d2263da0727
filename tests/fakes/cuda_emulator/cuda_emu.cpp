// Runs a kernel on the CPU: every thread of a block is a fiber, with its own stack, that runs until it has to wait.
//
//     warp 0   lane 0 ----> barrier   lane 1 ----> barrier ... lane 31 ----> barrier
//     warp 2                                                                           lane 0 ----> barrier ...
//     warp 1   ...
//
// A warp runs lane by lane to the next barrier or collective. Which warp is next is drawn at random, so that one may be
// far ahead of another, as far as the barriers let it; a seed gives the same order again. When every warp waits at the
// barrier, it opens.
//
// A kernel without barriers needs no fibers: where the first block met no barrier, the others run as plain calls.
#include "cuda_emu.h"

#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

// Where the linker says that section of shared memory is, if there is any.
extern char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));

namespace emu {

dim3 grid, block, block_index, thread_index;

namespace {

const int MOST = 1024;           // threads of a block
const size_t STACK = 128 << 10;  // bytes of stack for each
enum State { READY, IN_COLLECTIVE, AT_BARRIER, DONE };

struct Fiber {
    ucontext_t context;
    dim3 index;
    State state;
};

Fiber fibers[MOST];
char* stacks;
ucontext_t scheduler;
int running;        // which fiber, or -1 while a block runs as plain calls
bool any_met;  // since the launch began
double exchanged[MOST / 32][32];
void (*kernel)(const void*);
const void* kernel_arguments;
char problem[200];

void fiber_main() {
    kernel(kernel_arguments);
    fibers[running].state = DONE;
    swapcontext(&fibers[running].context, &scheduler);
}

dim3 index_of(unsigned thread) {
    return {thread % block.x, thread / block.x % block.y, thread / (block.x * block.y)};
}

const char* complain(const char* what) {
    snprintf(problem, sizeof problem, "block (%u, %u, %u): %s", block_index.x, block_index.y, block_index.z, what);
    return problem;
}

// Run one warp's lanes until each waits or is done.
const char* run_warp(unsigned warp, unsigned threads, bool backwards) {
    unsigned first = warp * 32, last = std::min(threads, first + 32);
    State common = READY;
    for (unsigned i = first; i < last; i++) {
        running = backwards ? last - 1 - (i - first) : i;
        fibers[running].state = READY;
        thread_index = fibers[running].index;
        swapcontext(&scheduler, &fibers[running].context);
        if (i == first) common = fibers[running].state;
        if (fibers[running].state != common) return complain("lanes of a warp wait at different places");
    }
    return nullptr;
}

const char* run_block_as_fibers(unsigned threads, std::mt19937* random) {
    unsigned warps = (threads + 31) / 32;
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.index = index_of(i);
        fiber.state = READY;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks + i * STACK;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
    for (;;) {
        std::vector<unsigned> ready;
        unsigned waiting = 0, done = 0;
        for (unsigned warp = 0; warp < warps; warp++) {
            State state = fibers[warp * 32].state;
            if (state == AT_BARRIER) waiting++;
            else if (state == DONE) done++;
            else ready.push_back(warp);
        }
        if (done == warps) return nullptr;
        if (ready.empty()) {
            if (done) return complain("some warps wait at a barrier, others have ended");
            for (unsigned i = 0; i < threads; i++) fibers[i].state = READY;
            continue;
        }
        unsigned warp = ready[random ? (*random)() % ready.size() : 0];
        const char* wrong = run_warp(warp, threads, random && (*random)() % 2);
        if (wrong) return wrong;
    }
}

const char* run_block_as_calls(unsigned threads, std::mt19937* random) {
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0);
    if (random) std::shuffle(order.begin(), order.end(), *random);
    running = -1;
    try {
        for (unsigned thread : order) {
            thread_index = index_of(thread);
            kernel(kernel_arguments);
        }
    } catch (Meeting) {
        return complain("meets at a barrier or collective, which the first block did not");
    }
    return nullptr;
}

}  // namespace

void meet(Meeting meeting) {
    if (running < 0) throw meeting;
    any_met = true;
    int me = running;
    fibers[me].state = meeting == BARRIER ? AT_BARRIER : IN_COLLECTIVE;
    swapcontext(&fibers[me].context, &scheduler);
}

double* slots() { return exchanged[running < 0 ? 0 : running / 32]; }
unsigned lane() { return running < 0 ? 0 : running % 32; }

const char* launch(const unsigned* g, const unsigned* b, unsigned seed, long long only_block,
                   void (*body)(const void*), const void* arguments) {
    grid = {g[0], g[1], g[2]};
    block = {b[0], b[1], b[2]};
    kernel = body;
    kernel_arguments = arguments;
    block_index = {0, 0, 0};
    unsigned threads = block.x * block.y * block.z;
    if (threads < 1 || threads > MOST) return complain("has no threads, or more than 1024");
    if (grid.y > 65535 || grid.z > 65535) return complain("a grid has at most 65535 blocks along y and z");
    if (!stacks)  // only pages that are touched will exist
        stacks = (char*)mmap(nullptr, MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stacks == MAP_FAILED) return complain("no memory for the threads' stacks");

    std::mt19937 generator(seed), *random = seed ? &generator : nullptr;
    std::vector<unsigned> order((size_t)grid.x * grid.y * grid.z);
    std::iota(order.begin(), order.end(), 0);
    if (random) std::shuffle(order.begin(), order.end(), generator);
    any_met = false;
    bool first = true;
    for (unsigned k : order) {
        block_index = {k % grid.x, k / grid.x % grid.y, k / grid.x / grid.y};
        if (only_block >= 0 && block_index.x != only_block) continue;
        if (__start_emu_shared) memset(__start_emu_shared, 0xff, __stop_emu_shared - __start_emu_shared);
        const char* wrong = first || any_met ? run_block_as_fibers(threads, random)
                                                  : run_block_as_calls(threads, random);
        if (wrong) return wrong;
        first = false;
    }
    return nullptr;
}

}  // namespace emu
