// The worker of stress.cu: it holds blocks, does random things to them, and knows every byte of them.
#pragma once
#include <cuda.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "samples/section.cuh"

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr size_t SEGMENT = 64 * KiB, WORDS = SEGMENT / 8;
constexpr int DEEP = 4;

/// What a segment of a block holds: word j is `mix(first + j)`, or `first` itself everywhere; then stirred some times.
struct Segment {
    u64 first;
    u64 stirs[DEEP];
    u32 constant, depth;

    __host__ __device__ u64 word(u64 j) const {
        u64 w = constant ? first : mix(first + j);
        for (u32 k = 0; k < depth; k++) w = mix(w + stirs[k]);
        return w;
    }
};

struct Bad {
    u64 count, at, is, should;
};

static __global__ void compareKernel(const u64* p, u64 words, const Segment* model, Bad* bad) {
    for (u64 i = firstIndex(); i < words; i += strideOfGrid()) {
        u64 is = p[i], should = model[i / WORDS].word(i % WORDS);
        if (is == should) continue;
        if (atomicAdd(&bad->count, 1ull) == 0) *bad = {1, i, is, should};
    }
}

// Segments [first, first + n) of a block, each with its own start.
static __global__ void fillSegments(u64* p, u64 words, u64 seed) {
    for (u64 i = firstIndex(); i < words; i += strideOfGrid()) p[i] = mix(mix(seed + i / WORDS) + i % WORDS);
}

enum Kind { PLAIN, ASYNC, MAPPED, KINDS };
static const char* const KIND_NAMES[] = {"plain", "stream-ordered", "mapped"};

struct Block {
    Kind kind;
    u64* at;
    size_t bytes;
    std::vector<Segment> model;  // the last one may be cut short
    cudaEvent_t used;            // after the last operation that names it
    cudaStream_t last;
    CUmemGenericAllocationHandle handle;

    /// Segments that are whole.
    size_t whole() const { return bytes / SEGMENT; }
};

static std::atomic<u64> mismatches, outOfMemory, operations, allocations, moved, launches, graphs;
static std::atomic<bool> stopped;
static std::mutex say;
static Segment commonModel;
static u64* common;
static constexpr size_t COMMON = 8 * MiB;

static void wrong(const std::string& what) {
    std::lock_guard<std::mutex> guard(say);
    if (++mismatches <= 20) printf("FAILED: %s\n", what.c_str());
    fflush(stdout);
}

static void cu(CUresult r, const char* what) {
    const char* name = "?";
    if (r == CUDA_SUCCESS) return;
    cuGetErrorName(r, &name);
    throw std::runtime_error(std::string(what) + ": " + name);
}

class Worker {
public:
    Worker(u64 seed, size_t budget, int index) : random(seed), budget(budget), index(index) {
        MUST(cudaSetDevice(0));
        MUST(cudaStreamCreate(&streams[0]));
        MUST(cudaStreamCreateWithFlags(&streams[1], cudaStreamNonBlocking));
        MUST(cudaHostAlloc(reinterpret_cast<void**>(&staging), STAGING, cudaHostAllocDefault));
        modelRoom = (budget / SEGMENT + 2) * sizeof(Segment);
        MUST(cudaHostAlloc(reinterpret_cast<void**>(&model), modelRoom, cudaHostAllocMapped));
        MUST(cudaHostAlloc(reinterpret_cast<void**>(&bad), sizeof(Bad), cudaHostAllocMapped));
    }

    ~Worker() {
        for (auto s : streams) cudaStreamDestroy(s);
        cudaFreeHost(staging);
        cudaFreeHost(model);
        cudaFreeHost(bad);
    }

    /// Works until the time is over, then frees everything.
    void round(double until) {
        while (now() < until && !stopped) step();
        finish();
    }

    /// Every operation on every kind of block and on each stream: what the driver sets up at first use is there afterwards.
    void warm() {
        for (int i = 0; i < 2 * KINDS; i++) grow(Kind(i % KINDS), 4 * MiB);
        grow(PLAIN, 200 * KiB);
        grow(ASYNC, 200 * KiB);
        if (blocks.empty()) throw std::runtime_error("no memory to begin with");
        for (int pass = 0; pass < 4; pass++)
            for (auto& b : blocks)
                for (u64 what = FIRST_USE; what < OPERATIONS; what++) use(what, b, pick());
        finish();
    }

private:
    static constexpr size_t STAGING = 4 * MiB;
    std::mt19937_64 random;
    size_t budget, held = 0, modelRoom;
    int index;
    cudaStream_t streams[2];
    char* staging;
    Segment* model;
    Bad* bad;
    std::vector<Block> blocks;

    static constexpr u64 FIRST_USE = 4, OPERATIONS = 21;

    u64 below(u64 n) { return random() % n; }

    void step() {
        operations++;
        u64 what = blocks.size() < 3 ? 0 : below(OPERATIONS);
        if (what < 3) return grow();
        if (what == 3) return drop(below(blocks.size()));
        Block& other = pick();
        use(what, pick(), other);
    }

    void use(u64 what, Block& b, Block& other) {
        switch (what) {
            case 4: case 5: return fillSome(b);
            case 6: case 7: return stirSome(b);
            case 8: case 9: return setSome(b);
            case 10: case 11: case 12: return copySome(b, other);
            case 13: return copyRows(b, other);
            case 14: return upload(b);
            case 15: return download(b);
            case 16: return copyCommon(b);
            case 17: return capture(b);
            case 18: return captureMemory(b);
            default: return compare(b);
        }
    }

    void finish() {
        for (auto& b : blocks) compare(b);
        while (!blocks.empty()) drop(blocks.size() - 1);
        for (auto s : streams) MUST(cudaStreamSynchronize(s));
    }

    Block& pick() { return blocks[below(blocks.size())]; }

    cudaStream_t stream() {
        u64 k = below(8);
        return k == 0 ? nullptr : streams[k % 2];
    }

    /// Orders `s` behind the last operation on the block.
    void enter(Block& b, cudaStream_t s) {
        if (b.last != s) MUST(cudaStreamWaitEvent(s, b.used, 0));
    }

    void leave(Block& b, cudaStream_t s) {
        MUST(cudaGetLastError());
        MUST(cudaEventRecord(b.used, s));
        b.last = s;
    }

    size_t size() {
        u64 kind = below(10);
        size_t n = kind < 4 ? 4 * KiB + below(MiB) : kind < 9 ? 2 * MiB + below(24 * MiB) : 32 * MiB + below(48 * MiB);
        return std::max<size_t>(512, std::min(n, budget / 3)) / 8 * 8;
    }

    void grow() {
        size_t bytes = size();
        grow(bytes < 2 * MiB ? Kind(below(2)) : Kind(below(KINDS)), bytes);
    }

    void grow(Kind kind, size_t bytes) {
        while (held + bytes > budget && !blocks.empty()) drop(below(blocks.size()));
        Block b = {};
        b.kind = kind;
        b.bytes = bytes;
        cudaStream_t s = b.kind == ASYNC ? streams[below(2)] : stream();
        void* p = nullptr;
        cudaError_t e = cudaSuccess;
        switch (b.kind) {
            case PLAIN: e = cudaMalloc(&p, bytes); break;
            case ASYNC: e = cudaMallocAsync(&p, bytes, s); break;
            default: e = map(b, &p);
        }
        if (e == cudaErrorMemoryAllocation) {
            (void)cudaGetLastError();
            outOfMemory++;
            if (!blocks.empty()) drop(below(blocks.size()));
            return;
        }
        MUST(e);
        allocations++;
        b.at = static_cast<u64*>(p);
        MUST(cudaEventCreateWithFlags(&b.used, cudaEventDisableTiming));
        b.model.resize((b.bytes + SEGMENT - 1) / SEGMENT);
        held += b.bytes;
        u64 seed = random();
        write(b, seed, s);
        leave(b, s);
        blocks.push_back(std::move(b));
    }

    /// All of a block, by kernel.
    void write(Block& b, u64 seed, cudaStream_t s) {
        fillSegments<<<128, THREADS, 0, s>>>(b.at, b.bytes / 8, seed);
        launches++;
        for (u64 k = 0; k < b.model.size(); k++) b.model[k] = {mix(seed + k), {}, 0, 0};
    }

    cudaError_t map(Block& b, void** p) {
        b.bytes = (b.bytes + 2 * MiB - 1) / (2 * MiB) * (2 * MiB);
        CUmemAllocationProp property = {};
        property.type = CU_MEM_ALLOCATION_TYPE_PINNED;
        property.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        CUresult r = cuMemCreate(&b.handle, b.bytes, &property, 0);
        if (r == CUDA_ERROR_OUT_OF_MEMORY) return cudaErrorMemoryAllocation;
        cu(r, "cuMemCreate");
        CUdeviceptr at;
        cu(cuMemAddressReserve(&at, b.bytes, 0, 0, 0), "cuMemAddressReserve");
        cu(cuMemMap(at, b.bytes, 0, b.handle, 0), "cuMemMap");
        CUmemAccessDesc access = {};
        access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        r = cuMemSetAccess(at, b.bytes, &access, 1);
        if (r == CUDA_ERROR_OUT_OF_MEMORY) {
            cu(cuMemUnmap(at, b.bytes), "cuMemUnmap");
            cu(cuMemAddressFree(at, b.bytes), "cuMemAddressFree");
            cu(cuMemRelease(b.handle), "cuMemRelease");
            return cudaErrorMemoryAllocation;
        }
        cu(r, "cuMemSetAccess");
        *p = reinterpret_cast<void*>(at);
        return cudaSuccess;
    }

    void drop(size_t which) {
        Block b = std::move(blocks[which]);
        blocks[which] = std::move(blocks.back());
        blocks.pop_back();
        held -= b.bytes;
        switch (b.kind) {
            case PLAIN:
                // Without waiting for what still runs on it: cudaFree waits.
                MUST(cudaFree(b.at));
                break;
            case ASYNC: {
                cudaStream_t s = streams[below(2)];
                enter(b, s);
                MUST(cudaFreeAsync(b.at, s));
                break;
            }
            default: {
                MUST(cudaEventSynchronize(b.used));
                CUdeviceptr at = CUdeviceptr(b.at);
                cu(cuMemUnmap(at, b.bytes), "cuMemUnmap");
                cu(cuMemAddressFree(at, b.bytes), "cuMemAddressFree");
                cu(cuMemRelease(b.handle), "cuMemRelease");
            }
        }
        MUST(cudaEventDestroy(b.used));
    }

    /// A run of whole segments; false when there is none.
    bool some(const Block& b, size_t& first, size_t& n, size_t most = 256) {
        if (!b.whole()) return false;
        first = below(b.whole());
        n = 1 + below(std::min(b.whole() - first, most));
        return true;
    }

    void fillSome(Block& b) {
        size_t first, n;
        if (!some(b, first, n)) return;
        cudaStream_t s = stream();
        u64 seed = random();
        enter(b, s);
        fillSegments<<<64, THREADS, 0, s>>>(b.at + first * WORDS, n * WORDS, seed);
        launches++;
        leave(b, s);
        for (size_t k = 0; k < n; k++) b.model[first + k] = {mix(seed + k), {}, 0, 0};
    }

    void stirSome(Block& b) {
        size_t first, n;
        if (!some(b, first, n)) return;
        for (size_t k = 0; k < n; k++)
            if (b.model[first + k].depth == DEEP) n = k;
        if (!n) return;
        cudaStream_t s = stream();
        u64 v = random();
        enter(b, s);
        stirKernel<<<64, THREADS, 0, s>>>(b.at + first * WORDS, n * WORDS, v);
        launches++;
        leave(b, s);
        for (size_t k = 0; k < n; k++) {
            Segment& m = b.model[first + k];
            m.stirs[m.depth++] = v;
        }
    }

    void setSome(Block& b) {
        size_t first, n;
        if (!some(b, first, n)) return;
        cudaStream_t s = stream();
        u64 byte = below(256);
        enter(b, s);
        if (!s && below(2)) MUST(cudaMemset(b.at + first * WORDS, int(byte), n * SEGMENT));
        else if (below(4) == 0) MUST(cudaMemset2DAsync(b.at + first * WORDS, SEGMENT, int(byte), SEGMENT, n, s));
        else MUST(cudaMemsetAsync(b.at + first * WORDS, int(byte), n * SEGMENT, s));
        leave(b, s);
        for (size_t k = 0; k < n; k++) b.model[first + k] = {byte * 0x0101010101010101ull, {}, 1, 0};
    }

    void copySome(Block& from, Block& to) {
        size_t first, n, there, room;
        if (!some(from, first, n, 512) || !some(to, there, room, 512)) return;
        n = std::min(n, room);
        if (&from == &to && first < there + n && there < first + n) return;
        cudaStream_t s = stream();
        enter(from, s);
        enter(to, s);
        if (!s && below(2)) MUST(cudaMemcpy(to.at + there * WORDS, from.at + first * WORDS, n * SEGMENT, cudaMemcpyDeviceToDevice));
        else MUST(cudaMemcpyAsync(to.at + there * WORDS, from.at + first * WORDS, n * SEGMENT, cudaMemcpyDefault, s));
        moved += n * SEGMENT;
        leave(from, s);
        leave(to, s);
        for (size_t k = 0; k < n; k++) to.model[there + k] = from.model[first + k];
    }

    /// Every second segment.
    void copyRows(Block& from, Block& to) {
        if (&from == &to) return;
        size_t n = std::min({from.whole(), to.whole(), size_t(200)}) / 2;
        if (!n) return;
        cudaStream_t s = stream();
        enter(from, s);
        enter(to, s);
        MUST(cudaMemcpy2DAsync(to.at, 2 * SEGMENT, from.at + WORDS, 2 * SEGMENT, SEGMENT, n, cudaMemcpyDeviceToDevice, s));
        moved += n * SEGMENT;
        leave(from, s);
        leave(to, s);
        for (size_t k = 0; k < n; k++) to.model[2 * k] = from.model[2 * k + 1];
    }

    void upload(Block& b) {
        size_t first, n;
        if (!some(b, first, n, STAGING / SEGMENT)) return;
        u64 seed = random();
        auto* words = reinterpret_cast<u64*>(staging);
        for (size_t k = 0; k < n; k++) {
            Segment m = {mix(seed + k), {}, 0, 0};
            for (u64 j = 0; j < WORDS; j++) words[k * WORDS + j] = m.word(j);
            b.model[first + k] = m;
        }
        cudaStream_t s = stream();
        enter(b, s);
        if (!s && below(2)) MUST(cudaMemcpy(b.at + first * WORDS, staging, n * SEGMENT, cudaMemcpyHostToDevice));
        else MUST(cudaMemcpyAsync(b.at + first * WORDS, staging, n * SEGMENT, cudaMemcpyHostToDevice, s));
        leave(b, s);
        moved += n * SEGMENT;
        // The staging buffer is used again.
        MUST(cudaEventSynchronize(b.used));
    }

    void download(Block& b) {
        size_t first, n;
        if (!some(b, first, n, STAGING / SEGMENT)) return;
        cudaStream_t s = stream();
        enter(b, s);
        MUST(cudaMemcpyAsync(staging, b.at + first * WORDS, n * SEGMENT, cudaMemcpyDeviceToHost, s));
        leave(b, s);
        MUST(cudaEventSynchronize(b.used));
        moved += n * SEGMENT;
        auto* words = reinterpret_cast<u64*>(staging);
        for (size_t k = 0; k < n; k++)
            for (u64 j = 0; j < WORDS; j++)
                if (words[k * WORDS + j] != b.model[first + k].word(j)) {
                    wrong("a download from a " + std::string(KIND_NAMES[b.kind]) + " block of " + std::to_string(b.bytes) +
                          " bytes, segment " + std::to_string(first + k) + ", word " + std::to_string(j));
                    return;
                }
    }

    /// From the block that all threads read.
    void copyCommon(Block& b) {
        size_t first, n;
        if (!some(b, first, n, COMMON / SEGMENT)) return;
        size_t from = below(COMMON / SEGMENT - n + 1);
        cudaStream_t s = stream();
        enter(b, s);
        MUST(cudaMemcpyAsync(b.at + first * WORDS, common + from * WORDS, n * SEGMENT, cudaMemcpyDeviceToDevice, s));
        moved += n * SEGMENT;
        leave(b, s);
        for (size_t k = 0; k < n; k++) {
            b.model[first + k] = commonModel;
            b.model[first + k].first += (from + k) * WORDS;
        }
    }

    /// A graph that fills, sets and stirs; launched twice, which is the same as once.
    void capture(Block& b) {
        size_t first, n;
        if (!some(b, first, n)) return;
        u64 seed = random(), v = random();
        size_t set = below(n + 1);
        inGraph(b, [&](cudaStream_t s) {
            fillSegments<<<64, THREADS, 0, s>>>(b.at + first * WORDS, n * WORDS, seed);
            if (set) MUST(cudaMemsetAsync(b.at + first * WORDS, 0x5A, set * SEGMENT, s));
            stirKernel<<<64, THREADS, 0, s>>>(b.at + first * WORDS, n * WORDS, v);
        });
        for (size_t k = 0; k < n; k++) {
            Segment& m = b.model[first + k];
            m = k < set ? Segment{0x5A5A5A5A5A5A5A5Aull, {}, 1, 0} : Segment{mix(seed + k), {}, 0, 0};
            m.stirs[m.depth++] = v;
        }
    }

    /// A graph with memory of its own, from which the block is filled.
    void captureMemory(Block& b) {
        size_t first, n;
        if (!some(b, first, n)) return;
        u64 seed = random(), v = random();
        inGraph(b, [&](cudaStream_t s) {
            void* own;
            MUST(cudaMallocAsync(&own, n * SEGMENT, s));
            fillSegments<<<64, THREADS, 0, s>>>(static_cast<u64*>(own), n * WORDS, seed);
            MUST(cudaMemcpyAsync(b.at + first * WORDS, own, n * SEGMENT, cudaMemcpyDeviceToDevice, s));
            stirKernel<<<64, THREADS, 0, s>>>(b.at + first * WORDS, n * WORDS, v);
            MUST(cudaFreeAsync(own, s));
        });
        moved += n * SEGMENT;
        for (size_t k = 0; k < n; k++) b.model[first + k] = {mix(seed + k), {v}, 0, 1};
    }

    /// Captures what `record` puts on the stream; launches it twice.
    template <class F>
    void inGraph(Block& b, F record) {
        cudaStream_t s = streams[1];
        enter(b, s);
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        MUST(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
        record(s);
        MUST(cudaStreamEndCapture(s, &graph));
        MUST(cudaGraphInstantiate(&exec, graph, 0));
        MUST(cudaGraphLaunch(exec, s));
        MUST(cudaGraphLaunch(exec, s));
        leave(b, s);
        MUST(cudaGraphExecDestroy(exec));
        MUST(cudaGraphDestroy(graph));
        graphs++;
    }

    void compare(Block& b) {
        cudaStream_t s = streams[below(2)];
        std::copy(b.model.begin(), b.model.end(), model);
        *bad = {};
        enter(b, s);
        compareKernel<<<128, THREADS, 0, s>>>(b.at, b.bytes / 8, model, bad);
        launches++;
        leave(b, s);
        MUST(cudaStreamSynchronize(s));
        if (bad->count) {
            char text[300];
            snprintf(text, sizeof text,
                     "thread %d: %llu words of a %s block of %zu bytes; word %llu is %016llx, should be %016llx (segment %llu, depth %u)",
                     index, bad->count, KIND_NAMES[b.kind], b.bytes, bad->at, bad->is, bad->should, bad->at / WORDS,
                     b.model[bad->at / WORDS].depth);
            wrong(text);
            // Right again, so that each mistake is told once.
            write(b, random(), s);
            leave(b, s);
        }
    }
};
