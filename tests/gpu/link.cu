// What the link does, measured independently of greenboost: copies by the runtime API, kernels that use pinned memory in
// place. The figures of `greenboost probe` are held against these. Prints one RESULT line.
//
//     link [--bytes N] [--rounds N] [--huge]
//
// A round is one run of each; the first does not count. --huge takes huge pages of its own and registers them, in place of
// what cudaHostAlloc gives.
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
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

struct Figure {
    const char *name;
    double bytes;
    std::function<void()> enqueue;
    std::vector<double> rates;
};

static uint8_t *pinned(size_t bytes, bool huge) {
    uint8_t *host;
    if (!huge) {
        CHECK(cudaHostAlloc(reinterpret_cast<void **>(&host), bytes, cudaHostAllocMapped));
    } else {
        const size_t border = size_t(2) << 20;
        void *area = mmap(nullptr, bytes + border, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED) exit((perror("mmap"), 1));
        host = reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(area) + border - 1) / border * border);
        madvise(host, bytes, MADV_HUGEPAGE);
        CHECK(cudaHostRegister(host, bytes, cudaHostRegisterMapped));
    }
    memset(host, 1, bytes);
    return host;
}

int main(int argc, char **argv) {
    size_t bytes = size_t(1) << 30;
    int rounds = 15;
    bool huge = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--huge")) huge = true;
        else if (!strcmp(argv[i], "--bytes") && i + 1 < argc) bytes = strtoull(argv[++i], nullptr, 10);
        else if (!strcmp(argv[i], "--rounds") && i + 1 < argc) rounds = atoi(argv[++i]);
        else return fprintf(stderr, "what is %s?\n", argv[i]), 2;
    }
    int blocks = 0;
    CHECK(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0));
    blocks *= 8;
    uint8_t *host = pinned(bytes, huge), *device, *mapped;
    CHECK(cudaMalloc(reinterpret_cast<void **>(&device), bytes));
    CHECK(cudaHostGetDevicePointer(reinterpret_cast<void **>(&mapped), host, 0));
    cudaStream_t up, down;
    CHECK(cudaStreamCreateWithFlags(&up, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&down, cudaStreamNonBlocking));
    cudaEvent_t begin, end, start, ended[2];
    for (cudaEvent_t *event : {&begin, &end, &start, &ended[0], &ended[1]}) CHECK(cudaEventCreate(event));

    auto both = [&] {
        CHECK(cudaEventRecord(start));
        CHECK(cudaStreamWaitEvent(up, start, 0));
        CHECK(cudaStreamWaitEvent(down, start, 0));
        CHECK(cudaMemcpyAsync(device, host, bytes / 2, cudaMemcpyHostToDevice, up));
        CHECK(cudaMemcpyAsync(host + bytes / 2, device + bytes / 2, bytes / 2, cudaMemcpyDeviceToHost, down));
        CHECK(cudaEventRecord(ended[0], up));
        CHECK(cudaEventRecord(ended[1], down));
        CHECK(cudaStreamWaitEvent(0, ended[0], 0));
        CHECK(cudaStreamWaitEvent(0, ended[1], 0));
    };
    auto wide = [](uint8_t *p) { return reinterpret_cast<uint4 *>(p); };
    const double all = double(bytes);
    std::vector<Figure> figures = {
        {"dma.h2d", all, [&] { CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice)); }, {}},
        {"dma.d2h", all, [&] { CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost)); }, {}},
        {"dma.both", all, both, {}},
        {"zero.read16", all, [&] { read<uint4><<<blocks, 512>>>(wide(mapped), bytes / 16); }, {}},
        {"zero.read4", all, [&] { read<uint32_t><<<blocks, 512>>>(reinterpret_cast<uint32_t *>(mapped), bytes / 4); }, {}},
        {"zero.quantised", double(bytes / 18 * 18), [&] { quantised<<<blocks, 512>>>(mapped, bytes / 18); }, {}},
        {"zero.write16", all, [&] { write<<<blocks, 512>>>(wide(mapped), bytes / 16); }, {}},
        {"vram.read", all, [&] { read<uint4><<<blocks, 512>>>(wide(device), bytes / 16); }, {}},
    };
    for (int round = 0; round <= rounds; round++) {
        for (Figure &figure : figures) {
            CHECK(cudaEventRecord(begin));
            figure.enqueue();
            CHECK(cudaEventRecord(end));
            CHECK(cudaEventSynchronize(end));
            CHECK(cudaGetLastError());
            float ms = 0;
            CHECK(cudaEventElapsedTime(&ms, begin, end));
            if (round) figure.rates.push_back(figure.bytes / ms / 1e6);
        }
    }
    printf("RESULT {\"ok\": true");
    for (Figure &figure : figures) {
        std::vector<double> &rates = figure.rates;
        std::sort(rates.begin(), rates.end());
        printf(", \"%s\": {\"best\": %.3f, \"median\": %.3f, \"worst\": %.3f}", figure.name, rates.back(),
               rates[rates.size() / 2], rates.front());
    }
    printf("}\n");
    return 0;
}
