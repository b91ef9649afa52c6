// Kernels that reach memory in other ways: the device's heap, launches from the device, grids that wait for each other,
// clusters, asynchronous and bulk copies, atomics, chains of pointers. Built with -rdc=true.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda.h>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/ptx>
#include <cuda_pipeline.h>

#include "section.cuh"

namespace cg = cooperative_groups;

template <class T>
static T* take(size_t bytes) {
    void* p;
    MUST(cudaMalloc(&p, bytes));
    return static_cast<T*>(p);
}

// The device's heap

static __global__ void heapTake(u64** table, u64 n, size_t words) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) {
        u64* p = static_cast<u64*>(malloc(words * 8));
        table[i] = p;
        if (p)
            for (size_t k = 0; k < words; k++) p[k] = mix(i * words + k);
    }
}

static __global__ void heapRead(u64** table, u64 n, size_t words, u64* out) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid())
        for (size_t k = 0; k < words; k++) out[i * words + k] = table[i] ? table[i][k] : 0;
}

static __global__ void heapGive(u64** table, u64 n) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) free(table[i]);
}

/// malloc and free in kernels; what one kernel takes another one reads and a third one frees.
static void heap(Section& s) {
    size_t was = 0;
    MUST(cudaDeviceGetLimit(&was, cudaLimitMallocHeapSize));
    s.take(was);
    MUST(cudaDeviceSetLimit(cudaLimitMallocHeapSize, 32 * MiB));
    Ballast ballast(s, 40);
    const u64 n = 16384;
    const size_t words = 64;  // 8 MiB in all
    u64** table = take<u64*>(n * 8);
    u64* out = take<u64>(4 * n * words * 8);
    for (int round = 0; round < 2; round++) {
        heapTake<<<64, 128>>>(table, n, words);
        launched();
        for (int i = 0; i < 4; i++) heapRead<<<BLOCKS, THREADS>>>(table, n, words, out + i * n * words);
        launched();
        heapGive<<<64, 128>>>(table, n);
        launched();
        s.words(out, 4 * n * words * 8, [=](u64 i) { return mix(i % (n * words)); }, "what lay on the heap");
    }
    MUST(cudaFree(table));
    MUST(cudaFree(out));
    ballast.done();
}

// Launches from the device

static __global__ void child(u64* p, u64 n, u64 v) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) p[i] = mix(p[i] ^ v);
}

static __global__ void parent(u64* p, u64 n, u64 parts, int depth) {
    u64 part = n / parts;
    if (threadIdx.x < parts) {
        u64* at = p + threadIdx.x * part;
        child<<<16, 128>>>(at, part, depth);
        if (depth > 0) parent<<<1, 4>>>(at, part, 4, depth - 1);
    }
}

/// A tree of launches over memory that spills.
static void dynamic(Section& s) {
    Ballast ballast(s, 48);
    const size_t bytes = 64 * MiB;
    u64* p = take<u64>(bytes);
    fill(p, bytes, 15);
    // A part: its child and its subtree run one after another, since one thread of one block launches both into one
    // stream; different parts touch different words.
    parent<<<1, 8>>>(p, bytes / 8, 8, 2);
    launched();
    MUST(cudaDeviceSynchronize());
    s.words(p, bytes, [](u64 i) { return mix(mix(mix(mix(15 + i) ^ 2) ^ 1) ^ 0); }, "what launches from the device wrote");
    MUST(cudaFree(p));
    ballast.done();
}

// Cooperative grids

static __global__ void cooperative(u64* p, u64 n, u64* partial, u64* out, int rounds) {
    cg::grid_group grid = cg::this_grid();
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    for (int r = 0; r < rounds; r++) {
        u64 sum = 0;
        for (u64 i = grid.thread_rank(); i < n; i += grid.num_threads()) {
            p[i] = mix(p[i] + r);
            sum += p[i];
        }
        sum = cg::reduce(warp, sum, cg::plus<u64>());
        if (warp.thread_rank() == 0) atomicAdd(&partial[blockIdx.x], sum);
        grid.sync();
        if (grid.thread_rank() == 0) {
            u64 all = 0;
            for (unsigned b = 0; b < gridDim.x; b++) all += partial[b];
            out[r] = all;
        }
        grid.sync();
        // Everybody's next step depends on everybody's last one.
        for (u64 i = grid.thread_rank(); i < n; i += grid.num_threads()) p[i] ^= out[r];
        grid.sync();
    }
}

/// A kernel whose blocks wait for each other over memory that spills.
static void grids(Section& s) {
    int can = 0, perSm = 0, sms = 0;
    MUST(cudaDeviceGetAttribute(&can, cudaDevAttrCooperativeLaunch, 0));
    if (!can) throw Unsupported("no cooperative launches");
    Ballast ballast(s, 48);
    const size_t bytes = 64 * MiB;
    u64 n = bytes / 8;
    u64 *p = take<u64>(bytes), *partial = take<u64>(64 * KiB), *out = take<u64>(4096);
    fill(p, bytes, 23);
    MUST(cudaMemset(partial, 0, 64 * KiB));
    MUST(cudaMemset(out, 0, 4096));
    MUST(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    MUST(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&perSm, cooperative, THREADS, 0));
    int rounds = 5;
    void* arguments[] = {&p, &n, &partial, &out, &rounds};
    MUST(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(cooperative), dim3(sms * std::min(perSm, 2)), dim3(THREADS),
                                     arguments, 0, nullptr));
    MUST(cudaDeviceSynchronize());
    std::vector<u64> host(n), sums(rounds);
    for (u64 i = 0; i < n; i++) host[i] = mix(23 + i);
    u64 total = 0;
    for (int r = 0; r < rounds; r++) {
        // Sums of all rounds so far: `partial` is never cleared.
        for (auto& w : host) total += w = mix(w + r);
        sums[r] = total;
        for (auto& w : host) w ^= total;
    }
    s.words(p, bytes, [&](u64 i) { return host[i]; }, "the words of a cooperative kernel");
    s.words(out, 4096, [&](u64 i) { return i < u64(rounds) ? sums[i] : 0; }, "the sums of a cooperative kernel");
    MUST(cudaFree(p));
    MUST(cudaFree(partial));
    MUST(cudaFree(out));
    ballast.done();
}

// Clusters and asynchronous copies (Hopper)

static __global__ void clusterKernel(const u64* in, u64* out, u64 n) {
#if __CUDA_ARCH__ >= 900
    __shared__ u64 box[THREADS];
    cg::cluster_group cluster = cg::this_cluster();
    unsigned rank = cluster.block_rank(), size = cluster.num_blocks();
    for (u64 base = u64(blockIdx.x) * THREADS; base < n; base += u64(gridDim.x) * THREADS) {
        box[threadIdx.x] = in[base + threadIdx.x];
        cluster.sync();
        u64* other = cluster.map_shared_rank(box, (rank + 1) % size);
        out[base + threadIdx.x] = mix(other[threadIdx.x] + box[THREADS - 1 - threadIdx.x]);
        cluster.sync();
    }
#endif
}

static __global__ void asyncCopy(const u64* in, u64* out, u64 n) {
    __shared__ alignas(16) u64 tile[2][2 * THREADS];
    u64 tiles = n / (2 * THREADS);
    int at = 0;
    auto fetch = [&](u64 t, int slot) {
        if (t < tiles) __pipeline_memcpy_async(&tile[slot][2 * threadIdx.x], in + t * 2 * THREADS + 2 * threadIdx.x, 16);
        __pipeline_commit();
    };
    fetch(blockIdx.x, 0);
    for (u64 t = blockIdx.x; t < tiles; t += gridDim.x, at ^= 1) {
        fetch(t + gridDim.x, at ^ 1);
        __pipeline_wait_prior(1);
        __syncthreads();
        for (int k = 0; k < 2; k++) {
            int i = threadIdx.x + k * THREADS;
            out[t * 2 * THREADS + i] = mix(tile[at][2 * THREADS - 1 - i] + 1);
        }
        __syncthreads();
    }
}

constexpr int BOX = 64;  // 64 x 32 words of 4 bytes

static __global__ void tensorCopy(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap out, int across,
                                  int down) {
#if __CUDA_ARCH__ >= 900
    __shared__ alignas(128) u32 tile[32][BOX];
    using barrier = cuda::barrier<cuda::thread_scope_block>;
#pragma nv_diag_suppress static_var_with_dynamic_init
    __shared__ barrier bar;
    namespace ptx = cuda::ptx;
    if (threadIdx.x == 0) {
        init(&bar, blockDim.x);
        ptx::fence_proxy_async(ptx::space_shared);
    }
    __syncthreads();
    for (int b = blockIdx.x; b < across * down; b += gridDim.x) {
        int x = b % across * BOX, y = b / across * 32;
        barrier::arrival_token token;
        const int32_t where[2] = {x, y};
        if (threadIdx.x == 0) {
            ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, tile, &in, where,
                                      cuda::device::barrier_native_handle(bar));
            token = cuda::device::barrier_arrive_tx(bar, 1, sizeof tile);
        } else {
            token = bar.arrive();
        }
        bar.wait(std::move(token));
        for (int i = threadIdx.x; i < 32 * BOX; i += blockDim.x) tile[i / BOX][i % BOX] = u32(mix(tile[i / BOX][i % BOX]));
        ptx::fence_proxy_async(ptx::space_shared);
        __syncthreads();
        if (threadIdx.x == 0) {
            // Stored where the mirrored box would be.
            const int32_t there[2] = {(across - 1) * BOX - x, y};
            ptx::cp_async_bulk_tensor(ptx::space_global, ptx::space_shared, &out, there, tile);
            ptx::cp_async_bulk_commit_group();
            ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) ptx::cp_async_bulk_wait_group(ptx::n32_t<0>());
#endif
}

static __global__ void bulkAdd(u64* p, u64 n, u64 v) {
#if __CUDA_ARCH__ >= 900
    // Reductions done by the copy engine of the multiprocessor: p[i] += v.
    __shared__ alignas(128) u64 tile[512];
    namespace ptx = cuda::ptx;
    for (int i = threadIdx.x; i < 512; i += blockDim.x) tile[i] = v;
    ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u64 t = blockIdx.x; t < n / 512; t += gridDim.x)
            ptx::cp_reduce_async_bulk(ptx::space_global, ptx::space_shared, ptx::op_add,
                                      reinterpret_cast<uint64_t*>(p + t * 512), reinterpret_cast<const uint64_t*>(tile),
                                      u32(sizeof tile));
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group(ptx::n32_t<0>());
    }
#endif
}

static CUtensorMap tensorMap(void* at, u64 width, u64 height) {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found;
    MUST(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found));
    if (!f) throw Unsupported("no tensor maps");
    CUtensorMap map;
    cuuint64_t size[] = {width, height}, stride[] = {width * 4};
    cuuint32_t box[] = {BOX, 32}, step[] = {1, 1};
    CUresult r = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f)(
        &map, CU_TENSOR_MAP_DATA_TYPE_UINT32, 2, at, size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS) throw std::runtime_error("cuTensorMapEncodeTiled: " + std::to_string(r));
    return map;
}

static void hopper() {
    int major = 0;
    MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major < 9) throw Unsupported("needs a device of capability 9.0");
}

/// Blocks that read each other's shared memory; the launch has attributes.
static void clusters(Section& s) {
    hopper();
    Ballast ballast(s, 48);
    const size_t bytes = 32 * MiB;
    u64 n = bytes / 8;
    u64 *in = take<u64>(bytes), *out = take<u64>(bytes);
    fill(in, bytes, 61);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(256);
    config.blockDim = dim3(THREADS);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {4, 1, 1};
    config.attrs = &attribute;
    config.numAttrs = 1;
    MUST(cudaLaunchKernelEx(&config, clusterKernel, static_cast<const u64*>(in), out, n));
    auto word = [](u64 i) {
        u64 t = i % THREADS, block = i / THREADS, other = block / 4 * 4 + (block + 1) % 4;
        return mix(mix(61 + other * THREADS + t) + mix(61 + block * THREADS + THREADS - 1 - t));
    };
    s.words(out, bytes, word, "what a cluster computed");
    MUST(cudaFree(in));
    MUST(cudaFree(out));
    ballast.done();
}

/// cp.async, the tensor copy engine in both directions, bulk reductions: all on memory that spills.
static void bulk(Section& s) {
    hopper();
    Ballast ballast(s, 48);
    const size_t bytes = 32 * MiB;
    u64 n = bytes / 8;
    u64 *in = take<u64>(bytes), *out = take<u64>(bytes);
    fill(in, bytes, 70);
    asyncCopy<<<BLOCKS, THREADS>>>(in, out, n);
    launched();
    auto reversed = [](u64 i) {
        u64 size = 2 * THREADS, tile = i / size;
        return mix(mix(70 + tile * size + size - 1 - i % size) + 1);
    };
    s.words(out, bytes, reversed, "cp.async");
    const u64 width = 4096, height = bytes / 4 / width;
    CUtensorMap from = tensorMap(in, width, height), to = tensorMap(out, width, height);
    MUST(cudaMemset(out, 0, bytes));
    tensorCopy<<<BLOCKS, 128>>>(from, to, int(width / BOX), int(height / 32));
    launched();
    auto source = [](u64 k) { return u32(mix(70 + k / 2) >> (k % 2 * 32)); };
    auto stored = [=](u64 k) {
        u64 x = k % width, y = k / width, box = x / BOX;
        return u32(mix(source(y * width + (width / BOX - 1 - box) * BOX + x % BOX)));
    };
    s.words(out, bytes, [=](u64 i) { return stored(2 * i) | u64(stored(2 * i + 1)) << 32; }, "the tensor copy engine");
    bulkAdd<<<32, 128>>>(in, n, 1000);
    launched();
    s.words(in, bytes, [](u64 i) { return mix(70 + i) + 1000; }, "bulk reductions");
    MUST(cudaFree(in));
    MUST(cudaFree(out));
    ballast.done();
}

// Atomics

static __global__ void atomicKernel(u64* p, u64 n, u64 per) {
    for (u64 i = firstIndex(); i < n * per; i += strideOfGrid()) {
        u64 k = mix(i) % n;
        u64* row = p + k * 8;
        atomicAdd(&row[0], i);
        atomicMax(&row[1], mix(i));
        atomicXor(&row[2], mix(i + 1));
        auto* pair = reinterpret_cast<u32*>(&row[3]);
        atomicAdd(&pair[0], u32(i));
        atomicMin(reinterpret_cast<int*>(&pair[1]), -int(u32(mix(i)) >> 1));
        atomicAdd(reinterpret_cast<double*>(&row[4]), double(i % 1024));
        atomicAdd(reinterpret_cast<float*>(&row[5]), float(i % 16));
        u64 seen = row[6], old;
        do {
            old = seen;
            seen = atomicCAS(&row[6], old, old + mix(i) % 100);
        } while (seen != old);
        cuda::atomic_ref<u64, cuda::thread_scope_system> wide(row[7]);
        wide.fetch_add(i * i, cuda::memory_order_relaxed);
    }
}

static void atomics(Section& s) {
    Ballast ballast(s, 48);
    const u64 rows = 512 * 1024, per = 4;  // 32 MiB
    std::vector<u64*> each;
    for (int i = 0; i < 2; i++) {
        each.push_back(take<u64>(rows * 64));
        MUST(cudaMemset(each[i], 0, rows * 64));
        atomicKernel<<<BLOCKS, THREADS>>>(each[i], rows, per);
        launched();
    }
    std::vector<u64> model(rows * 8);
    for (u64 i = 0; i < rows * per; i++) {
        u64* row = model.data() + mix(i) % rows * 8;
        u32 pair[2];
        double wide;
        float narrow;
        row[0] += i;
        row[1] = std::max(row[1], mix(i));
        row[2] ^= mix(i + 1);
        memcpy(pair, &row[3], 8);
        pair[0] += u32(i);
        pair[1] = u32(std::min(int(pair[1]), -int(u32(mix(i)) >> 1)));
        memcpy(&row[3], pair, 8);
        memcpy(&wide, &row[4], 8);
        wide += double(i % 1024);
        memcpy(&row[4], &wide, 8);
        memcpy(&narrow, &row[5], 4);
        narrow += float(i % 16);
        memcpy(&row[5], &narrow, 4);
        row[6] += mix(i) % 100;
        row[7] += i * i;
    }
    for (u64* p : each) {
        s.words(p, rows * 64, [&](u64 i) { return model[i]; }, "atomics");
        MUST(cudaFree(p));
    }
    ballast.done();
}

// Chains of pointers in device memory

struct Node {
    Node* next;
    u64 value[7];
};

static __global__ void link(Node** parts, u64 perPart, u64 n) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) {
        // Node i points to one far away, in another part.
        u64 j = (i + n / 2 + 1) % n;
        Node* node = parts[i / perPart] + i % perPart;
        node->next = parts[j / perPart] + j % perPart;
        for (int k = 0; k < 7; k++) node->value[k] = mix(i * 7 + k);
    }
}

static __global__ void walk(Node** parts, u64 perPart, u64 n, u64* out) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) {
        Node* node = parts[i / perPart] + i % perPart;
        u64 sum = 0;
        for (int step = 0; step < 5; step++, node = node->next) sum = mix(sum + node->value[step]);
        out[i] = sum;
    }
}

/// What a kernel touches is in no argument of its launch: a table of parts, and lists through them.
static void pointers(Section& s) {
    Ballast ballast(s, 48);
    const u64 count = 6, perPart = 16 * MiB / sizeof(Node), n = count * perPart;
    std::vector<Node*> parts;
    for (u64 i = 0; i < count; i++) parts.push_back(take<Node>(16 * MiB));
    Node** table = take<Node*>(count * 8);
    MUST(cudaMemcpy(table, parts.data(), count * 8, cudaMemcpyHostToDevice));
    u64* out = take<u64>(n * 8);
    link<<<BLOCKS, THREADS>>>(table, perPart, n);
    walk<<<BLOCKS, THREADS>>>(table, perPart, n, out);
    launched();
    auto word = [=](u64 i) {
        u64 sum = 0, at = i;
        for (int step = 0; step < 5; step++, at = (at + n / 2 + 1) % n) sum = mix(sum + mix(at * 7 + step));
        return sum;
    };
    s.words(out, n * 8, word, "a walk along pointers");
    for (auto p : parts) MUST(cudaFree(p));
    MUST(cudaFree(table));
    MUST(cudaFree(out));
    ballast.done();
}

int main(int argc, char** argv) {
    return sections({{"heap", heap},
                     {"dynamic", dynamic},
                     {"cooperative", grids},
                     {"cluster", clusters},
                     {"bulk", bulk},
                     {"atomics", atomics},
                     {"pointers", pointers}},
                    argc, argv);
}
