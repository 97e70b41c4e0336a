// What every other file begins with: the types of numbers and the sum of a block. S is what numbers are stored in, float,
// double or Half, given by -DREAL=; T is what they are computed in.

#ifdef __CUDACC_RTC__  // cuda_fp16.h is not on every machine that can compile kernels
__device__ float widen(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ unsigned short narrow(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
union HalfBits {
    _Float16 value;
    unsigned short bits;
};
__device__ float widen(unsigned short bits) {
    HalfBits both;
    both.bits = bits;
    return (float)both.value;
}
__device__ unsigned short narrow(float value) {
    HalfBits both;
    both.value = (_Float16)value;
    return both.bits;
}
#endif

// float16 in memory: each read gives a float, and each write rounds one.
struct Half {
    unsigned short bits;
    Half() = default;
    __device__ Half(float value) : bits(narrow(value)) {}
    __device__ operator float() const { return widen(bits); }
};

template <class Stored>
struct Computed {
    typedef Stored type;
};
template <>
struct Computed<Half> {
    typedef float type;
};

typedef REAL S;
typedef Computed<S>::type T;

#define BLOCK 256  // threads of a block

// The sum over a block's threads, the same on each: a tree of fixed shape.
__device__ double block_sum(double value) {
    __shared__ double part[BLOCK];
    part[threadIdx.x] = value;
    __syncthreads();
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    double sum = part[0];
    __syncthreads();
    return sum;
}
