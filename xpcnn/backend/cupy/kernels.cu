// The CUDA kernels: each does in one launch what a portable primitive of functional/ or optim/ of the same name does
// in several. Numbers are stored as S and computed in as T (numbers.cu). Arrays are batch-last (C, H, W, N) and
// C-contiguous, so neighbouring threads touch neighbouring numbers. No atomics: runs are bit-identical. Indices are
// 32-bit; the callers see to it that sizes fit.

#define FOR_EACH(i, n) for (int i = blockIdx.x * BLOCK + threadIdx.x; i < (n); i = (n))

struct Geometry {
    int channels, height, width, batch;
    int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left;
    int first_row, rows, out_w;  // the output rows first_row to first_row + rows
};

// A thread's sum as two numbers that together have the digits of a double (Knuth's TwoSum): GPUs for graphics do one
// operation on doubles in the time of 64.
struct Sum {
    T high = 0, low = 0;
    __device__ void add(T value) {
        T sum = high + value, taken = sum - high;
        low += (high - (sum - taken)) + (value - taken);
        high = sum;
    }
    // A product, with what its rounding has cut off.
    __device__ void add(T a, T b) {
        T product = a * b;
        add(product);
        low += fma(a, b, -product);
    }
    __device__ double value() const { return (double)high + (double)low; }
    __device__ bool is_finite() const { return high - high == T(0) && low - low == T(0); }
};

// 16 bytes: what a thread loads and stores at a time where rows allow it.
struct alignas(16) Pack {
    S at[16 / sizeof(S)];
};

__device__ bool is_aligned(const void* a, const void* b, const void* c, const void* d) {
    return ((size_t)a | (size_t)b | (size_t)c | (size_t)d) % 16 == 0;
}

// out[i] = f(a[i], b[i], c[i]) over this block's share of a row of n; 0 stands for what is null, `out` may be null.
template <class F>
__device__ void along_row(const S* __restrict__ a, const S* __restrict__ b, const S* __restrict__ c,
                          S* __restrict__ out, int n, F f) {
    const int width = 16 / sizeof(S);
    int first = blockIdx.x * BLOCK + threadIdx.x, step = gridDim.x * BLOCK;
    if (n % width == 0 && is_aligned(a, b, c, out)) {
        for (int i = first; i < n / width; i += step) {
            Pack p = ((const Pack*)a)[i], q = {}, r = {}, result;
            if (b) q = ((const Pack*)b)[i];
            if (c) r = ((const Pack*)c)[i];
            for (int j = 0; j < width; ++j) result.at[j] = f(p.at[j], q.at[j], r.at[j]);
            if (out) ((Pack*)out)[i] = result;
        }
        return;
    }
    for (int i = first; i < n; i += step) {
        T result = f(a[i], b ? (T)b[i] : T(0), c ? (T)c[i] : T(0));
        if (out) out[i] = result;
    }
}

// --- columns ---------------------------------------------------------------------------------------------------------

// A thread for each (channel, row, column, image): it copies every tap of its window.
extern "C" __global__ void fill_columns(const S* x, Geometry g, S* cols) {
    int positions = g.rows * g.out_w * g.batch;
    FOR_EACH(i, g.channels * positions) {
        int n = i % g.batch, place = i / g.batch;
        int ow = place % g.out_w;
        place /= g.out_w;
        int r = place % g.rows, c = place / g.rows;
        int h0 = (g.first_row + r) * g.stride_h - g.top, w0 = ow * g.stride_w - g.left;
        S* to = cols + c * g.kernel_h * g.kernel_w * positions + (r * g.out_w + ow) * g.batch + n;
        for (int kh = 0; kh < g.kernel_h; ++kh) {
            int h = h0 + kh * g.dilation_h;
            for (int kw = 0; kw < g.kernel_w; ++kw, to += positions) {
                int w = w0 + kw * g.dilation_w;
                bool inside = h >= 0 && h < g.height && w >= 0 && w < g.width;
                *to = inside ? x[((c * g.height + h) * g.width + w) * g.batch + n] : S(0);
            }
        }
    }
}

// A thread for each pixel: it gathers the taps that read the pixel, in the order of the taps, on top of what is there
// where `adds`.
extern "C" __global__ void add_columns(const S* cols, Geometry g, S* dx, int adds) {
    int positions = g.rows * g.out_w * g.batch;
    FOR_EACH(i, g.channels * g.height * g.width * g.batch) {
        int n = i % g.batch, place = i / g.batch;
        int w = place % g.width + g.left;
        place /= g.width;
        int h = place % g.height + g.top, c = place / g.height;
        T sum = adds ? T(dx[i]) : T(0);
        int last_row = min(g.first_row + g.rows - 1, h / g.stride_h);
        int last_column = min(g.out_w - 1, w / g.stride_w);
        for (int oh = last_row; oh >= g.first_row; --oh) {
            int kh = (h - oh * g.stride_h) / g.dilation_h;
            if (kh >= g.kernel_h) break;
            if (kh * g.dilation_h != h - oh * g.stride_h) continue;
            for (int ow = last_column; ow >= 0; --ow) {
                int kw = (w - ow * g.stride_w) / g.dilation_w;
                if (kw >= g.kernel_w) break;
                if (kw * g.dilation_w != w - ow * g.stride_w) continue;
                int row = (c * g.kernel_h + kh) * g.kernel_w + kw;
                sum += (T)cols[row * positions + ((oh - g.first_row) * g.out_w + ow) * g.batch + n];
            }
        }
        dx[i] = sum;
    }
}

// --- elementwise, bias, sums of rows ---------------------------------------------------------------------------------

// In each of `rows` rows, the same bias for `inner` numbers out of `pitch`.
extern "C" __global__ void add_bias(S* y, const S* bias, int rows, int inner, int pitch) {
    FOR_EACH(i, rows * inner) {
        int row = i / inner;
        S* at = y + row * pitch + i % inner;
        *at = T(*at) + T(bias[row]);
    }
}

extern "C" __global__ void relu_forward(const S* x, S* out, int size) {
    FOR_EACH(i, size) out[i] = T(x[i]) <= T(0) ? S(0) : x[i];  // nan stays
}

extern "C" __global__ void relu_backward_from(const S* dy, const S* y, S* out, int size) {
    FOR_EACH(i, size) out[i] = T(y[i]) != T(0) ? dy[i] : S(0);
}

// Block (segment, row) sums its share of a row of `a`, or of a * b; a row of several segments needs `finish_rows`.
extern "C" __global__ void row_sums(const S* a, const S* b, double* partial, S* out, int columns) {
    size_t start = (size_t)blockIdx.y * columns;
    Sum thread;
    along_row(a + start, b ? b + start : b, nullptr, nullptr, columns, [&](T p, T q, T) {
        if (b)
            thread.add(p, q);
        else
            thread.add(p);
        return p;
    });
    double sum = thread.value();
    if (!thread.is_finite()) {  // beyond T on the way, or nan in the error's term of an infinite sum
        sum = 0;
        along_row(a + start, b ? b + start : b, nullptr, nullptr, columns, [&](T p, T q, T) {
            sum += b ? (double)p * (double)q : (double)p;
            return p;
        });
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        if (partial)
            partial[blockIdx.y * gridDim.x + blockIdx.x] = sum;
        else
            out[blockIdx.y] = (T)sum;
    }
}

extern "C" __global__ void finish_rows(const double* partial, S* out, int rows, int segments) {
    FOR_EACH(row, rows) {
        double sum = 0;
        for (int s = 0; s < segments; ++s) sum += partial[row * segments + s];
        out[row] = (T)sum;
    }
}

// --- max-pooling -----------------------------------------------------------------------------------------------------

// Value and winning tap of each window: the first of equal ones, and nan before any number. With `rectify`, max(y, 0).
extern "C" __global__ void max_pool_forward(const S* x, Geometry g, S* out, unsigned char* winner, int rectify) {
    FOR_EACH(i, g.channels * g.rows * g.out_w * g.batch) {
        int n = i % g.batch, place = i / g.batch;
        int w0 = place % g.out_w * g.stride_w - g.left;
        place /= g.out_w;
        int h0 = place % g.rows * g.stride_h - g.top, c = place / g.rows;
        T best = log(T(0));  // -inf, for a window that meets padding alone
        int tap = -1;
        for (int kh = 0; kh < g.kernel_h; ++kh) {
            int h = h0 + kh * g.dilation_h;
            if (h < 0 || h >= g.height) continue;
            for (int kw = 0; kw < g.kernel_w; ++kw) {
                int w = w0 + kw * g.dilation_w;
                if (w < 0 || w >= g.width) continue;
                T value = x[((c * g.height + h) * g.width + w) * g.batch + n];
                if (tap < 0 || (best == best && !(value <= best))) {
                    best = value;
                    tap = kh * g.kernel_w + kw;
                }
            }
        }
        out[i] = rectify && best <= T(0) ? T(0) : best;
        if (winner) winner[i] = (unsigned char)tap;
    }
}

// A thread for each pixel: it gathers dy from the windows that it won; of a rectified y, where that is not 0.
extern "C" __global__ void max_pool_backward_from(const S* dy, const S* y, const unsigned char* winner, Geometry g,
                                                  S* dx) {
    FOR_EACH(i, g.channels * g.height * g.width * g.batch) {
        int n = i % g.batch, place = i / g.batch;
        int w = place % g.width + g.left;
        place /= g.width;
        int h = place % g.height + g.top, c = place / g.height;
        T sum = T(0);
        int last_row = min(g.rows - 1, h / g.stride_h), last_column = min(g.out_w - 1, w / g.stride_w);
        for (int oh = last_row; oh >= 0; --oh) {
            int kh = (h - oh * g.stride_h) / g.dilation_h;
            if (kh >= g.kernel_h) break;
            if (kh * g.dilation_h != h - oh * g.stride_h) continue;
            for (int ow = last_column; ow >= 0; --ow) {
                int kw = (w - ow * g.stride_w) / g.dilation_w;
                if (kw >= g.kernel_w) break;
                if (kw * g.dilation_w != w - ow * g.stride_w) continue;
                int o = ((c * g.rows + oh) * g.out_w + ow) * g.batch + n;
                if (winner[o] == kh * g.kernel_w + kw && !(y && T(y[o]) == T(0))) sum += T(dy[o]);
            }
        }
        dx[i] = sum;
    }
}

// --- batch norm ------------------------------------------------------------------------------------------------------
// x is (C, n), and what belongs to a channel is of type T. Block (segment, channel) of a first kernel leaves two partial sums; every block of the second adds a
// channel's partial sums up, in one order, and applies the result to its share. Both do what comes after a batch norm
// as well: the sum with a shortcut's `other`, and ReLU, whose result `y` tells backward where dy is cut off.

// `segments` is at most BLOCK.
__device__ void add_partial(const double* partial, int channel, int segments, double* first, double* second) {
    const double* mine = partial + 2 * (channel * segments + threadIdx.x);
    bool is_there = threadIdx.x < segments;
    *first = block_sum(is_there ? mine[0] : 0);
    *second = block_sum(is_there ? mine[1] : 0);
}

__device__ void store_partial(double first, double second, double* partial) {
    first = block_sum(first);
    second = block_sum(second);
    if (threadIdx.x == 0) {
        partial[2 * (blockIdx.y * gridDim.x + blockIdx.x)] = first;
        partial[2 * (blockIdx.y * gridDim.x + blockIdx.x) + 1] = second;
    }
}

// Sums of x - x_0 and of its square, with x_0 the channel's first value: the variance survives a large mean.
extern "C" __global__ void batch_norm_sums(const S* x, double* partial, int n) {
    const S* row = x + (size_t)blockIdx.y * n;
    T origin = row[0];
    Sum values, squares;
    along_row(row, nullptr, nullptr, nullptr, n, [&](T a, T, T) {
        T value = a - origin;
        values.add(value);
        squares.add(value, value);
        return value;
    });
    double sum = values.value(), sum_of_squares = squares.value();
    if (!values.is_finite() || !squares.is_finite()) {
        sum = sum_of_squares = 0;
        along_row(row, nullptr, nullptr, nullptr, n, [&](T a, T, T) {
            double value = (double)a - (double)origin;
            sum += value;
            sum_of_squares += value * value;
            return a;
        });
    }
    store_partial(sum, sum_of_squares, partial);
}

extern "C" __global__ void batch_norm_train(const S* x, const T* gamma, const T* beta, T eps, const double* partial,
                                            int n, int segments, const S* other, int rectify, S* out, T* centre,
                                            T* offset, T* variance, T* scale, T* running_mean, T* running_var,
                                            T momentum, T unbiased) {
    int c = blockIdx.y;
    size_t start = (size_t)c * n;
    double sum, squares;
    add_partial(partial, c, segments, &sum, &squares);
    double origin = (T)x[start], beyond = sum / n;
    // One T is too coarse for a mean far above the deviations, and one double where T is a double.
    T m = (T)(origin + beyond), rest = (T)((origin - (double)m) + beyond);
    double spread = (squares - sum * (sum / n)) / n;
    if (spread < 0) spread = 0;
    double variance_and_eps = spread + (double)eps;  // where that is inf, s is nan, not 0
    T v = (T)spread, s = (T)(sqrt(variance_and_eps) / variance_and_eps);
    T factor = gamma[c] * s, shift = beta[c];
    along_row(x + start, other ? other + start : other, nullptr, out + start, n, [=](T a, T b, T) {
        T y = (a - m - rest) * factor + shift;
        if (other) y += b;
        return rectify && y <= T(0) ? T(0) : y;
    });
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        centre[c] = m;
        offset[c] = rest;
        variance[c] = v;
        scale[c] = s;
        if (running_mean) {
            running_mean[c] = running_mean[c] * (T(1) - momentum) + (m + rest) * momentum;
            running_var[c] = running_var[c] * (T(1) - momentum) + v * unbiased * momentum;
        }
    }
}

// Sums of dy and of dy * (x - mean), and dy itself to `passed` where that is not null.
extern "C" __global__ void batch_norm_backward_sums(const S* dy, const S* x, const S* y, const T* centre,
                                                    const T* offset, S* passed, double* partial, int n) {
    size_t start = (size_t)blockIdx.y * n;
    T m = centre[blockIdx.y], rest = offset[blockIdx.y];
    Sum slopes, products;
    along_row(dy + start, x + start, y ? y + start : y, passed ? passed + start : passed, n, [&](T slope, T a, T b) {
        if (y && b == T(0)) slope = T(0);
        slopes.add(slope);
        products.add(slope, a - m - rest);
        return slope;
    });
    double sum = slopes.value(), sum_of_products = products.value();
    if (!slopes.is_finite() || !products.is_finite()) {
        sum = sum_of_products = 0;
        along_row(dy + start, x + start, y ? y + start : y, nullptr, n, [&](T slope, T a, T b) {
            if (y && b == T(0)) slope = T(0);
            sum += (double)slope;
            sum_of_products += (double)slope * (double)(a - m - rest);
            return slope;
        });
    }
    store_partial(sum, sum_of_products, partial);
}

extern "C" __global__ void batch_norm_train_backward(const S* dy, const S* x, const S* y, const T* centre,
                                                     const T* offset, const T* scale, const T* gamma,
                                                     const double* partial, int n, int segments, S* out, T* dgamma,
                                                     T* dbeta) {
    int c = blockIdx.y;
    size_t start = (size_t)c * n;
    double sum, products;
    add_partial(partial, c, segments, &sum, &products);
    T m = centre[c], rest = offset[c], s = scale[c], db = (T)sum, dg = (T)products * s;
    T slope = dg * s / n, shift = db / n, factor = gamma[c] * s;
    along_row(dy + start, x + start, y ? y + start : y, out + start, n, [=](T grad, T a, T b) {
        if (y && b == T(0)) grad = T(0);
        return (grad - (a - m - rest) * slope - shift) * factor;
    });
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        dgamma[c] = dg;
        dbeta[c] = db;
    }
}

// --- dropout ---------------------------------------------------------------------------------------------------------

// MurmurHash3's finaliser, as in functional/dropout.py: the masks agree bit for bit.
__device__ unsigned mix(unsigned h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

extern "C" __global__ void dropout_forward(const S* x, const unsigned* key, unsigned first, unsigned threshold, T scale,
                                           S* out, bool* kept, int size) {
    unsigned stream = mix(key[0] * 0x9E3779B9u);
    FOR_EACH(i, size) {
        bool keep = mix((first + (unsigned)i) ^ stream) >= threshold;
        kept[i] = keep;
        out[i] = keep ? T(x[i]) * scale : T(0);
    }
}

extern "C" __global__ void apply_mask(const S* values, const bool* kept, T scale, S* out, int size) {
    FOR_EACH(i, size) out[i] = kept[i] ? T(values[i]) * scale : T(0);
}

// --- softmax cross-entropy -------------------------------------------------------------------------------------------

// Class numbers of 1, 2, 4 or 8 bytes, in which numbers below 0 are huge.
__device__ unsigned long long class_number(const unsigned char* labels, int bytes, int n) {
    if (bytes == 8) return ((const unsigned long long*)labels)[n];
    if (bytes == 4) return ((const unsigned*)labels)[n];
    if (bytes == 2) return ((const unsigned short*)labels)[n];
    return labels[n];
}

// A thread for each sample, over the classes of logits (K, N). The target is an array, or of each label's class `on` and
// `off` more than 0 everywhere; `holds` becomes false for a label that is no class. Several blocks leave partial sums.
extern "C" __global__ void softmax_cross_entropy(const T* logits, const T* target, const unsigned char* labels,
                                                 int bytes, T on, T off, T scale, int classes, int samples,
                                                 double* partial, T* loss, T* dlogits, bool* holds) {
    double sum = 0;
    for (int n = blockIdx.x * BLOCK + threadIdx.x; n < samples; n += gridDim.x * BLOCK) {
        T top = logits[n], total = T(0);
        for (int k = 1; k < classes; ++k) {
            T value = logits[k * samples + n];
            if (!(value <= top) && top == top) top = value;  // nan stays
        }
        for (int k = 0; k < classes; ++k) {
            T power = exp(logits[k * samples + n] - top);
            dlogits[k * samples + n] = power;
            total += power;
        }
        T log_total = log(total), own = T(0);
        unsigned long long label = labels ? class_number(labels, bytes, n) : 0;
        if (labels && label >= (unsigned long long)classes) *holds = false;
        for (int k = 0; k < classes; ++k) {
            int i = k * samples + n;
            T probability = target ? target[i] : (label == (unsigned long long)k ? on : T(0)) + off;
            if (probability != T(0)) own += (logits[i] - top - log_total) * probability;  // 0 * inf is nan
            dlogits[i] = (dlogits[i] / total - probability) * scale;
        }
        sum += (double)own;
    }
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    if (partial)
        partial[blockIdx.x] = sum * -(double)scale;
    else
        loss[0] = (T)(sum * -(double)scale);
}

// --- the end of a training step --------------------------------------------------------------------------------------

// One block. The row of the ledger: loss, samples whose highest logit (K, N) is their label's, the sum of all gradients
// (from parts of it); `ok` says whether loss and sum are finite, with `sticky` for good.
extern "C" __global__ void judge(const T* loss, const double* partial, int parts, const T* logits,
                                 const unsigned char* labels, int bytes, int classes, int samples, double* row,
                                 bool* ok, int sticky) {
    double slope = 0, hits = 0;
    for (int i = threadIdx.x; i < parts; i += BLOCK) slope += partial[i];
    for (int n = threadIdx.x; n < samples; n += BLOCK) {
        T best = logits[n];
        int first = 0;
        for (int k = 1; k < classes; ++k) {
            T value = logits[k * samples + n];
            if (!(value <= best) && best == best) {
                best = value;
                first = k;
            }
        }
        if (class_number(labels, bytes, n) == (unsigned long long)first) hits += 1;
    }
    slope = block_sum(slope);
    hits = block_sum(hits);
    if (threadIdx.x != 0) return;
    double both = (double)loss[0] + slope;
    row[0] = (double)loss[0];
    row[1] = hits;
    row[2] = slope;
    ok[0] = both - both == 0 && (!sticky || ok[0]);
}

// One thread. What `optim.GradScaler` does after a step: `good` counts steps without an overflow.
extern "C" __global__ void update_scale(T* scale, T* good, const bool* ok, const bool* live, const T* growth,
                                        const T* backoff, T interval, T lowest, T highest) {
    if (blockIdx.x != 0 || threadIdx.x != 0 || (live && !live[0])) return;
    T steps = ok[0] ? good[0] + T(1) : T(0);
    bool grows = steps >= interval;
    T changed = scale[0] * (ok[0] ? (grows ? growth[0] : T(1)) : backoff[0]);
    scale[0] = changed < lowest ? lowest : changed > highest ? highest : changed;
    good[0] = grows ? T(0) : steps;
}

// Block (part, array) copies its share of an array's 4-byte words; nothing where `unless` is true.
struct Copies {
    const unsigned* source[48];
    unsigned* target[48];
    int words[48];
};

extern "C" __global__ void copy_arrays(Copies copies, const bool* unless) {
    if (unless && unless[0]) return;
    const unsigned* from = copies.source[blockIdx.y];
    unsigned* to = copies.target[blockIdx.y];
    int words = copies.words[blockIdx.y];
    for (int i = blockIdx.x * BLOCK + threadIdx.x; i < words; i += gridDim.x * BLOCK) to[i] = from[i];
}

// --- optimisers, over flat buffers; `hyper` as in optim/; nothing happens where `ok` is false -------------------------

#define ONLY_IF(ok) if ((ok) && !(ok)[0]) return

// What is updated: numbers in T, and of Half parameters these are the masters, the parameters their `rounded`. Gradients
// are `scale` times too large where that is not null.
struct Numbers {
    T* data;
    const S* grad;
    S* rounded;
    const T* scale;

    // A parameter that somebody has written since the last update takes the place of its master.
    __device__ T value(int i) const {
        if (!rounded || (T)(S)data[i] == (T)rounded[i]) return data[i];
        return rounded[i];
    }
    __device__ T slope(int i) const { return scale ? (T)grad[i] / scale[0] : (T)grad[i]; }
    __device__ void store(int i, T value) const {
        data[i] = value;
        if (rounded) rounded[i] = value;
    }
};

extern "C" __global__ void sgd_update(T* data, const S* grad, S* rounded, const T* scale, T* velocity,
                                      const T* hyper, const bool* ok, int decays, int nesterov, int shrinks, int size) {
    ONLY_IF(ok);
    Numbers numbers = {data, grad, rounded, scale};
    T lr = hyper[0], momentum = hyper[1], weight_decay = hyper[2], keep = hyper[3];
    FOR_EACH(i, size) {
        T value = shrinks ? numbers.value(i) * keep : numbers.value(i);
        T slope = decays ? value * weight_decay + numbers.slope(i) : numbers.slope(i);
        if (velocity) {
            T speed = velocity[i] * momentum + slope;
            velocity[i] = speed;
            slope = nesterov ? speed * momentum + slope : speed;
        }
        numbers.store(i, value - slope * lr);
    }
}

extern "C" __global__ void adam_update(T* data, const S* grad, S* rounded, const T* scale, T* gradient_sum,
                                       T* square_sum, T* largest, const T* hyper, const bool* ok, int decays,
                                       int shrinks, int size) {
    ONLY_IF(ok);
    Numbers numbers = {data, grad, rounded, scale};
    T rate = hyper[0], decay1 = hyper[1], decay2 = hyper[2], eps = hyper[3], weight_decay = hyper[4], keep = hyper[5];
    FOR_EACH(i, size) {
        T value = shrinks ? numbers.value(i) * keep : numbers.value(i);
        T slope = decays ? value * weight_decay + numbers.slope(i) : numbers.slope(i);
        T first = gradient_sum[i] * decay1 + slope, second = square_sum[i] * decay2 + slope * slope;
        gradient_sum[i] = first;
        square_sum[i] = second;
        if (largest) {
            T before = largest[i] * hyper[6];
            if (second <= before || before != before) second = before;  // nan stays
            largest[i] = second;
        }
        numbers.store(i, value - first / (sqrt(second) + eps) * rate);
    }
}

extern "C" __global__ void rmsprop_update(T* data, const S* grad, S* rounded, const T* scale, T* square_average,
                                          T* gradient_average, T* velocity, const T* hyper, const bool* ok, int decays,
                                          int size) {
    ONLY_IF(ok);
    Numbers numbers = {data, grad, rounded, scale};
    T lr = hyper[0], alpha = hyper[1], share = hyper[2], eps = hyper[3], weight_decay = hyper[4];
    FOR_EACH(i, size) {
        T value = numbers.value(i), slope = decays ? value * weight_decay + numbers.slope(i) : numbers.slope(i);
        T square = square_average[i] * alpha + slope * slope * share;
        square_average[i] = square;
        if (gradient_average) {
            T average = gradient_average[i] + (slope - gradient_average[i]) * share;
            gradient_average[i] = average;
            square = square - average * average;
        }
        T step = slope / (sqrt(square) + eps);
        if (velocity) step = velocity[i] = velocity[i] * hyper[5] + step;
        numbers.store(i, value - step * lr);
    }
}

extern "C" __global__ void adagrad_update(T* data, const S* grad, S* rounded, const T* scale, T* square_sum,
                                          const T* hyper, const bool* ok, int decays, int size) {
    ONLY_IF(ok);
    Numbers numbers = {data, grad, rounded, scale};
    T rate = hyper[0], eps = hyper[1], weight_decay = hyper[2];
    FOR_EACH(i, size) {
        T value = numbers.value(i), slope = decays ? value * weight_decay + numbers.slope(i) : numbers.slope(i);
        T square = square_sum[i] + slope * slope;
        square_sum[i] = square;
        numbers.store(i, value - slope / (sqrt(square) + eps) * rate);
    }
}
