// What the link does, measured independently of greenboost: copies by the runtime API, kernels that use pinned memory in
// place. The figures of `greenboost probe` are held against these. Prints one RESULT line.
//
//     link [--bytes N]
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CHECK(call)                                                                                  \
    do {                                                                                             \
        cudaError_t error_ = (call);                                                                 \
        if (error_ != cudaSuccess) {                                                                 \
            fprintf(stderr, "%s: %s (line %d)\n", #call, cudaGetErrorString(error_), __LINE__);      \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)

__device__ uint32_t sink;

template <class T> __device__ uint32_t fold(T v);
template <> __device__ uint32_t fold(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }
template <> __device__ uint32_t fold(uint32_t v) { return v; }

template <class T> __global__ void read(const T *p, size_t n) {
    size_t step = size_t(gridDim.x) * blockDim.x, i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    uint32_t sum = 0;
#pragma unroll 4
    for (; i < n; i += step) sum ^= fold<T>(p[i]);
    if (sum == 0x12345678) sink = sum;
}

__global__ void quantised(const uint8_t *p, size_t blocks) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    uint32_t sum = 0;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < blocks * 4; i += step) {
        const uint16_t *q = reinterpret_cast<const uint16_t *>(p + i / 4 * 18);
        int part = i & 3;
        sum ^= q[0] ^ q[1 + 2 * part] ^ (uint32_t(q[2 + 2 * part]) << 16);
    }
    if (sum == 0x12345678) sink = sum;
}

__global__ void write(uint4 *p, size_t n) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) p[i] = make_uint4(i, 1, 2, 3);
}

// GB/s of the best and of the median of nine runs.
struct Rates {
    double best, median;
};

template <class F> Rates measure(double bytes, F enqueue) {
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<double> rates;
    for (int run = 0; run < 10; run++) {
        CHECK(cudaEventRecord(begin));
        enqueue();
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (run) rates.push_back(bytes / ms / 1e6);
    }
    CHECK(cudaGetLastError());
    std::sort(rates.begin(), rates.end());
    return {rates.back(), rates[rates.size() / 2]};
}

int main(int argc, char **argv) {
    size_t bytes = size_t(1) << 30;
    if (argc == 3 && !strcmp(argv[1], "--bytes")) bytes = strtoull(argv[2], nullptr, 10);
    int blocks = 0;
    CHECK(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0));
    blocks *= 8;
    uint8_t *host, *device;
    CHECK(cudaHostAlloc(reinterpret_cast<void **>(&host), bytes, cudaHostAllocMapped));
    memset(host, 1, bytes);
    CHECK(cudaMalloc(reinterpret_cast<void **>(&device), bytes));
    uint8_t *mapped;
    CHECK(cudaHostGetDevicePointer(reinterpret_cast<void **>(&mapped), host, 0));
    cudaStream_t up, down;
    CHECK(cudaStreamCreateWithFlags(&up, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&down, cudaStreamNonBlocking));
    cudaEvent_t start, ended[2];
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&ended[0]));
    CHECK(cudaEventCreate(&ended[1]));

    Rates h2d = measure(bytes, [&] { CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice)); });
    Rates d2h = measure(bytes, [&] { CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost)); });
    Rates both = measure(bytes, [&] {
        CHECK(cudaEventRecord(start));
        CHECK(cudaStreamWaitEvent(up, start, 0));
        CHECK(cudaStreamWaitEvent(down, start, 0));
        CHECK(cudaMemcpyAsync(device, host, bytes / 2, cudaMemcpyHostToDevice, up));
        CHECK(cudaMemcpyAsync(host + bytes / 2, device + bytes / 2, bytes / 2, cudaMemcpyDeviceToHost, down));
        CHECK(cudaEventRecord(ended[0], up));
        CHECK(cudaEventRecord(ended[1], down));
        CHECK(cudaStreamWaitEvent(0, ended[0], 0));
        CHECK(cudaStreamWaitEvent(0, ended[1], 0));
    });
    Rates read16 = measure(bytes, [&] { read<uint4><<<blocks, 512>>>(reinterpret_cast<uint4 *>(mapped), bytes / 16); });
    Rates read4 = measure(bytes, [&] { read<uint32_t><<<blocks, 512>>>(reinterpret_cast<uint32_t *>(mapped), bytes / 4); });
    Rates quant = measure(bytes / 18 * 18, [&] { quantised<<<blocks, 512>>>(mapped, bytes / 18); });
    Rates write16 = measure(bytes, [&] { write<<<blocks, 512>>>(reinterpret_cast<uint4 *>(mapped), bytes / 16); });
    Rates vram = measure(bytes, [&] { read<uint4><<<blocks, 512>>>(reinterpret_cast<uint4 *>(device), bytes / 16); });
    auto print = [](const char *name, Rates r, const char *after) {
        printf("\"%s\": {\"best\": %.3f, \"median\": %.3f}%s", name, r.best, r.median, after);
    };
    printf("RESULT {\"ok\": true, ");
    print("dma.h2d", h2d, ", ");
    print("dma.d2h", d2h, ", ");
    print("dma.both", both, ", ");
    print("zero.read16", read16, ", ");
    print("zero.read4", read4, ", ");
    print("zero.quantised", quant, ", ");
    print("zero.write16", write16, ", ");
    print("vram.read", vram, "}\n");
    return 0;
}
