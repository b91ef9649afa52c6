// What involves the host: pinned and registered memory, a little managed memory, callbacks, stream memory operations,
// threads with per-thread default streams, contexts that move between threads. Built with --default-stream per-thread.
#include <cuda.h>
#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "section.cuh"

static void must(CUresult r, const char* what, int line) {
    if (r == CUDA_SUCCESS) return;
    const char* name = "?";
    cuGetErrorName(r, &name);
    throw std::runtime_error(std::string(what) + ": " + name + ", host.cu:" + std::to_string(line));
}
#define CU(call) must((call), #call, __LINE__)

template <class T>
static T* take(size_t bytes) {
    void* p;
    MUST(cudaMalloc(&p, bytes));
    return static_cast<T*>(p);
}

/// Pinned memory of several kinds, used by kernels and copies.
static void pinned(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 8 * MiB;
    u64* device = take<u64>(bytes);
    for (unsigned flags : {unsigned(cudaHostAllocDefault), unsigned(cudaHostAllocMapped | cudaHostAllocPortable),
                           unsigned(cudaHostAllocWriteCombined | cudaHostAllocMapped)}) {
        u64 *host, *mapped;
        MUST(cudaHostAlloc(reinterpret_cast<void**>(&host), bytes, flags));
        for (u64 i = 0; i < bytes / 8; i++) host[i] = mix(flags + i);
        MUST(cudaHostGetDevicePointer(reinterpret_cast<void**>(&mapped), host, 0));
        MUST(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, cudaStreamPerThread));
        s.filled(device, bytes, flags, "an upload from pinned memory");
        stir(mapped, bytes, 5);
        MUST(cudaStreamSynchronize(cudaStreamPerThread));
        s.take(foldHost(host, bytes));
        MUST(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cudaStreamPerThread));
        MUST(cudaStreamSynchronize(cudaStreamPerThread));
        s.expect(foldHost(host, bytes) == foldHost(bytes, [=](u64 i) { return mix(flags + i); }), "a download to pinned memory");
        cudaPointerAttributes a;
        MUST(cudaPointerGetAttributes(&a, host));
        s.take(a.type);
        unsigned is;
        MUST(cudaHostGetFlags(&is, host));
        s.take(is);
        MUST(cudaFreeHost(host));
    }
    // Ordinary memory, registered.
    for (int form = 0; form < 3; form++) {
        void* map = mmap(nullptr, bytes + 2 * MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) throw std::runtime_error("mmap");
        size_t shift = form == 1 ? 4096 : form == 2 ? 64 : 0;  // the last is not on a page's edge
        u64 *host = reinterpret_cast<u64*>(static_cast<char*>(map) + shift), *mapped;
        for (u64 i = 0; i < bytes / 8; i++) host[i] = mix(i * 3);
        MUST(cudaHostRegister(host, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
        MUST(cudaHostGetDevicePointer(reinterpret_cast<void**>(&mapped), host, 0));
        stir(mapped, bytes, form);
        MUST(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, cudaStreamPerThread));
        s.words(device, bytes, [=](u64 i) { return mix(mix(i * 3) + form); }, "registered memory");
        s.outcome(cudaHostRegister(host, bytes, 0));  // a second time
        MUST(cudaHostUnregister(host));
        s.outcome(cudaHostUnregister(host));
        munmap(map, bytes + 2 * MiB);
    }
    MUST(cudaFree(device));
    ballast.done();
}

__managed__ u64 shared[1024];

/// A few MiB of managed memory; never more than there is room for.
static void managed(Section& s) {
    int can = 0;
    MUST(cudaDeviceGetAttribute(&can, cudaDevAttrManagedMemory, 0));
    if (!can) throw Unsupported("no managed memory");
    const size_t bytes = 4 * MiB;
    u64* p;
    MUST(cudaMallocManaged(reinterpret_cast<void**>(&p), bytes));
    Ballast ballast(s, 56);
    u64* device = take<u64>(32 * MiB);
    for (u64 i = 0; i < bytes / 8; i++) p[i] = mix(i);
    stir(p, bytes, 1);
    MUST(cudaMemcpyAsync(device, p, bytes, cudaMemcpyDefault, cudaStreamPerThread));
    s.words(device, bytes, [](u64 i) { return mix(mix(i) + 1); }, "managed memory, seen by the device");
    MUST(cudaDeviceSynchronize());
    for (u64 i = 0; i < bytes / 8; i++) p[i] ^= 5;
    s.words(p, bytes, [](u64 i) { return mix(mix(i) + 1) ^ 5; }, "managed memory, changed by the host");
    cudaMemLocation here = {};
    here.type = cudaMemLocationTypeDevice;
    s.outcome(cudaMemAdvise(p, bytes, cudaMemAdviseSetPreferredLocation, here));
    s.outcome(cudaMemPrefetchAsync(p, bytes, here, 0, cudaStreamPerThread));
    s.take(p, bytes);
    MUST(cudaDeviceSynchronize());
    for (u64 i = 0; i < 1024; i++) shared[i] = i;
    stir(shared, sizeof shared, 2);
    MUST(cudaDeviceSynchronize());
    s.take(foldHost(shared, sizeof shared));
    cudaPointerAttributes a;
    MUST(cudaPointerGetAttributes(&a, p));
    s.take(a.type);
    MUST(cudaFree(p));
    MUST(cudaFree(device));
    ballast.done();
}

struct Seen {
    const u64* at;
    size_t words;
    u64 sum = 0;
    std::atomic<int> calls{0};
};

static void CUDART_CB look(void* data) {
    auto* seen = static_cast<Seen*>(data);
    seen->sum = foldHost(seen->at, seen->words * 8);
    seen->calls++;
}

static void CUDART_CB lookOld(cudaStream_t, cudaError_t e, void* data) {
    if (e == cudaSuccess) look(data);
}

/// Host functions in streams see what ran before them; others allocate and free meanwhile.
static void callbacks(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 8 * MiB;
    u64* host;
    MUST(cudaMallocHost(reinterpret_cast<void**>(&host), bytes));
    u64* device = take<u64>(bytes);
    cudaStream_t stream;
    MUST(cudaStreamCreate(&stream));
    for (u64 round = 0; round < 6; round++) {
        Seen seen{host, bytes / 8};
        memset(host, 0, bytes);
        fill(device, bytes, round, stream);
        spin(5, stream);
        MUST(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
        if (round % 2) MUST(cudaLaunchHostFunc(stream, look, &seen));
        else MUST(cudaStreamAddCallback(stream, lookOld, &seen, 0));
        stir(device, bytes, 1, stream);
        u64* other = take<u64>(4 * MiB);
        fill(other, 4 * MiB, round);
        s.filled(other, 4 * MiB, round, "memory allocated meanwhile");
        MUST(cudaFree(other));
        MUST(cudaStreamSynchronize(stream));
        s.expect(seen.calls == 1, "a host function ran " + std::to_string(seen.calls) + " times");
        s.expect(seen.sum == foldHost(bytes, [=](u64 i) { return mix(round + i); }), "a host function saw other words");
        s.take(seen.sum);
        s.take(device, bytes, stream);
    }
    MUST(cudaStreamDestroy(stream));
    MUST(cudaFreeHost(host));
    MUST(cudaFree(device));
    ballast.done();
}

/// Values written and waited for by streams, in pinned memory and in device memory that spills.
static void memops(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 8 * MiB;
    u64* device = take<u64>(bytes);
    u32* flags = take<u32>(4 * MiB);
    u32* host;
    MUST(cudaHostAlloc(reinterpret_cast<void**>(&host), 4096, cudaHostAllocMapped));
    memset(host, 0, 4096);
    MUST(cudaMemset(flags, 0, 4 * MiB));
    // Kernels are loaded at their first launch, which may wait for streams that wait for this thread (CUDA's documentation
    // of lazy loading; seen here, without greenboost): before anything waits.
    fill(device, bytes, 0);
    stir(device, bytes, 0);
    spin(0.01);
    (void)fold(device, bytes);
    MUST(cudaDeviceSynchronize());
    cudaStream_t a, b;
    MUST(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    MUST(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    auto at = [](auto* p) { return CUdeviceptr(p); };
    for (u32 round = 1; round <= 3; round++) {
        // b works on what a has finished, and tells a through device memory.
        CUresult r = cuStreamWaitValue32(b, at(flags + 1000), round, CU_STREAM_WAIT_VALUE_GEQ);
        if (r == CUDA_ERROR_NOT_SUPPORTED) throw Unsupported("no stream memory operations");
        CU(r);
        stir(device, bytes, 7, b);
        CU(cuStreamWriteValue32(b, at(flags + 500'000), round * 10, 0));
        fill(device, bytes, round, a);
        spin(5, a);
        CU(cuStreamWriteValue32(a, at(flags + 1000), round, 0));
        CU(cuStreamWaitValue32(a, at(flags + 500'000), round * 10, CU_STREAM_WAIT_VALUE_EQ));
        stir(device, bytes, 9, a);
        s.words(device, bytes, [=](u64 i) { return mix(mix(mix(round + i) + 7) + 9); }, "work behind a value", a);
    }
    // A batch; the host lets the stream go on.
    CUstreamBatchMemOpParams op[3] = {};
    op[0].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    op[0].waitValue.address = at(host);
    op[0].waitValue.value = 1;
    op[0].waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
    op[1].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_64;
    op[1].writeValue.address = at(flags + 2000);
    op[1].writeValue.value64 = 0x1122334455667788ull;
    op[2].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    op[2].writeValue.address = at(host + 8);
    op[2].writeValue.value = 99;
    CU(cuStreamBatchMemOp(a, 3, op, 0));
    s.expect(cudaStreamQuery(a) == cudaErrorNotReady, "the stream did not wait for the host");
    reinterpret_cast<volatile u32*>(host)[0] = 1;
    MUST(cudaStreamSynchronize(a));
    s.expect(host[8] == 99, "the batch did not write to the host");
    s.take(flags, 4 * MiB);
    s.take(host[8]);
    MUST(cudaStreamDestroy(a));
    MUST(cudaStreamDestroy(b));
    MUST(cudaFreeHost(host));
    MUST(cudaFree(device));
    MUST(cudaFree(flags));
    ballast.done();
}

/// Memory whose synchronous operations are made to wait, as RDMA needs it; and what other attributes answer.
static void attributes(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 24 * MiB;
    u64 *p = take<u64>(bytes), *q = take<u64>(bytes);
    fill(p, bytes, 2);
    MUST(cudaStreamSynchronize(0));
    unsigned one = 1, is = 7;
    s.take(cuPointerSetAttribute(&one, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, CUdeviceptr(p)));
    s.take(cuPointerGetAttribute(&is, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, CUdeviceptr(p)));
    s.take(is);
    CU(cuMemcpyDtoD(CUdeviceptr(q), CUdeviceptr(p), bytes));
    s.filled(q, bytes, 2, "a copy from such memory");
    CU(cuMemsetD8(CUdeviceptr(p), 3, bytes));
    s.words(p, bytes, [](u64) { return 0x0303030303030303ull; }, "a memset of such memory");
    for (CUdeviceptr at : {CUdeviceptr(q), CUdeviceptr(q) + 12'345'678}) {
        CUdeviceptr base = 0, start = 0;
        size_t size = 0, range = 0;
        unsigned kind = 0, ordinal = 9, isManaged = 9;
        CU(cuMemGetAddressRange(&base, &size, at));
        s.take(at - base);
        s.take(size);
        CU(cuPointerGetAttribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at));
        CU(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at));
        CU(cuPointerGetAttribute(&isManaged, CU_POINTER_ATTRIBUTE_IS_MANAGED, at));
        CU(cuPointerGetAttribute(&start, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, at));
        CU(cuPointerGetAttribute(&range, CU_POINTER_ATTRIBUTE_RANGE_SIZE, at));
        for (u64 value : {u64(kind), u64(ordinal), u64(isManaged), u64(at - start), u64(range)}) s.take(value);
        cudaPointerAttributes a;
        MUST(cudaPointerGetAttributes(&a, reinterpret_cast<void*>(at)));
        s.take(a.type);
        s.take(a.device);
        s.take(a.hostPointer == nullptr);
    }
    MUST(cudaFree(p));
    MUST(cudaFree(q));
    ballast.done();
}

/// Threads that share nothing, each on its own default stream.
static void threads(Section& s) {
    Ballast ballast(s, 48);
    std::vector<u64> sums(8);
    std::vector<std::string> bad(8);
    std::vector<std::thread> all;
    for (u64 t = 0; t < 8; t++)
        all.emplace_back([&, t] {
            try {
                for (u64 i = 0; i < 10; i++) {
                    size_t bytes = (1 + (t * 3 + i * 5) % 11) * MiB + i * 64;
                    u64 *p = take<u64>(bytes), *q = take<u64>(bytes);
                    fill(p, bytes, t * 100 + i);
                    MUST(cudaMemcpyAsync(q, p, bytes, cudaMemcpyDeviceToDevice));
                    stir(q, bytes, 2);
                    MUST(cudaFree(p));  // in use until a moment ago
                    sums[t] = mix(sums[t] + fold(q, bytes));
                    std::vector<u64> back(bytes / 8);
                    MUST(cudaMemcpy(back.data(), q, bytes, cudaMemcpyDeviceToHost));
                    sums[t] = mix(sums[t] + foldHost(back.data(), bytes));
                    size_t free, total;
                    MUST(cudaMemGetInfo(&free, &total));
                    MUST(cudaFree(q));
                }
            } catch (const std::exception& e) {
                bad[t] = e.what();
            }
        });
    for (auto& t : all) t.join();
    for (u64 t = 0; t < 8; t++) {
        s.take(sums[t]);
        s.expect(bad[t].empty(), bad[t]);
    }
    ballast.done();
}

/// Contexts of the program's own, made by one thread, used by others, destroyed by another one still.
static void contexts(Section& s) {
    CU(cuInit(0));
    CUdevice device;
    CU(cuDeviceGet(&device, 0));
    CUcontext mine[2];
    CUdeviceptr memory[2];
    const size_t bytes = 48 * MiB;
    for (int c = 0; c < 2; c++) {
#if CUDA_VERSION >= 13000
        CU(cuCtxCreate(&mine[c], nullptr, 0, device));
#else
        CU(cuCtxCreate(&mine[c], 0, device));
#endif
        CU(cuMemAlloc(&memory[c], bytes));
        CUcontext popped;
        CU(cuCtxPopCurrent(&popped));
        s.expect(popped == mine[c], "another context was popped");
    }
    std::vector<std::string> bad(6);
    std::vector<u64> sums(6);
    // Three threads for each context, one after another: it floats from thread to thread.
    std::condition_variable turn;
    std::mutex turnLock;
    int next[2] = {0, 0};
    std::vector<std::thread> all;
    for (int t = 0; t < 6; t++)
        all.emplace_back([&, t] {
            int c = t % 2, place = t / 2;
            try {
                {
                    std::unique_lock<std::mutex> guard(turnLock);
                    turn.wait(guard, [&] { return next[c] == place; });
                }
                CU(cuCtxPushCurrent(mine[c]));
                void* p = reinterpret_cast<void*>(memory[c]);
                if (place == 0) fill(p, bytes, c);
                stir(p, bytes, place);
                CUdeviceptr side;
                CU(cuMemAlloc(&side, 8 * MiB));
                CU(cuMemsetD8(side, 1, 8 * MiB));
                CU(cuMemcpyDtoD(side, memory[c] + 1024, 4 * MiB));
                std::vector<u64> words(MiB);
                CU(cuMemcpyDtoH(words.data(), side, 8 * MiB));
                sums[t] = foldHost(words.data(), 8 * MiB);
                words.assign(bytes / 8, 0);
                CU(cuMemcpyDtoH(words.data(), memory[c], bytes));
                sums[t] = mix(sums[t] + foldHost(words.data(), bytes));
                CU(cuMemFree(side));
                CUcontext popped;
                CU(cuCtxPopCurrent(&popped));
            } catch (const std::exception& e) {
                bad[t] = e.what();
            }
            std::lock_guard<std::mutex> guard(turnLock);
            next[c]++;
            turn.notify_all();
        });
    for (auto& t : all) t.join();
    for (int t = 0; t < 6; t++) {
        s.take(sums[t]);
        s.expect(bad[t].empty(), bad[t]);
    }
    // Freed from the other context; destroyed with memory in it.
    CU(cuCtxPushCurrent(mine[1]));
    s.take(cuMemFree(memory[0]));
    CUcontext popped;
    CU(cuCtxPopCurrent(&popped));
    CU(cuCtxDestroy(mine[1]));
    CU(cuCtxDestroy(mine[0]));
    MUST(cudaSetDevice(0));
    u64* p = take<u64>(16 * MiB);
    fill(p, 16 * MiB, 3);
    s.filled(p, 16 * MiB, 3, "the primary context afterwards");
    MUST(cudaFree(p));
}

int main(int argc, char** argv) {
    return sections({{"pinned", pinned},
                     {"managed", managed},
                     {"callbacks", callbacks},
                     {"memops", memops},
                     {"attributes", attributes},
                     {"threads", threads},
                     {"contexts", contexts}},
                    argc, argv);
}
