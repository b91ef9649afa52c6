// Two equally hot allocations, part of them outside VRAM: does it matter which part? Plain driver calls build the layouts
// (ranges of chunks on the device and on the host), kernels read both allocations in turn, all of it, again and again.
//
//   striping [--gib SIZE_OF_EACH]
//
// Layouts, always with the same bytes outside: `whole` (of the second allocation only), `tails` (the end of each), `spread`
// (every so many-th chunk of 32 MiB of each), `fine` (the same with chunks of 2 MiB). Kernels: `stream` (all threads pass
// over the range together), `rows` (a warp reads a row of 8 KiB, a block 8 rows, blocks in order: as matrix times vector).
// The bound is max(bytes in VRAM / its rate, bytes outside / link); the sum of both is what one gets without overlap.
// The last line is `RESULT {json}`: milliseconds of a pass over both (medians). Linked to libcuda.
#include <cuda.h>

#include <algorithm>
#include <numeric>

#include "samples/section.cuh"

static void cu(CUresult r, const char* what, int line) {
    const char* name = "?";
    if (r == CUDA_SUCCESS) return;
    cuGetErrorName(r, &name);
    throw std::runtime_error(std::string(what) + ": " + name + ", line " + std::to_string(line));
}
#define CU(call) cu((call), #call, __LINE__)

static __global__ void streamKernel(const uint4* p, size_t n, u32* out) {
    u32 a = 0;
    size_t step = strideOfGrid(), i = firstIndex();
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v0 = p[i], v1 = p[i + step], v2 = p[i + 2 * step], v3 = p[i + 3 * step];
        a ^= v0.x ^ v0.y ^ v0.z ^ v0.w ^ v1.x ^ v1.y ^ v1.z ^ v1.w ^ v2.x ^ v2.y ^ v2.z ^ v2.w ^ v3.x ^ v3.y ^ v3.z ^ v3.w;
    }
    for (; i < n; i += step) {
        uint4 v = p[i];
        a ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (a) atomicXor(out, a);
}

constexpr size_t ROW = 8 * KiB, VECTORS = ROW / 16;

static __global__ void rowsKernel(const uint4* p, u32* out) {
    const uint4* row = p + (size_t(blockIdx.x) * 8 + threadIdx.x / 32) * VECTORS;
    u32 a = 0;
#pragma unroll 8
    for (size_t i = threadIdx.x % 32; i < VECTORS; i += 32) {
        uint4 v = row[i];
        a ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (a) atomicXor(out, a);
}

/// A range of chunks, each on the device or on the host.
class Mixed {
public:
    Mixed(size_t bytes, size_t chunk, const std::vector<bool>& outside) : bytes(bytes), chunk(chunk) {
        CU(cuMemAddressReserve(&at, bytes, 0, 0, 0));
        for (size_t i = 0; i < outside.size(); i++) {
            CUmemAllocationProp property = {};
            property.type = CU_MEM_ALLOCATION_TYPE_PINNED;
            property.location.type = outside[i] ? CU_MEM_LOCATION_TYPE_HOST_NUMA : CU_MEM_LOCATION_TYPE_DEVICE;
            CUmemGenericAllocationHandle handle;
            CU(cuMemCreate(&handle, chunk, &property, 0));
            CU(cuMemMap(at + i * chunk, chunk, 0, handle, 0));
            CU(cuMemRelease(handle));
        }
        CUmemAccessDesc access = {};
        access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        CU(cuMemSetAccess(at, bytes, &access, 1));
    }
    ~Mixed() {
        for (size_t i = 0; i < bytes / chunk; i++) cuMemUnmap(at + i * chunk, chunk);
        cuMemAddressFree(at, bytes);
    }
    CUdeviceptr at = 0;
    size_t bytes, chunk;
};

/// Which of n chunks lie outside: k of them, at the end or evenly spaced.
static std::vector<bool> pattern(size_t n, size_t k, bool spread) {
    std::vector<bool> outside(n);
    for (size_t i = 0; i < n; i++) outside[i] = spread ? (i + 1) * k / n > i * k / n : i >= n - k;
    return outside;
}

static double timed(auto&& work, int rounds) {
    cudaEvent_t a, b;
    MUST(cudaEventCreate(&a));
    MUST(cudaEventCreate(&b));
    std::vector<float> all;
    for (int i = 0; i < rounds + 2; i++) {
        float ms;
        MUST(cudaEventRecord(a));
        work();
        MUST(cudaEventRecord(b));
        MUST(cudaEventSynchronize(b));
        MUST(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2) all.push_back(ms);
    }
    MUST(cudaEventDestroy(a));
    MUST(cudaEventDestroy(b));
    std::sort(all.begin(), all.end());
    return all[all.size() / 2];
}

int main(int argc, char** argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    size_t gib = argc == 3 && !strcmp(argv[1], "--gib") ? strtoull(argv[2], nullptr, 0) : 2;
    size_t bytes = gib << 30;
    constexpr size_t COARSE = 32 * MiB, FINE = 2 * MiB;
    try {
        MUST(cudaFree(nullptr));
        u32* out;
        MUST(cudaMalloc(&out, 4));
        std::string json;
        auto read = [&](const Mixed& m, bool rows) {
            if (rows) rowsKernel<<<unsigned(m.bytes / ROW / 8), 256>>>(reinterpret_cast<const uint4*>(m.at), out);
            else streamKernel<<<132 * 8, 512>>>(reinterpret_cast<const uint4*>(m.at), m.bytes / 16, out);
            launched();
        };
        double rate[2][2];  // bytes per ms, by kernel: VRAM, link
        for (int outside = 0; outside < 2; outside++) {
            size_t n = bytes / COARSE;
            Mixed one(bytes, COARSE, std::vector<bool>(n, outside));
            fill(reinterpret_cast<void*>(one.at), bytes, 1);
            for (int rows = 0; rows < 2; rows++) rate[rows][outside] = double(bytes) / timed([&] { read(one, rows); }, 4);
        }
        for (int rows = 0; rows < 2; rows++)
            printf("%s: VRAM %.0f GB/s, outside %.1f GB/s\n", rows ? "rows" : "stream", rate[rows][0] / 1e6, rate[rows][1] / 1e6);
        for (size_t share : {2, 8, 64}) {
            size_t n = bytes / COARSE, k = n / share, fine = COARSE / FINE;
            struct {
                const char* name;
                size_t chunk;
                std::vector<bool> first, second;
            } layouts[] = {
                {"whole", COARSE, pattern(n, 0, false), pattern(n, 2 * k, false)},
                {"tails", COARSE, pattern(n, k, false), pattern(n, k, false)},
                {"spread", COARSE, pattern(n, k, true), pattern(n, k, true)},
                {"fine", FINE, pattern(n * fine, k * fine, true), pattern(n * fine, k * fine, true)},
            };
            double outside = double(2 * k * COARSE), inside = double(2 * bytes) - outside;
            u32 sums[2] = {};
            for (auto& l : layouts) {
                Mixed a(bytes, l.chunk, l.first), b(bytes, l.chunk, l.second);
                fill(reinterpret_cast<void*>(a.at), bytes, 11);
                fill(reinterpret_cast<void*>(b.at), bytes, 22);
                double ms[2];
                for (int rows = 0; rows < 2; rows++) {
                    u32 sum = 0;
                    MUST(cudaMemset(out, 0, 4));
                    read(a, rows);
                    read(b, rows);
                    MUST(cudaMemcpy(&sum, out, 4, cudaMemcpyDeviceToHost));
                    if (!sums[rows]) sums[rows] = sum;
                    if (sum != sums[rows] || sum != sums[0]) throw std::runtime_error("a layout reads other bytes than the others");
                    ms[rows] = timed([&] { read(a, rows), read(b, rows); }, share == 2 ? 3 : 9);
                }
                char text[200];
                snprintf(text, sizeof text, "%s\"1/%zu %s\": {\"stream\": %.3f, \"rows\": %.3f}", json.empty() ? "" : ", ", share, l.name,
                         ms[0], ms[1]);
                json += text;
                printf("1/%-2zu outside, %-6s: stream %8.3f ms, rows %8.3f ms\n", share, l.name, ms[0], ms[1]);
            }
            for (int rows = 0; rows < 2; rows++) {
                double in = inside / rate[rows][0], over = outside / rate[rows][1];
                printf("1/%-2zu outside, %-6s: bound %8.3f ms, one after the other %8.3f ms\n", share, rows ? "rows" : "stream",
                       std::max(in, over), in + over);
                char text[200];
                snprintf(text, sizeof text, ", \"1/%zu %s\": {\"bound\": %.3f, \"sum\": %.3f}", share, rows ? "rows" : "stream",
                         std::max(in, over), in + over);
                json += text;
            }
        }
        MUST(cudaFree(out));
        printf("RESULT {\"ok\": true, %s}\n", json.c_str());
        return 0;
    } catch (const std::exception& e) {
        printf("RESULT {\"ok\": false, \"problems\": [%s]}\n", jsonText(e.what()).c_str());
        return 1;
    }
}
