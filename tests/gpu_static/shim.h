// CUDA's words on a CPU: a block's threads are fibers, one at a time, so that __syncthreads() means what it means.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static

using std::exp;
using std::fma;
using std::log;
using std::sqrt;

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, gridDim, blockDim;
template <class A> static A min(A a, A b) { return b < a ? b : a; }
template <class A> static A max(A a, A b) { return a < b ? b : a; }
static unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
static float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

// A fiber runs one thread of block after block. Switches are jumps: swapcontext would call the system each time.
struct Fiber { ucontext_t start; jmp_buf place; bool started; std::vector<char> stack; };
static std::vector<Fiber> fibers;
static jmp_buf home;
static unsigned current;
static bool finished, in_fibers;
static std::function<void()> body;

static void leave() {
    if (!_setjmp(fibers[current].place)) _longjmp(home, 1);
}

static void __syncthreads() {
    if (!in_fibers) { std::fprintf(stderr, "shim: a barrier in a kernel that was run without fibers\n"); std::abort(); }
    leave();
}

static void __syncwarp() { __syncthreads(); }

static void enter() {
    for (;;) {
        body();
        finished = true;
        leave();
    }
}

__attribute__((noinline)) static void resume(unsigned t) {
    current = t;
    threadIdx.x = t;
    finished = false;
    if (_setjmp(home)) return;
    if (fibers[t].started) _longjmp(fibers[t].place, 1);
    fibers[t].started = true;
    setcontext(&fibers[t].start);
}

// Every thread of one block up to its next barrier, then the next thread; false where some end and others wait.
static bool run_block_of_fibers(unsigned threads) {
    if (fibers.empty()) {
        fibers.resize(threads);
        for (Fiber& fiber : fibers) {
            fiber.stack.resize(1 << 15);
            getcontext(&fiber.start);
            fiber.start.uc_stack.ss_sp = fiber.stack.data();
            fiber.start.uc_stack.ss_size = fiber.stack.size();
            makecontext(&fiber.start, enter, 0);
        }
    }
    in_fibers = true;
    unsigned ended = 0;
    for (unsigned round = blockIdx.x; !ended; ++round)
        for (unsigned i = 0; i < threads; ++i) {
            resume(round % 2 ? threads - 1 - i : i);  // either way, so that a missing barrier shows
            ended += finished;
        }
    in_fibers = false;
    if (ended < threads) fibers.clear();
    return ended == threads;
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
