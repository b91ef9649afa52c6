// The kernels of `greenboost selftest`, and of the tests that run against the simulated driver.
//
// selftest.ptx is made from this file and checked in, so that nobody needs a CUDA toolkit to build greenboost:
//
//     nvcc 12.9 or nvrtc 12.9 (the last that knows compute_50): nvcc -ptx -arch=compute_50 selftest.cu
//     sed -i 's/^\.version 8\.8/.version 7.0/' selftest.ptx
//     ptxas -arch=sm_90 selftest.ptx
//
// The second line lets drivers older than the compiler load it: nothing here is newer than PTX 7.0 (CUDA 11.0).
// All parameters are 64-bit integers: the simulated driver reads the `.param` lists and runs built-ins of the same
// names.

typedef unsigned long long u64;

// The finaliser of splitmix64: every bit of the index changes half of the bits of the word.
static __device__ __forceinline__ u64 mix(u64 x) {
    u64 z = x + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

static __device__ __forceinline__ u64 first() { return blockIdx.x * (u64)blockDim.x + threadIdx.x; }
static __device__ __forceinline__ u64 stride() { return gridDim.x * (u64)blockDim.x; }

// p[i] = mix(seed + i)
extern "C" __global__ void gb_fill(u64 p, u64 n, u64 seed) {
    for (u64 i = first(); i < n; i += stride()) ((u64 *)p)[i] = mix(seed + i);
}

// *out += how many p[i] differ from mix(seed + i)
extern "C" __global__ void gb_check(u64 p, u64 n, u64 seed, u64 out) {
    u64 wrong = 0;
    for (u64 i = first(); i < n; i += stride()) wrong += ((u64 *)p)[i] != mix(seed + i);
    if (wrong) atomicAdd((u64 *)out, wrong);
}

// p[i] += v
extern "C" __global__ void gb_add(u64 p, u64 n, u64 v) {
    for (u64 i = first(); i < n; i += stride()) ((u64 *)p)[i] += v;
}

// dst[i] = dst[i] * k + src[i]
extern "C" __global__ void gb_axpy(u64 dst, u64 src, u64 n, u64 k) {
    for (u64 i = first(); i < n; i += stride()) ((u64 *)dst)[i] = ((u64 *)dst)[i] * k + ((u64 *)src)[i];
}

// *out += sum of p[i]
extern "C" __global__ void gb_sum(u64 p, u64 n, u64 out) {
    u64 sum = 0;
    for (u64 i = first(); i < n; i += stride()) sum += ((u64 *)p)[i];
    if (sum) atomicAdd((u64 *)out, sum);
}

// Keeps the stream busy for `ns` nanoseconds.
extern "C" __global__ void gb_spin(u64 ns) {
    u64 start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - start < ns);
}

// *(u64 *)table[i] += v: addresses that only device memory holds.
extern "C" __global__ void gb_deref(u64 table, u64 n, u64 v) {
    for (u64 i = first(); i < n; i += stride()) *((u64 **)table)[i] += v;
}
