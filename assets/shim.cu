// The kernels that the shim runs in the contexts of the program: a conservative search for addresses, and a hash.
//
// shim.ptx is made from this file by nvrtc 12.9, as selftest.ptx is from selftest.cu (see there), and for the same
// drivers: nothing here is newer than PTX 7.0 (CUDA 11.0). ptxas takes it, without spills: 12.4 for sm_50, sm_70, sm_80
// and sm_90, 12.9 for sm_100 and sm_120, 13.5 for sm_75, sm_90 and sm_100.
// The simulated driver runs kernels of its own of these names (tests/fake-cuda/src/kernel/shim.rs), and the hash is made
// again in shim/src/tier/staging/kernels/hash.rs; tests/conformance holds all of them to each other.
// All parameters are 64-bit integers.

typedef unsigned long long u64;
typedef unsigned int u32;

static __device__ __forceinline__ uint4 load(const uint4 *p) { return __ldcs(p); }
static __device__ __forceinline__ u64 low(uint4 v) { return v.x | (u64)v.y << 32; }
static __device__ __forceinline__ u64 high(uint4 v) { return v.z | (u64)v.w << 32; }

// ---- greenboost_scan ----

// Memory to look through. Its words are those that begin at a multiple of 8 and lie in it whole.
struct Area {
    u64 address;
    u64 bytes;
    u64 first;  // how many tiles the areas before it have
};

// What is looked for: addresses from `x` on and below `y`.
typedef ulonglong2 Range;

// What one thread block looks through at a time. The shim counts tiles alike (shim/src/tier/staging/kernels/input.rs).
#define TILE 32768ull

// GPUs have 48 bits of address that programs see, and hardware ignores or uses the rest for itself.
static __device__ __forceinline__ u64 address(u64 word) { return word & 0x0000FFFFFFFFFFFFull; }

// Raises the flags of all ranges that hold this address. They are sorted, by starts and by ends: those that hold it are
// neighbours.
static __device__ __forceinline__ void find(u64 a, const Range *table, u32 count, u32 *flags) {
    u32 from = 0, to = count;
    while (from < to) {
        u32 middle = from + (to - from) / 2;
        if (__ldg(&table[middle].x) <= a)
            from = middle + 1;
        else
            to = middle;
    }
    while (from > 0 && a < __ldg(&table[from - 1].y)) {
        from--;
        if (!flags[from]) flags[from] = 1;
    }
}

// Raises flags[i] for each of the `count` ranges at `table` that a word of the `n` areas at `areas` lies in. One more
// entry after the areas says in `first` how many tiles there are. Any grid of one dimension does.
extern "C" __global__ void __launch_bounds__(256, 4)
greenboost_scan(u64 areas, u64 n, u64 table, u64 count, u64 flags) {
    const Area *area = (const Area *)areas;
    const Range *ranges = (const Range *)table;
    if (!n || !count) return;
    const u64 lowest = __ldg(&ranges[0].x), span = __ldg(&ranges[count - 1].y) - lowest;
    const u64 tiles = __ldg(&area[n].first);

    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        while (__ldg(&area[1].first) <= tile) area++;
        const u64 part = (tile - __ldg(&area->first)) * TILE;
        const u64 given = __ldg(&area->address);
        const u64 begin = (given + 7) & ~7ull, end = (given + __ldg(&area->bytes)) & ~7ull;
        const u64 body = (begin + 15) & ~15ull, after = end & ~15ull;
        // Words at the ends that no aligned 16 bytes hold.
        if (part == 0 && threadIdx.x < 2) {
            const bool is = threadIdx.x ? after < end && body <= after : begin < body && begin < end;
            if (is) {
                const u64 a = address(*(const u64 *)(threadIdx.x ? after : begin));
                if (a - lowest < span) find(a, ranges, count, (u32 *)flags);
            }
        }
        const uint4 *p = (const uint4 *)(body + part);
        const u64 left = after > body + part ? after - body - part : 0;
        const u32 words = (left < TILE ? left : TILE) / 16;
        for (u32 j = threadIdx.x; j < words; j += 4 * blockDim.x) {
            u64 a[8];
            u32 hits = 0;
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                const u32 at = j + k * blockDim.x;
                // Beyond the end the last one again: all four loads are on their way before the first is looked at.
                const uint4 v = load(p + (at < words ? at : words - 1));
                a[2 * k] = address(low(v));
                a[2 * k + 1] = address(high(v));
            }
#pragma unroll
            for (u32 k = 0; k < 8; k++) hits |= (u32)(a[k] - lowest < span) << k;
            while (hits) {
                const u32 hit = __ffs(hits) - 1;
                u64 found = a[0];
#pragma unroll
                for (u32 k = 1; k < 8; k++)
                    if (hit == k) found = a[k];
                hits &= hits - 1;
                find(found, ranges, count, (u32 *)flags);
            }
        }
    }
}

// ---- greenboost_hash ----

// A 64-bit word and its place to two sums. Each step can be undone, so that a change of one word always changes both; the
// place comes in twice, so that what is one word to the right never looks like what was there.
static __device__ __forceinline__ void add(u64 word, u64 key, u64 &a, u64 &b) {
    u64 m = word ^ key;
    m ^= m >> 32;
    m *= 0xBF58476D1CE4E5B9ull;
    m ^= m >> 32;
    m += key << 32 | key >> 32;
    m *= 0x94D049BB133111EBull;
    m ^= m >> 32;
    a += m;
    m ^= m >> 29;
    m *= 0xD6E8FEB86659FD93ull;
    m ^= m >> 32;
    b += m;
}

// Adds the hash of n times 16 bytes at p, an aligned address, to the two words at `out`. Sums, so that no order of
// threads matters.
extern "C" __global__ void __launch_bounds__(256, 4) greenboost_hash(u64 p, u64 n, u64 out) {
    const u64 odd = 0xA0761D6478BD642Full;
    const uint4 *q = (const uint4 *)p;
    const u64 step = gridDim.x * (u64)blockDim.x;
    u64 a = 0, b = 0;
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (u32 k = 0; k < 4; k++) v[k] = load(q + i + k * step);
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const u64 key = (2 * (i + k * step) + 1) * odd;
            add(low(v[k]), key, a, b);
            add(high(v[k]), key + odd, a, b);
        }
    }
    for (; i < n; i += step) {
        const uint4 v = load(q + i);
        const u64 key = (2 * i + 1) * odd;
        add(low(v), key, a, b);
        add(high(v), key + odd, a, b);
    }
    __shared__ u64 sums[2][32];
    for (u32 o = 16; o; o >>= 1) {
        a += __shfl_down_sync(~0u, a, o);
        b += __shfl_down_sync(~0u, b, o);
    }
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) {
        sums[0][warp] = a;
        sums[1][warp] = b;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
        u64 sum = 0;
        for (u32 w = 0; w < blockDim.x / 32; w++) sum += sums[threadIdx.x][w];
        atomicAdd((u64 *)out + threadIdx.x, sum);
    }
}
