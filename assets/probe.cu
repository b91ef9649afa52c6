// The kernels of `greenboost probe`: how fast a GPU reads and writes memory in the ways that programs do.
//
// probe.ptx is made from this file as selftest.ptx is from selftest.cu (see there), and for the same drivers.
// All parameters are 64-bit integers. `p` is the memory, `n` its length in the unit that the kernel reads, `out` a word
// in VRAM that is written only if the sum of what was read is one value in 2^32: so no read can be left out.

typedef unsigned long long u64;
typedef unsigned int u32;

static __device__ __forceinline__ u64 first() { return blockIdx.x * (u64)blockDim.x + threadIdx.x; }
static __device__ __forceinline__ u64 stride() { return gridDim.x * (u64)blockDim.x; }
static __device__ __forceinline__ u32 fold(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }
static __device__ __forceinline__ void keep(u32 sum, u64 out) {
    if (sum == 0x9E3779B9u) *(u64 *)out = sum;
}
// The finaliser of splitmix64.
static __device__ __forceinline__ u64 mix(u64 x) {
    u64 z = x + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// n times 16 bytes, coalesced, four loads of a thread in flight.
extern "C" __global__ void gb_probe_read16(u64 p, u64 n, u64 out) {
    const uint4 *q = (const uint4 *)p;
    u32 sum = 0;
    u64 step = stride(), i = first();
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = q[i], b = q[i + step], c = q[i + 2 * step], d = q[i + 3 * step];
        sum ^= fold(a) ^ fold(b) ^ fold(c) ^ fold(d);
    }
    for (; i < n; i += step) sum ^= fold(q[i]);
    keep(sum, out);
}

// n times 4 bytes, the same way.
extern "C" __global__ void gb_probe_read4(u64 p, u64 n, u64 out) {
    const u32 *q = (const u32 *)p;
    u32 sum = 0;
    u64 step = stride(), i = first();
    for (; i + 3 * step < n; i += 4 * step) sum ^= q[i] ^ q[i + step] ^ q[i + 2 * step] ^ q[i + 3 * step];
    for (; i < n; i += step) sum ^= q[i];
    keep(sum, out);
}

// n quantised blocks of 18 bytes: a scale of 2 and 32 weights of 4 bits, which four threads read in words of 2 bytes, as
// they lie on no larger border.
extern "C" __global__ void gb_probe_quantised(u64 p, u64 n, u64 out) {
    u32 sum = 0;
    for (u64 i = first(); i < 4 * n; i += stride()) {
        const unsigned short *block = (const unsigned short *)(p + i / 4 * 18);
        u64 part = i & 3;
        sum ^= block[0] ^ block[1 + 2 * part] ^ ((u32)block[2 + 2 * part] << 16);
    }
    keep(sum, out);
}

// count times 16 bytes, anywhere in n of them.
extern "C" __global__ void gb_probe_random16(u64 p, u64 n, u64 count, u64 seed, u64 out) {
    const uint4 *q = (const uint4 *)p;
    u32 sum = 0;
    for (u64 i = first(); i < count; i += stride()) sum ^= fold(q[mix(seed + i) % n]);
    keep(sum, out);
}

// count pieces of 2 MiB, anywhere in n of them, each read by one thread block in order.
extern "C" __global__ void gb_probe_random_piece(u64 p, u64 n, u64 count, u64 seed, u64 out) {
    const u64 words = (2u << 20) / 16;
    u32 sum = 0;
    for (u64 i = blockIdx.x; i < count; i += gridDim.x) {
        const uint4 *q = (const uint4 *)p + mix(seed + i) % n * words;
        u64 j = threadIdx.x;
        for (; j + 3 * blockDim.x < words; j += 4 * blockDim.x) {
            uint4 a = q[j], b = q[j + blockDim.x], c = q[j + 2 * blockDim.x], d = q[j + 3 * blockDim.x];
            sum ^= fold(a) ^ fold(b) ^ fold(c) ^ fold(d);
        }
        for (; j < words; j += blockDim.x) sum ^= fold(q[j]);
    }
    keep(sum, out);
}

// n times 16 bytes written, coalesced.
extern "C" __global__ void gb_probe_write16(u64 p, u64 n, u64 value) {
    uint4 *q = (uint4 *)p;
    for (u64 i = first(); i < n; i += stride()) q[i] = make_uint4((u32)i, (u32)value, (u32)(value >> 32), 0);
}

// n times 16 bytes, read `times` times over by different thread blocks at about the same time, as the tile rows of a
// matrix product read a weight: block b reads part b / times.
extern "C" __global__ void gb_probe_reread16(u64 p, u64 n, u64 times, u64 out) {
    const uint4 *q = (const uint4 *)p;
    u32 sum = 0;
    u64 parts = gridDim.x / times, part = blockIdx.x / times;
    if (part >= parts) return;
    for (u64 i = part * blockDim.x + threadIdx.x; i < n; i += parts * blockDim.x) sum ^= fold(q[i]);
    keep(sum, out);
}

// Reads n times 16 bytes again and again, and computes, until `ns` nanoseconds are over: what a GPU does meanwhile.
extern "C" __global__ void gb_probe_busy(u64 p, u64 n, u64 ns, u64 out) {
    const uint4 *q = (const uint4 *)p;
    u64 start, now;
    u32 sum = 0;
    float a = 1.0f;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    u64 i = first() % n;
    do {
        for (int k = 0; k < 8; k++) {
            sum ^= fold(q[i]);
            i += stride();
            if (i >= n) i %= n;
            a = a * 1.0001f + 0.5f;
        }
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < ns);
    keep(sum ^ __float_as_uint(a), out);
}
