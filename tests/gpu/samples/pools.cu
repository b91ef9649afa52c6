// Stream-ordered memory and the memory nodes of graphs.
#include <thread>

#include "section.cuh"

static cudaStream_t makeStream() {
    cudaStream_t s;
    MUST(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}

static u64* take(size_t bytes, cudaStream_t s) {
    void* p;
    MUST(cudaMallocAsync(&p, bytes, s));
    return static_cast<u64*>(p);
}

static u64* take(size_t bytes, cudaMemPool_t pool, cudaStream_t s) {
    void* p;
    MUST(cudaMallocFromPoolAsync(&p, bytes, pool, s));
    return static_cast<u64*>(p);
}

static cudaMemPool_t makePool() {
    cudaMemPoolProps props = {};
    props.allocType = cudaMemAllocationTypePinned;
    props.location.type = cudaMemLocationTypeDevice;
    cudaMemPool_t pool;
    MUST(cudaMemPoolCreate(&pool, &props));
    return pool;
}

/// Allocations, kernels, copies and frees in one stream, without waiting in between.
static void ordinary(Section& s) {
    Ballast ballast(s, 48);
    cudaStream_t stream = makeStream();
    std::vector<u64*> held;
    auto bytes = [](size_t i) { return 16 * MiB + 8 * (i % 3) * 1001; };
    for (size_t i = 0; i < 12; i++) {
        held.push_back(take(bytes(i), stream));
        fill(held[i], bytes(i), i << 32, stream);
        if (i) MUST(cudaMemcpyAsync(held[i] + 1001, held[i - 1] + 77, MiB, cudaMemcpyDeviceToDevice, stream));
        if (i % 2) MUST(cudaMemsetAsync(held[i] + 500'000, int(i), 3 * MiB, stream));
        stir(held[i], bytes(i), i, stream);
    }
    for (size_t i = 0; i < 12; i++) s.take(held[i], bytes(i), stream);
    // Every second one goes, others come in other sizes; what stayed is untouched.
    for (size_t i = 0; i < 12; i += 2) MUST(cudaFreeAsync(held[i], stream));
    for (size_t i = 0; i < 12; i += 2) {
        held[i] = take(bytes(i) / 2 + 4096, stream);
        fill(held[i], bytes(i) / 2 + 4096, ~i, stream);
    }
    for (size_t i = 0; i < 12; i++)
        if (i % 2) s.take(held[i], bytes(i), stream);
        else s.filled(held[i], bytes(i) / 2 + 4096, ~i, "an allocation that came later", stream);
    for (u64* p : held) MUST(cudaFreeAsync(p, stream));
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaStreamDestroy(stream));
    ballast.done();
}

/// What a pool says of itself.
static void figures(Section& s) {
    cudaMemPool_t pool;
    MUST(cudaDeviceGetDefaultMemPool(&pool, 0));
    cudaStream_t stream = makeStream();
    auto ask = [&](cudaMemPoolAttr a) {
        u64 value = 0;
        MUST(cudaMemPoolGetAttribute(pool, a, &value));
        return value;
    };
    MUST(cudaMemPoolTrimTo(pool, 0));
    u64 before = ask(cudaMemPoolAttrUsedMemCurrent);
    std::vector<u64*> held;
    for (int i = 0; i < 10; i++) held.push_back(take(16 * MiB, stream));
    MUST(cudaStreamSynchronize(stream));
    s.expect(ask(cudaMemPoolAttrUsedMemCurrent) - before == 160 * MiB, "the pool does not say that 160 MiB are used");
    s.expect(ask(cudaMemPoolAttrReservedMemCurrent) >= 160 * MiB, "the pool says that it holds less than is used");
    s.expect(ask(cudaMemPoolAttrUsedMemHigh) >= 160 * MiB, "the high watermark of use is too low");
    for (u64* p : held) MUST(cudaFreeAsync(p, stream));
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaMemPoolTrimTo(pool, 0));
    s.expect(ask(cudaMemPoolAttrUsedMemCurrent) == before, "the pool says that freed memory is used");
    s.take(ask(cudaMemPoolAttrReservedMemCurrent));
    u64 zero = 0;
    MUST(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &zero));
    s.take(ask(cudaMemPoolAttrUsedMemHigh));
    for (cudaMemPoolAttr a : {cudaMemPoolReuseFollowEventDependencies, cudaMemPoolReuseAllowOpportunistic,
                              cudaMemPoolReuseAllowInternalDependencies}) {
        int value = 0;
        MUST(cudaMemPoolGetAttribute(pool, a, &value));
        s.take(value);
    }
    MUST(cudaStreamDestroy(stream));
}

/// A pool of the program's own, with a release threshold; it becomes the device's current pool for a while.
static void own(Section& s) {
    Ballast ballast(s, 48);
    cudaMemPool_t pool = makePool();
    u64 keep = ~0ull;
    MUST(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    cudaStream_t a = makeStream(), b = makeStream();
    cudaEvent_t event;
    MUST(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    for (u64 round = 0; round < 3; round++) {
        std::vector<u64*> held;
        for (u64 i = 0; i < 8; i++) {
            held.push_back(take(20 * MiB, pool, a));
            fill(held[i], 20 * MiB, round * 100 + i, a);
        }
        MUST(cudaEventRecord(event, a));
        MUST(cudaStreamWaitEvent(b, event, 0));
        for (u64 i = 0; i < 8; i++) stir(held[i], 20 * MiB, i, b);
        for (u64* p : held) s.take(p, 20 * MiB, b);
        for (u64* p : held) MUST(cudaFreeAsync(p, b));
        // The next round allocates in another order of streams.
        std::swap(a, b);
        MUST(cudaEventRecord(event, b));
        MUST(cudaStreamWaitEvent(a, event, 0));
    }
    MUST(cudaDeviceSynchronize());
    cudaMemPool_t current, standard;
    MUST(cudaDeviceSetMemPool(0, pool));
    MUST(cudaDeviceGetMemPool(&current, 0));
    s.expect(current == pool, "the current pool is not the one that was set");
    u64* p = take(24 * MiB, a);
    fill(p, 24 * MiB, 5, a);
    u64* q = take(24 * MiB, a);
    MUST(cudaMemcpyAsync(q, p, 24 * MiB, cudaMemcpyDeviceToDevice, a));
    MUST(cudaFreeAsync(p, a));
    s.filled(q, 24 * MiB, 5, "memory of the current pool", a);
    MUST(cudaDeviceGetDefaultMemPool(&standard, 0));
    MUST(cudaDeviceSetMemPool(0, standard));
    // A pool may be destroyed before what came from it is freed.
    MUST(cudaMemPoolDestroy(pool));
    s.filled(q, 24 * MiB, 5, "memory of a destroyed pool", a);
    MUST(cudaFreeAsync(q, a));
    MUST(cudaStreamSynchronize(a));
    MUST(cudaEventDestroy(event));
    MUST(cudaStreamDestroy(a));
    MUST(cudaStreamDestroy(b));
    ballast.done();
}

/// Frees that must wait for work in their stream: a slow kernel still reads while others allocate.
static void order(Section& s) {
    Ballast ballast(s, 48);
    cudaStream_t slow = makeStream(), fast = makeStream();
    u64* sums = take(4096, slow);
    MUST(cudaMemsetAsync(sums, 0, 4096, slow));
    for (u64 i = 0; i < 6; i++) {
        u64* p = take(32 * MiB, slow);
        fill(p, 32 * MiB, i, slow);
        spin(10, slow);
        foldKernel<<<BLOCKS, THREADS, 0, slow>>>(p, 32 * MiB / 8, sums + i);
        launched();
        MUST(cudaFreeAsync(p, slow));
        u64* q = take(32 * MiB, fast);
        fill(q, 32 * MiB, ~i, fast);
        s.filled(q, 32 * MiB, ~i, "memory of the other stream", fast);
        MUST(cudaFreeAsync(q, fast));
    }
    u64 is[6];
    MUST(cudaMemcpyAsync(is, sums, sizeof is, cudaMemcpyDeviceToHost, slow));
    MUST(cudaStreamSynchronize(slow));
    for (u64 i = 0; i < 6; i++) {
        s.take(is[i]);
        s.expect(is[i] == foldHost(32 * MiB, [=](u64 k) { return mix(i + k); }), "memory was given away while it was read");
    }
    MUST(cudaFreeAsync(sums, slow));
    // The one kind freed by the other's function.
    void* p = take(24 * MiB, slow);
    fill(p, 24 * MiB, 9, slow);
    MUST(cudaStreamSynchronize(slow));
    s.filled(p, 24 * MiB, 9, "stream-ordered memory");
    MUST(cudaFree(p));
    MUST(cudaMalloc(&p, 24 * MiB));
    fill(p, 24 * MiB, 10, slow);
    s.filled(p, 24 * MiB, 10, "ordinary memory", slow);
    cudaError_t e = cudaFreeAsync(p, slow);
    s.outcome(e);
    if (e != cudaSuccess) MUST(cudaFree(p));
    MUST(cudaDeviceSynchronize());
    MUST(cudaStreamDestroy(slow));
    MUST(cudaStreamDestroy(fast));
    ballast.done();
}

/// Threads with streams of their own on the default pool.
static void threads(Section& s) {
    Ballast ballast(s, 48);
    std::vector<u64> sums(8);
    std::vector<std::string> bad(8);
    std::vector<std::thread> all;
    for (u64 t = 0; t < 8; t++)
        all.emplace_back([&, t] {
            try {
                cudaStream_t stream = makeStream();
                for (u64 i = 0; i < 12; i++) {
                    size_t bytes = (2 + (t * 5 + i * 3) % 9) * MiB;
                    u64 *p = take(bytes, stream), *q = take(bytes, stream);
                    fill(p, bytes, t * 1000 + i, stream);
                    MUST(cudaMemcpyAsync(q, p, bytes, cudaMemcpyDeviceToDevice, stream));
                    MUST(cudaFreeAsync(p, stream));
                    stir(q, bytes, 3, stream);
                    sums[t] = mix(sums[t] + fold(q, bytes, stream));
                    MUST(cudaFreeAsync(q, stream));
                }
                MUST(cudaStreamSynchronize(stream));
                MUST(cudaStreamDestroy(stream));
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

// Graphs

/// A captured graph that allocates, works and frees; and one whose memory the program keeps.
static void captured(Section& s) {
    Ballast ballast(s, 48);
    cudaStream_t stream = makeStream();
    u64* result;
    MUST(cudaMalloc(&result, 40 * MiB));
    MUST(cudaMemset(result, 0, 40 * MiB));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    u64* a = take(40 * MiB, stream);
    fill(a, 40 * MiB, 3, stream);
    u64* b = take(40 * MiB, stream);
    MUST(cudaMemcpyAsync(b, a, 40 * MiB, cudaMemcpyDeviceToDevice, stream));
    MUST(cudaFreeAsync(a, stream));
    u64* c = take(8 * MiB, stream);
    MUST(cudaMemsetAsync(c, 0x5A, 8 * MiB, stream));
    MUST(cudaMemcpyAsync(b + 4096, c, 8 * MiB, cudaMemcpyDeviceToDevice, stream));
    MUST(cudaFreeAsync(c, stream));
    stir(b, 40 * MiB, 11, stream);
    MUST(cudaMemcpyAsync(result, b, 40 * MiB, cudaMemcpyDeviceToDevice, stream));
    MUST(cudaFreeAsync(b, stream));
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    auto word = [](u64 i) {
        u64 before = i >= 4096 && i < 4096 + MiB ? 0x5A5A5A5A5A5A5A5Aull : mix(3 + i);
        return mix(before + 11);
    };
    for (int i = 0; i < 4; i++) {
        MUST(cudaGraphLaunch(exec, stream));
        s.words(result, 40 * MiB, word, "what a graph wrote", stream);
        MUST(cudaMemsetAsync(result, i, 40 * MiB, stream));
    }
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));

    // Memory that outlives the launch: freed by the program, then by the next launch.
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    a = take(40 * MiB, stream);
    fill(a, 40 * MiB, 8, stream);
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, cudaGraphInstantiateFlagAutoFreeOnLaunch));
    for (int i = 0; i < 4; i++) {
        MUST(cudaGraphLaunch(exec, stream));
        s.filled(a, 40 * MiB, 8, "memory that a graph left", stream);
        stir(a, 40 * MiB, i, stream);
        s.take(a, 40 * MiB, stream);
        if (i == 1) MUST(cudaFreeAsync(a, stream));
    }
    MUST(cudaFreeAsync(a, stream));
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaFree(result));
    MUST(cudaStreamDestroy(stream));
    MUST(cudaDeviceGraphMemTrim(0));
    ballast.done();
}

static cudaKernelNodeParams kernelNode(void* f, void** arguments) {
    cudaKernelNodeParams k = {};
    k.func = f;
    k.gridDim = dim3(BLOCKS);
    k.blockDim = dim3(THREADS);
    k.kernelParams = arguments;
    return k;
}

/// The same by hand: memory nodes, kernels, a copy and a memset as nodes.
static void made(Section& s) {
    Ballast ballast(s, 48);
    const size_t bytes = 36 * MiB;
    u64* result;
    MUST(cudaMalloc(&result, bytes));
    cudaGraph_t graph;
    MUST(cudaGraphCreate(&graph, 0));
    cudaMemAllocNodeParams take = {};
    take.poolProps.allocType = cudaMemAllocationTypePinned;
    take.poolProps.location.type = cudaMemLocationTypeDevice;
    take.bytesize = bytes;
    cudaGraphNode_t first, second, filled, set, copied, stirred, freedFirst, out, freedSecond;
    MUST(cudaGraphAddMemAllocNode(&first, graph, nullptr, 0, &take));
    u64* a = static_cast<u64*>(take.dptr);
    // The second one by the general form.
    cudaGraphNodeParams general = {};
    general.type = cudaGraphNodeTypeMemAlloc;
    general.alloc.poolProps = take.poolProps;
    general.alloc.bytesize = bytes;
    MUST(cudaGraphAddNode(&second, graph, nullptr, nullptr, 0, &general));
    u64* b = static_cast<u64*>(general.alloc.dptr);
    u64 n = bytes / 8, seed = 21, v = 4;
    void* fillArguments[] = {&a, &n, &seed};
    auto k = kernelNode(reinterpret_cast<void*>(fillKernel), fillArguments);
    MUST(cudaGraphAddKernelNode(&filled, graph, &first, 1, &k));
    cudaMemsetParams m = {};
    m.dst = a + 1000;
    m.elementSize = 4;
    m.value = 0xABCD0123;
    m.width = 2 * MiB / 4;
    m.height = 1;
    MUST(cudaGraphAddMemsetNode(&set, graph, &filled, 1, &m));
    cudaGraphNode_t both[] = {set, second};
    MUST(cudaGraphAddMemcpyNode1D(&copied, graph, both, 2, b, a, bytes, cudaMemcpyDeviceToDevice));
    MUST(cudaGraphAddMemFreeNode(&freedFirst, graph, &copied, 1, a));
    void* stirArguments[] = {&b, &n, &v};
    k = kernelNode(reinterpret_cast<void*>(stirKernel), stirArguments);
    MUST(cudaGraphAddKernelNode(&stirred, graph, &copied, 1, &k));
    MUST(cudaGraphAddMemcpyNode1D(&out, graph, &stirred, 1, result, b, bytes, cudaMemcpyDeviceToDevice));
    MUST(cudaGraphAddMemFreeNode(&freedSecond, graph, &out, 1, b));
    cudaGraphExec_t exec;
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    cudaStream_t stream = makeStream();
    u64 used = v;
    for (u64 round = 0; round < 3; round++) {
        MUST(cudaGraphLaunch(exec, stream));
        auto word = [=](u64 i) {
            u64 before = i >= 1000 && i < 1000 + 2 * MiB / 8 ? 0xABCD0123ABCD0123ull : mix(21 + i);
            return mix(before + used);
        };
        s.words(result, bytes, word, "what a hand-made graph wrote", stream);
        v = 5 + round;
        cudaError_t e = cudaGraphExecKernelNodeSetParams(exec, stirred, &k);
        s.outcome(e);
        if (e == cudaSuccess) used = v;
    }
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaFree(result));
    MUST(cudaStreamDestroy(stream));
    MUST(cudaDeviceGraphMemTrim(0));
    ballast.done();
}

/// What the driver says of the memory of graphs.
static void graphFigures(Section& s) {
    auto ask = [](cudaGraphMemAttributeType a) {
        u64 value = 0;
        MUST(cudaDeviceGetGraphMemAttribute(0, a, &value));
        return value;
    };
    cudaStream_t stream = makeStream();
    MUST(cudaDeviceGraphMemTrim(0));
    u64 before = ask(cudaGraphMemAttrUsedMemCurrent);
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    u64* a = take(96 * MiB, stream);
    fill(a, 96 * MiB, 1, stream);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    MUST(cudaGraphLaunch(exec, stream));
    MUST(cudaStreamSynchronize(stream));
    s.expect(ask(cudaGraphMemAttrUsedMemCurrent) - before >= 96 * MiB, "the graph's memory does not count as used");
    s.expect(ask(cudaGraphMemAttrReservedMemCurrent) >= 96 * MiB, "less is reserved than used");
    s.filled(a, 96 * MiB, 1, "memory of a graph", stream);
    MUST(cudaFreeAsync(a, stream));
    MUST(cudaStreamSynchronize(stream));
    // The device keeps it until it is trimmed (measured).
    s.take(ask(cudaGraphMemAttrUsedMemCurrent) - before);
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaDeviceGraphMemTrim(0));
    s.take(ask(cudaGraphMemAttrUsedMemCurrent) - before);
    s.take(ask(cudaGraphMemAttrReservedMemCurrent));
    MUST(cudaStreamDestroy(stream));
}

/// Captures of every copy form on memory outside VRAM; updates of what was captured.
static void graphCopies(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 24 * MiB, rows = 512, pitch = 4096;
    u64 *a, *b, *host;
    MUST(cudaMalloc(&a, bytes));
    MUST(cudaMalloc(&b, bytes));
    MUST(cudaMallocHost(&host, bytes));
    cudaStream_t stream = makeStream();
    auto record = [&](u64 v, cudaGraph_t* graph) {
        MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        MUST(cudaMemcpyAsync(a, host, bytes, cudaMemcpyHostToDevice, stream));
        MUST(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, stream));
        MUST(cudaMemcpy2DAsync(b + 7, pitch, a, pitch, 1000, rows, cudaMemcpyDeviceToDevice, stream));
        cudaMemcpy3DParms p = {};
        p.srcPtr = make_cudaPitchedPtr(b, pitch, 2000, 64);
        p.dstPtr = make_cudaPitchedPtr(a + MiB, pitch, 2000, 64);
        p.extent = make_cudaExtent(2000, 60, 20);
        p.kind = cudaMemcpyDeviceToDevice;
        MUST(cudaMemcpy3DAsync(&p, stream));
        MUST(cudaMemsetAsync(a, 1, MiB + 3, stream));
        MUST(cudaMemset2DAsync(b + 5, pitch, 7, 333, rows, stream));
        cudaPitchedPtr where = make_cudaPitchedPtr(a + 1'500'000, 1024, 900, 32);
        MUST(cudaMemset3DAsync(where, 9, make_cudaExtent(900, 30, 10), stream));
        stir(a, bytes, v, stream);
        stir(b, bytes, v, stream);
        MUST(cudaMemcpyAsync(host, b, bytes / 2, cudaMemcpyDeviceToHost, stream));
        MUST(cudaStreamEndCapture(stream, graph));
    };
    cudaGraph_t first, second;
    cudaGraphExec_t exec;
    for (u64 i = 0; i < bytes / 8; i++) host[i] = mix(i);
    record(1, &first);
    MUST(cudaGraphInstantiate(&exec, first, 0));
    for (int i = 0; i < 3; i++) MUST(cudaGraphLaunch(exec, stream));
    s.take(a, bytes, stream);
    s.take(b, bytes, stream);
    s.take(foldHost(host, bytes));
    record(2, &second);
    cudaGraphExecUpdateResultInfo info;
    cudaError_t e = cudaGraphExecUpdate(exec, second, &info);
    s.outcome(e);
    if (e != cudaSuccess) {
        MUST(cudaGraphExecDestroy(exec));
        MUST(cudaGraphInstantiate(&exec, second, 0));
    }
    for (int i = 0; i < 2; i++) MUST(cudaGraphLaunch(exec, stream));
    s.take(a, bytes, stream);
    s.take(b, bytes, stream);
    s.take(foldHost(host, bytes));
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(first));
    MUST(cudaGraphDestroy(second));
    MUST(cudaFree(a));
    MUST(cudaFree(b));
    MUST(cudaFreeHost(host));
    MUST(cudaStreamDestroy(stream));
    ballast.done();
}

/// Another thread allocates, launches and frees while a capture is open; memory is freed while captured graphs name other
/// memory.
static void meanwhile(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 16 * MiB;
    cudaStream_t stream = makeStream();
    u64* p;
    MUST(cudaMalloc(&p, bytes));
    fill(p, bytes, 2);
    MUST(cudaDeviceSynchronize());
    for (int round = 0; round < 4; round++) {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        u64* early;
        MUST(cudaMalloc(&early, bytes));
        MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        stir(p, bytes, round, stream);
        std::string bad;
        u64 sum = 0;
        std::thread other([&] {
            try {
                cudaStream_t side = makeStream();
                u64* q;
                MUST(cudaMalloc(&q, bytes));
                fill(q, bytes, 40 + round, side);
                sum = fold(q, bytes, side);
                MUST(cudaFree(early));
                MUST(cudaFree(q));
                size_t free, total;
                MUST(cudaMemGetInfo(&free, &total));
                MUST(cudaStreamDestroy(side));
            } catch (const std::exception& e) {
                bad = e.what();
            }
        });
        other.join();
        s.expect(bad.empty(), "the other thread: " + bad);
        s.take(sum);
        stir(p, bytes, ~round, stream);
        MUST(cudaStreamEndCapture(stream, &graph));
        MUST(cudaGraphInstantiate(&exec, graph, 0));
        MUST(cudaGraphLaunch(exec, stream));
        MUST(cudaGraphLaunch(exec, stream));
        s.take(p, bytes, stream);
        MUST(cudaGraphExecDestroy(exec));
        MUST(cudaGraphDestroy(graph));
    }
    // In relaxed mode a thread that captures may allocate and free itself.
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    MUST(cudaThreadExchangeStreamCaptureMode(&mode));
    u64* q;
    MUST(cudaMalloc(&q, bytes));
    fill(q, bytes, 50, stream);
    MUST(cudaMemcpyAsync(p, q, bytes, cudaMemcpyDeviceToDevice, stream));
    MUST(cudaThreadExchangeStreamCaptureMode(&mode));
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    MUST(cudaGraphLaunch(exec, stream));
    s.filled(p, bytes, 50, "memory allocated while capturing", stream);
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaFree(p));
    MUST(cudaFree(q));
    MUST(cudaStreamDestroy(stream));
    ballast.done();
}

int main(int argc, char** argv) {
    return sections({{"pool", ordinary},
                     {"pool_figures", figures},
                     {"pool_own", own},
                     {"pool_order", order},
                     {"pool_threads", threads},
                     {"graph_captured", captured},
                     {"graph_made", made},
                     {"graph_figures", graphFigures},
                     {"graph_copies", graphCopies},
                     {"graph_meanwhile", meanwhile}},
                    argc, argv);
}
