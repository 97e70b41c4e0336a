// Convolution as a matrix product whose columns lie nowhere: each block gathers the pixels that its tile needs
// (implicit GEMM; Chetlur et al. 2014, arXiv:1410.0759, section 3). Arrays are batch-last and C-contiguous. Numbers are
// stored as S, float or Half, and summed up as float.
//
//     forward   y (F, P)  = W (F, K)    X (K, P)      X = im2col(x), K = (c, kh, kw), P = (oh, ow, n)
//     dx        dx (C, Q) = W' (C, L)   D (L, Q)      D = the pixels' outputs in dy, L = (f, kh, kw), Q = (h, w, n)
//     dW        dW (F, K) = dy (F, P)   X^T (P, K)    in shares of P, which a second kernel adds up in their order
//
// A block of 256 threads makes a tile of ROWS x COLUMNS, a thread PART_ROWS x PART_COLUMNS of it; tiles come as -D
// options. The inner dimension passes by in slices of DEPTH: while one is multiplied in shared memory, the next one is
// on its way to registers. -DTENSOR_CORES rounds operands to TF32, which changes no Half, and multiplies by mma.sync,
// from compute capability 8.0 on. No atomics: runs are bit-identical. Indices are 32-bit.

#define WARP 32
#define WARPS (BLOCK / WARP)
#define DEPTH WARPS  // a warp fetches one row of a slice, and reads its tap once

#ifdef TENSOR_CORES
// A warp makes WARP_ROWS x WARP_COLUMNS in fragments of 16 x 8; a lane holds two rows and two columns of each.
#define WARPS_DOWN (ROWS >= 64 ? 2 : 1)
#define WARP_ROWS (ROWS / WARPS_DOWN)
#define WARP_COLUMNS (COLUMNS * WARPS_DOWN / WARPS)
#define PART_ROWS (WARP_ROWS / 8)
#define PART_COLUMNS (WARP_COLUMNS / 4)
#define RUN 2   // neighbouring columns of a thread
#define PAD 8   // floats more than a row of a slice, so that the lanes of a fragment meet different banks
#else
#define PART_ROWS THREAD_ROWS
#define PART_COLUMNS THREAD_COLUMNS
#define THREADS_ACROSS (COLUMNS / THREAD_COLUMNS)
#define THREADS_DOWN (ROWS / THREAD_ROWS)
#define RUN 4
#define PAD 4   // so that lanes along the depth do, when they store
#endif
#define ACROSS (COLUMNS / PART_COLUMNS)  // threads that share a row
static_assert(PART_ROWS * PART_COLUMNS * BLOCK == ROWS * COLUMNS, "a thread for each part of a tile");

struct alignas(16) Four {
    float at[4];
};

// What a thread writes at a time.
struct alignas(sizeof(S) * RUN) Run {
    S at[RUN];
};

// --- geometry --------------------------------------------------------------------------------------------------------

// One direction of a gather: tap j of window i meets the pixel i * stride + j * step + start, where that is inside, and
// the filter's tap filter_start + j * filter_step; its result belongs at out_start + i * out_stride.
struct Axis {
    int size, windows, stride, taps, step, start;
    int filter_start, filter_step;
    int out_size, out_start, out_stride;
};

// outputs = sum over inputs and taps. `output_step` and `input_step` lead through the filters.
struct Convolution {
    Axis h, w;
    int inputs, outputs, batch, kernel_w, output_step, input_step;
};

// An index as three digits: k as (channel, row of taps, column of taps), p as (row of windows, column, image). Adding
// with carries is much cheaper than two divisions.
struct Digits {
    int high, middle, low;
};

struct Radix {
    int middle, low;
    __device__ Digits digits(int i) const { return {i / low / middle, i / low % middle, i % low}; }
    __device__ Digits sum(Digits a, Digits b) const {
        Digits c = {a.high + b.high, a.middle + b.middle, a.low + b.low};
        if (c.low >= low) c.low -= low, ++c.middle;
        if (c.middle >= middle) c.middle -= middle, ++c.high;
        return c;
    }
};

// --- operands --------------------------------------------------------------------------------------------------------
// An operand is a matrix of an outer dimension, that of the result, and the inner one, which is summed over. `outer` is
// computed once for a thread, `begin` and `advance` walk along the inner dimension, and beyond either end there are
// zeros. `is_inner_dense` says along which of the two neighbours in memory lie.

#define BEYOND (-(1 << 30))  // so far outside that adding to it leads to no pixel

struct Pixel {
    int h, w, offset;
};

// im2col(x), never stored.
struct Windows {
    const S* x;
    Convolution g;

    __device__ Radix taps() const { return {g.h.taps, g.w.taps}; }
    __device__ Radix places() const { return {g.w.windows, g.batch}; }

    // Where the taps begin that a window reads in the first channel.
    __device__ Pixel place(Digits p) const {
        if (p.high >= g.h.windows) return {BEYOND, 0, 0};
        int h = p.high * g.h.stride + g.h.start, w = p.middle * g.w.stride + g.w.start;
        return {h, w, (h * g.w.size + w) * g.batch + p.low};
    }

    // How far a tap is from there.
    __device__ Pixel tap(Digits k) const {
        if (k.high >= g.inputs) return {BEYOND, 0, 0};
        int h = k.middle * g.h.step, w = k.low * g.w.step;
        return {h, w, ((k.high * g.h.size + h) * g.w.size + w) * g.batch};
    }

    __device__ float value(Pixel a, Pixel b) const {
        bool inside = (unsigned)(a.h + b.h) < (unsigned)g.h.size && (unsigned)(a.w + b.w) < (unsigned)g.w.size;
        return inside ? (float)x[a.offset + b.offset] : 0.f;
    }
};

// X (K, P): a thread keeps its windows and goes from tap to tap.
struct WindowsByTap : Windows {
    static const bool is_inner_dense = false;
    typedef Pixel Outer;
    typedef Digits Inner;
    __device__ Outer outer(int p) const { return place(places().digits(p)); }
    __device__ Inner begin(int k) const { return taps().digits(k); }
    __device__ Inner advance(Inner k, Inner by) const { return taps().sum(k, by); }
    __device__ float at(Outer p, Inner k) const { return value(p, tap(k)); }
};

// X^T (P, K): a thread keeps its taps and goes from window to window.
struct WindowsByPlace : Windows {
    static const bool is_inner_dense = true;
    typedef Pixel Outer;
    typedef Digits Inner;
    __device__ Outer outer(int k) const { return tap(taps().digits(k)); }
    __device__ Inner begin(int p) const { return places().digits(p); }
    __device__ Inner advance(Inner p, Inner by) const { return places().sum(p, by); }
    __device__ float at(Outer k, Inner p) const { return value(place(p), k); }
};

// W (F, K) of the forward, or W' (C, L) of dx.
struct Filters {
    static const bool is_inner_dense = true;
    const S* weight;
    Convolution g;
    typedef int Outer;  // where a filter begins, -1 beyond the last
    typedef Digits Inner;
    __device__ Radix taps() const { return {g.h.taps, g.w.taps}; }
    __device__ Outer outer(int f) const { return f < g.outputs ? f * g.output_step : -1; }
    __device__ Inner begin(int k) const { return taps().digits(k); }
    __device__ Inner advance(Inner k, Inner by) const { return taps().sum(k, by); }
    __device__ float at(Outer f, Inner k) const {
        int h = g.h.filter_start + k.middle * g.h.filter_step, w = g.w.filter_start + k.low * g.w.filter_step;
        return f >= 0 && k.high < g.inputs ? (float)weight[f + k.high * g.input_step + h * g.kernel_w + w] : 0.f;
    }
};

// dy (F, P) of dW.
struct Rows {
    static const bool is_inner_dense = true;
    const S* data;
    int rows, columns;
    typedef int Outer;  // where a row begins, -1 beyond the last
    typedef int Inner;
    __device__ Outer outer(int row) const { return row < rows ? row * columns : -1; }
    __device__ Inner begin(int column) const { return column; }
    __device__ Inner advance(Inner column, Inner by) const { return column + by; }
    __device__ float at(Outer row, Inner column) const {
        return row >= 0 && column < columns ? (float)data[row + column] : 0.f;
    }
};

// --- tensor cores ----------------------------------------------------------------------------------------------------

#ifdef TENSOR_CORES
// c (16, 8) += a (16, 8) b (8, 8), by a warp. Lane 4 g + t holds
//     a(g, t), a(g + 8, t), a(g, t + 4), a(g + 8, t + 4)     b(t, g), b(t + 4, g)
//     upper: c(g, 2 t), c(g, 2 t + 1)     lower: c(g + 8, 2 t), c(g + 8, 2 t + 1)
// as the PTX ISA says of the fragments of mma.m16n8k8 with .tf32. No GPU has shown that it does: the CPU of the tests
// makes the same product from shared memory.
__device__ void multiply_fragments(const unsigned (&a)[4], const unsigned (&b)[2], float* upper, float* lower) {
#ifdef __CUDACC_RTC__
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __shared__ unsigned held[BLOCK][6];
    unsigned(*warp)[6] = held + threadIdx.x / WARP * WARP;
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) warp[lane][i] = a[i];
    for (int i = 0; i < 2; ++i) warp[lane][4 + i] = b[i];
    __syncwarp();
    for (int k = 0; k < 8; ++k)
        for (int j = 0; j < 2; ++j) {
            float right = __uint_as_float(warp[(2 * t + j) * 4 + k % 4][4 + k / 4]);
            upper[j] += __uint_as_float(warp[4 * g + k % 4][k / 4 * 2]) * right;
            lower[j] += __uint_as_float(warp[4 * g + k % 4][k / 4 * 2 + 1]) * right;
        }
    __syncwarp();
#endif
}

__device__ unsigned bits(const Four* row, int i) { return __float_as_uint(row[i / 4].at[i % 4]); }

// The nearest number of TF32, 10 bits of mantissa, ties away from 0; inf and nan stay.
__device__ float as_operand(float value) {
    unsigned bits = __float_as_uint(value);
    return (bits & 0x7f800000) == 0x7f800000 ? value : __uint_as_float((bits + 0x1000) & ~0x1fffu);
}
#else
__device__ float as_operand(float value) { return value; }
#endif

// --- the product -----------------------------------------------------------------------------------------------------

// A slice of an operand, DEPTH x WIDTH, on its way from global memory through registers to shared memory. A thread
// carries WIDTH / 32 numbers of one depth, and the lanes of a warp stand where memory is dense.
template <class Operand, int WIDTH>
struct Slice {
    static const int EACH = WIDTH < WARP ? 1 : WIDTH / WARP;
    const Operand& from;
    int depth, place;
    typename Operand::Outer outer[EACH];
    typename Operand::Inner inner, step;
    float value[EACH];

    __device__ Slice(const Operand& operand, int first, int k) : from(operand) {
        depth = Operand::is_inner_dense ? threadIdx.x % DEPTH : threadIdx.x / WARP;
        place = Operand::is_inner_dense ? threadIdx.x / DEPTH : threadIdx.x % WARP;
        for (int i = 0; i < EACH; ++i) outer[i] = from.outer(first + place + i * WARP);
        inner = from.begin(k + depth);
        step = from.begin(DEPTH);
    }

    __device__ void fetch() {
#pragma unroll
        for (int i = 0; i < EACH; ++i) value[i] = from.at(outer[i], inner);
        inner = from.advance(inner, step);
    }

    __device__ void store(Four (*shared)[(WIDTH + PAD) / 4]) const {
        if (place >= WIDTH) return;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int column = place + i * WARP;
            shared[depth][column / 4].at[column % 4] = as_operand(value[i]);
        }
    }
};

// A thread's part of the tile, at rows row(i) and columns column(j), and what a slice adds to it; `across` is its number
// among those that share a row, where 0 has the first column.
#ifdef TENSOR_CORES
struct Sums {
    float at[PART_ROWS][PART_COLUMNS];
    __device__ static int row(int i) {
        return threadIdx.x / WARP % WARPS_DOWN * WARP_ROWS + i / 2 * 16 + i % 2 * 8 + threadIdx.x % WARP / 4;
    }
    __device__ static int column(int j) {
        return threadIdx.x / WARP / WARPS_DOWN * WARP_COLUMNS + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
    }
    __device__ static int across() { return threadIdx.x / WARP / WARPS_DOWN * 4 + threadIdx.x % 4; }
    __device__ void add(const Four (*a)[(ROWS + PAD) / 4], const Four (*b)[(COLUMNS + PAD) / 4]) {
        int lane = threadIdx.x % WARP, depth = lane % 4, other = depth + 4;
        unsigned q[PART_COLUMNS / 2][2];
#pragma unroll
        for (int j = 0; j < PART_COLUMNS; j += 2) {
            int n = column(j) - lane % 4 * 2 + lane / 4;
            q[j / 2][0] = bits(b[depth], n);
            q[j / 2][1] = bits(b[other], n);
        }
#pragma unroll
        for (int i = 0; i < PART_ROWS; i += 2) {
            int m = row(i);
            unsigned p[4] = {bits(a[depth], m), bits(a[depth], m + 8), bits(a[other], m), bits(a[other], m + 8)};
            for (int j = 0; j < PART_COLUMNS; j += 2) multiply_fragments(p, q[j / 2], &at[i][j], &at[i + 1][j]);
        }
    }
};
#else
// Rows and columns are Fours that lie THREADS_DOWN and THREADS_ACROSS apart: the threads of a warp read neighbours.
struct Sums {
    float at[PART_ROWS][PART_COLUMNS];
    __device__ static int row(int i) { return (threadIdx.x / THREADS_ACROSS + i / 4 * THREADS_DOWN) * 4 + i % 4; }
    __device__ static int column(int j) { return (threadIdx.x % THREADS_ACROSS + j / 4 * THREADS_ACROSS) * 4 + j % 4; }
    __device__ static int across() { return threadIdx.x % THREADS_ACROSS; }
    __device__ void add(const Four (*a)[(ROWS + PAD) / 4], const Four (*b)[(COLUMNS + PAD) / 4]) {
#pragma unroll
        for (int depth = 0; depth < DEPTH; ++depth) {
            Four p[PART_ROWS / 4], q[PART_COLUMNS / 4];
            for (int i = 0; i < PART_ROWS; i += 4) p[i / 4] = a[depth][row(i) / 4];
            for (int j = 0; j < PART_COLUMNS; j += 4) q[j / 4] = b[depth][column(j) / 4];
            for (int i = 0; i < PART_ROWS; ++i)
                for (int j = 0; j < PART_COLUMNS; ++j)
                    at[i][j] = fmaf(p[i / 4].at[i % 4], q[j / 4].at[j % 4], at[i][j]);
        }
    }
};
#endif

// The tile at (row, column) of left (M, inner) x right (inner, N), summed over inner indices from `first` to `last`.
template <class Left, class Right>
__device__ void multiply(const Left& left, const Right& right, int row, int column, int first, int last, Sums& sums) {
    __shared__ Four a[2][DEPTH][(ROWS + PAD) / 4], b[2][DEPTH][(COLUMNS + PAD) / 4];
    Slice<Left, ROWS> rows(left, row, first);
    Slice<Right, COLUMNS> columns(right, column, first);
#pragma unroll
    for (int i = 0; i < PART_ROWS; ++i)
        for (int j = 0; j < PART_COLUMNS; ++j) sums.at[i][j] = 0;
    rows.fetch();
    columns.fetch();
    rows.store(a[0]);
    columns.store(b[0]);
    __syncthreads();
    int now = 0;
    for (int k = first; k < last; k += DEPTH) {
        bool more = k + DEPTH < last;
        if (more) {
            rows.fetch();
            columns.fetch();
        }
        sums.add(a[now], b[now]);
        if (more) {  // to the other half: all threads have left it when they passed the last barrier
            now = 1 - now;
            rows.store(a[now]);
            columns.store(b[now]);
            __syncthreads();
        }
    }
}

// --- batch norm's sums -----------------------------------------------------------------------------------------------

// Shared memory of a tile's statistics; a row of parts is longer by one, so that neighbours meet different banks.
struct Statistics {
    float centre[ROWS], part[ROWS][ACROSS + 1];
};

// In thread r < ROWS the sum of f(number, centre[r]) over the first `count` columns of row r.
template <class F>
__device__ float row_sum(const Sums& sums, int count, Statistics& shared, F f) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PART_ROWS; ++i) {
        int row = Sums::row(i);
        float sum = 0;
#pragma unroll
        for (int j = 0; j < PART_COLUMNS; ++j)
            if (Sums::column(j) < count) sum += f(sums.at[i][j], shared.centre[row]);
        shared.part[row][Sums::across()] = sum;
    }
    __syncthreads();
    float total = 0;
    for (int k = 0; k < ACROSS && threadIdx.x < ROWS; ++k) total += shared.part[threadIdx.x][k];
    return total;
}

// The mean of each row of a tile, and the sum of the squares of its numbers' differences from that: a large mean costs
// no digits. float sums up shares of both, which overflow only where they do themselves.
__device__ void store_moments(const Sums& sums, int row, int column, const Convolution& g, double* moments) {
    __shared__ Statistics shared;
    int count = min(COLUMNS, g.h.windows * g.w.windows * g.batch - column);
    float share = 1.f / count;
#pragma unroll
    for (int i = 0; i < PART_ROWS; ++i)
        if (Sums::across() == 0) shared.centre[Sums::row(i)] = sums.at[i][0];  // the mean, if they are equal: exactly
    float shift = row_sum(sums, count, shared, [=](float value, float first) { return (value - first) * share; });
    double mean = 0;
    if (threadIdx.x < ROWS) {
        mean = (double)shared.centre[threadIdx.x] + (double)shift;
        shared.centre[threadIdx.x] = (float)mean;
    }
    float square = row_sum(sums, count, shared, [=](float value, float centre) {
        float difference = value - centre;
        return difference * (difference * share);
    });
    int f = row + threadIdx.x;
    if (threadIdx.x >= ROWS || f >= g.outputs) return;
    double rest = mean - (double)shared.centre[threadIdx.x];  // what the float has cut off
    double* mine = moments + 2 * (f * gridDim.x + blockIdx.x);
    mine[0] = mean;
    mine[1] = count * ((double)square - rest * rest);
}

// --- kernels ---------------------------------------------------------------------------------------------------------

// Block (column tile, row tile): the forward, or dx for the pixels of one residue by the stride. `moments` of each row
// and column tile, (F, tiles, 2), where it is not null.
extern "C" __global__ void convolve(const S* x, const S* weight, const S* bias, Convolution g, S* y, double* moments) {
    WindowsByTap windows = {x, g};
    Filters filters = {weight, g};
    int row = blockIdx.y * ROWS, column = blockIdx.x * COLUMNS;
    Sums sums;
    multiply(filters, windows, row, column, 0, g.inputs * g.h.taps * g.w.taps, sums);
#pragma unroll
    for (int i = 0; i < PART_ROWS; ++i) {
        int f = row + Sums::row(i);
        float shift = bias && f < g.outputs ? (float)bias[f] : 0.f;
        for (int j = 0; j < PART_COLUMNS; ++j) sums.at[i][j] = (float)S(sums.at[i][j] + shift);
    }
    bool in_runs = g.batch % RUN == 0;  // then neighbouring columns are images of one window
#pragma unroll
    for (int j = 0; j < PART_COLUMNS; ++j) {
        if (in_runs && j % RUN) continue;
        Digits p = windows.places().digits(column + Sums::column(j));
        if (p.high >= g.h.windows) continue;
        int h = g.h.out_start + p.high * g.h.out_stride, w = g.w.out_start + p.middle * g.w.out_stride;
        for (int i = 0; i < PART_ROWS; ++i) {
            int f = row + Sums::row(i);
            if (f >= g.outputs) continue;
            S* to = y + ((f * g.h.out_size + h) * g.w.out_size + w) * g.batch + p.low;
            if (!in_runs) {
                *to = S(sums.at[i][j]);
                continue;
            }
            Run run;
            for (int e = 0; e < RUN; ++e) run.at[e] = S(sums.at[i][j + e]);
            *(Run*)to = run;
        }
    }
    if (moments) store_moments(sums, row, column, g, moments);
}

// Block (channel): from the moments of its tiles what batch_norm_sums would leave, in one segment: the sums of y - y_0
// and of its square, y_0 being the channel's first number (Chan, Golub and LeVeque 1983, Algorithms for computing the
// sample variance).
extern "C" __global__ void merge_moments(const double* moments, const S* y, int tiles, int positions, double* partial) {
    int f = blockIdx.x;
    double origin = (double)(T)y[f * positions], sum = 0, squares = 0;
    for (int tile = threadIdx.x; tile < tiles; tile += BLOCK) {
        const double* mine = moments + 2 * (f * tiles + tile);
        int count = min(COLUMNS, positions - tile * COLUMNS);
        double shift = mine[0] - origin;
        sum += count * shift;
        squares += mine[1] + count * shift * shift;
    }
    sum = block_sum(sum);
    squares = block_sum(squares);
    if (threadIdx.x != 0) return;
    partial[2 * f] = sum;
    partial[2 * f + 1] = squares;
}

// Block (column tile in a share, row tile): dW, or what `share` columns of dy add to it. `parts` is (shares, F, K).
extern "C" __global__ void weight_gradient(const S* dy, const S* x, Convolution g, int share, float* parts) {
    int positions = g.h.windows * g.w.windows * g.batch, taps = g.inputs * g.h.taps * g.w.taps;
    Rows rows = {dy, g.outputs, positions};
    WindowsByPlace windows = {x, g};
    int across = (taps + COLUMNS - 1) / COLUMNS, part = blockIdx.x / across;
    int row = blockIdx.y * ROWS, column = blockIdx.x % across * COLUMNS;
    Sums sums;
    multiply(rows, windows, row, column, part * share, min(positions, (part + 1) * share), sums);
#pragma unroll
    for (int i = 0; i < PART_ROWS; ++i) {
        int f = row + Sums::row(i);
        for (int j = 0; j < PART_COLUMNS; ++j) {
            int k = column + Sums::column(j);
            if (f < g.outputs && k < taps) parts[(part * g.outputs + f) * taps + k] = sums.at[i][j];
        }
    }
}

extern "C" __global__ void add_shares(const float* parts, int shares, int size, S* out) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= size) return;
    float sum = 0;
    for (int part = 0; part < shares; ++part) sum += parts[part * size + i];
    out[i] = S(sum);
}
