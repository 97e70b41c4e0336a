// CUDA's words on a CPU: a block's threads are fibers, one at a time, so that __syncthreads() means what it means.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static

using std::exp;
using std::log;
using std::sqrt;

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, gridDim, blockDim;
template <class A> static A min(A a, A b) { return b < a ? b : a; }
template <class A> static A max(A a, A b) { return a < b ? b : a; }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<std::vector<char>> stacks;
static unsigned current;
static bool finished, in_fibers;
static std::function<void()> body;

static void __syncthreads() {
    if (!in_fibers) { std::fprintf(stderr, "shim: a barrier in a kernel that was run without fibers\n"); std::abort(); }
    swapcontext(&fibers[current], &scheduler);
}

static void enter() {
    body();
    finished = true;
    swapcontext(&fibers[current], &scheduler);
}

// Every thread of one block up to its next barrier, then the next thread; false where some end and others wait.
static bool run_block_of_fibers(unsigned threads) {
    in_fibers = true;
    fibers.resize(threads);
    stacks.resize(threads);
    for (unsigned t = 0; t < threads; ++t) {
        stacks[t].resize(1 << 15);
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = stacks[t].data();
        fibers[t].uc_stack.ss_size = stacks[t].size();
        fibers[t].uc_link = &scheduler;
        makecontext(&fibers[t], enter, 0);
    }
    for (unsigned round = blockIdx.x;; ++round) {
        unsigned ended = 0;
        for (unsigned i = 0; i < threads; ++i) {
            unsigned t = round % 2 ? threads - 1 - i : i;  // either way, so that a missing barrier shows
            current = t;
            threadIdx.x = t;
            finished = false;
            swapcontext(&scheduler, &fibers[t]);
            ended += finished;
        }
        if (ended == threads) { in_fibers = false; return true; }
        if (ended) return false;
    }
}

static bool run_grid(const int* grid, unsigned threads, bool with_barriers) {
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], 1};
    blockDim = {threads, 1, 1};
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
        for (blockIdx.x = gridDim.x; blockIdx.x-- > 0;) {
            threadIdx = {0, 0, 0};
            if (with_barriers) {
                if (!run_block_of_fibers(threads)) return false;
            } else {
                for (threadIdx.x = threads; threadIdx.x-- > 0;) body();
            }
        }
    return true;
}
