// What the real driver does where the shim relies on it. `facts SECTION` prints one line per fact; `facts` alone lists
// the sections. No greenboost in it, and it is never run under greenboost.
//
// Codes are CUresult numbers; 0 is success. `V`: VRAM made with cuMemCreate, `H`: host memory made with cuMemCreate on
// the NUMA node of the device, `A`: cuMemAlloc.
#include <cooperative_groups.h>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

using std::string;
using std::vector;
using u64 = unsigned long long;

constexpr size_t KiB = 1 << 10, MiB = 1 << 20, GiB = 1 << 30;

// Helpers

static double now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void must(CUresult r, const char* what, int line) {
    if (r == CUDA_SUCCESS) return;
    printf("  !! %s gave %d, line %d\n", what, r, line);
}
#define MUST(call) must((call), #call, __LINE__)
#define MUSTRT(call) must(CUresult(call), #call, __LINE__)

static string name(CUresult r) {
    const char* s = nullptr;
    if (r == CUDA_SUCCESS) return "0";
    // Before cuInit, too, the names are known.
    if (cuGetErrorName(r, &s) != CUDA_SUCCESS || !s) return std::to_string(int(r));
    return std::to_string(int(r)) + " " + (strncmp(s, "CUDA_ERROR_", 11) ? s : s + 11);
}

static void say(const char* what, CUresult r) { printf("%-58s %s\n", what, name(r).c_str()); }
#define SAY(call) say(#call, (call))

static CUdevice device;
static CUcontext context;
static int node;

static void init() {
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUSTRT(cudaSetDevice(0));
    MUSTRT(cudaFree(nullptr));
    MUST(cuCtxGetCurrent(&context));
    if (cuDeviceGetAttribute(&node, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, device) || node < 0) node = 0;
}

static CUmemAllocationProp prop(bool host) {
    CUmemAllocationProp p = {};
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.location.type = host ? CU_MEM_LOCATION_TYPE_HOST_NUMA : CU_MEM_LOCATION_TYPE_DEVICE;
    p.location.id = host ? node : device;
    return p;
}

static CUmemAccessDesc access(CUmemAccess_flags flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
    CUmemAccessDesc a = {};
    a.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    a.location.id = device;
    a.flags = flags;
    return a;
}

struct Chunk {
    size_t size;
    bool host;
    CUmemGenericAllocationHandle handle;
};

struct Range {
    CUdeviceptr p = 0;
    size_t size = 0;
    vector<Chunk> chunks;

    // "V2 H20 V64": places and MiB.
    explicit Range(const string& layout, bool open = true) {
        for (size_t i = 0; i < layout.size(); i++)
            if (layout[i] == 'V' || layout[i] == 'H')
                chunks.push_back({size_t(atoi(layout.c_str() + i + 1)) * MiB, layout[i] == 'H', 0});
        for (auto& c : chunks) size += c.size;
        MUST(cuMemAddressReserve(&p, size, 2 * MiB, 0, 0));
        size_t at = 0;
        for (auto& c : chunks) {
            auto pr = prop(c.host);
            MUST(cuMemCreate(&c.handle, c.size, &pr, 0));
            MUST(cuMemMap(p + at, c.size, 0, c.handle, 0));
            at += c.size;
        }
        auto a = access();
        if (open) MUST(cuMemSetAccess(p, size, &a, 1));
    }
    void remap() {
        size_t at = 0;
        for (auto& c : chunks) {
            MUST(cuMemMap(p + at, c.size, 0, c.handle, 0));
            at += c.size;
        }
        auto a = access();
        MUST(cuMemSetAccess(p, size, &a, 1));
    }
    void drop(bool mapped = true) {
        size_t at = 0;
        for (auto& c : chunks) {
            if (mapped) MUST(cuMemUnmap(p + at, c.size));
            MUST(cuMemRelease(c.handle));
            at += c.size;
        }
        MUST(cuMemAddressFree(p, size));
    }
};

__global__ void spin(long long ns) {
    long long start, t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    } while (t - start < ns);
}

__global__ void bump(int* p) { atomicAdd(p, 1); }

static void busy(CUstream s, int ms) { spin<<<1, 1, 0, (cudaStream_t)s>>>(ms * 1000000ll); }

static CUstream makeStream(bool blocking) {
    CUstream s;
    MUST(cuStreamCreate(&s, blocking ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING));
    return s;
}

template <class F> static F symbol(const char* n) {
    static void* lib = dlopen("libcuda.so.1", RTLD_NOW);
    return reinterpret_cast<F>(dlsym(lib, n));
}
#define VARIANT(f, n) symbol<decltype(&f)>(n)

static sigjmp_buf crash;
static void onCrash(int) { siglongjmp(crash, 1); }

/// Runs a call that may crash in the driver.
static void risky(const char* what, const std::function<CUresult()>& f) {
    signal(SIGSEGV, onCrash);
    if (sigsetjmp(crash, 1)) printf("%-58s SIGSEGV\n", what);
    else say(what, f());
    signal(SIGSEGV, SIG_DFL);
}
#define RISKY(call) risky(#call, [&] { return (call); })

// (i) One call over several handles

static void sectionSpan() {
    init();
    for (const char* layout : {"V2 V20 V32 V64", "H2 H20 H32 H64", "V2 H20 V32 H64"}) {
        printf("-- %s\n", layout);
        auto a = access();
        Range r(layout, false);
        say("one cuMemSetAccess over all", cuMemSetAccess(r.p, r.size, &a, 1));
        say("  memset over all, synchronise", cuMemsetD8(r.p, 1, r.size) ?: cuCtxSynchronize());
        double t = now();
        CUresult u = cuMemUnmap(r.p, r.size);
        printf("%-58s %s, %.3f ms\n", "one cuMemUnmap over all", name(u).c_str(), now() - t);
        if (u) MUST(cuMemUnmap(r.p, r.chunks[0].size));
        else r.remap();
        say("cuMemUnmap over the 2nd and 3rd handle", cuMemUnmap(r.p + 2 * MiB, 52 * MiB));
        say("cuMemUnmap over all, with that hole", cuMemUnmap(r.p, r.size));
        // Whatever is still mapped goes handle by handle.
        size_t at = 0;
        for (auto& c : r.chunks) cuMemUnmap(r.p + at, c.size), at += c.size;
        r.remap();
        say("cuMemUnmap ending inside a handle", cuMemUnmap(r.p, 12 * MiB));
        say("cuMemUnmap of a part of a handle", cuMemUnmap(r.p + 54 * MiB, 32 * MiB));
        say("cuMemUnmap of 1 MiB", cuMemUnmap(r.p, 1 * MiB));
        CUmemAccessDesc ro = access(CU_MEM_ACCESS_FLAGS_PROT_READ);
        say("cuMemSetAccess from inside a handle, read only", cuMemSetAccess(r.p + 4 * MiB, 4 * MiB, &ro, 1));
        say("cuMemSetAccess back to read and write", cuMemSetAccess(r.p, r.size, &a, 1));
        say("  memset over all, synchronise", cuMemsetD8(r.p, 1, r.size) ?: cuCtxSynchronize());
        MUST(cuMemUnmap(r.p + 22 * MiB, 32 * MiB));
        say("cuMemSetAccess over a hole", cuMemSetAccess(r.p, r.size, &a, 1));
        MUST(cuMemMap(r.p + 22 * MiB, 32 * MiB, 0, r.chunks[2].handle, 0));
        say("cuMemSetAccess of the refilled hole alone", cuMemSetAccess(r.p + 22 * MiB, 32 * MiB, &a, 1));
        say("cuMemMap over what is mapped", cuMemMap(r.p, 2 * MiB, 0, r.chunks[0].handle, 0));
        say("cuMemAddressFree while mapped", cuMemAddressFree(r.p, r.size));
        say("cuMemUnmap over all again", cuMemUnmap(r.p, r.size));
        say("cuMemUnmap of what is not mapped", cuMemUnmap(r.p, r.size));
        say("cuMemAddressFree of a part", cuMemAddressFree(r.p, 2 * MiB));
        r.drop(false);
    }
    Range r("V64");
    say("cuMemRelease while mapped", cuMemRelease(r.chunks[0].handle));
    say("  still usable", cuMemsetD8(r.p, 1, r.size) ?: cuCtxSynchronize());
    say("  cuMemUnmap", cuMemUnmap(r.p, r.size));
    CUdeviceptr odd = 0;
    say("cuMemAddressReserve of 2 MiB + 1", cuMemAddressReserve(&odd, 2 * MiB + 1, 0, 0, 0));
    say("cuMemAddressReserve, alignment 1 GiB", cuMemAddressReserve(&odd, 2 * MiB, GiB, 0, 0));
    printf("  at %llx\n", u64(odd));
    for (size_t gib : {1, 100, 1000, 10000}) {
        CUdeviceptr big = 0;
        CUresult e = cuMemAddressReserve(&big, gib * GiB, 2 * MiB, 0, 0);
        printf("cuMemAddressReserve of %zu GiB: %s at %llx\n", gib, name(e).c_str(), u64(big));
    }
}

// (ii) Pointer attributes

struct Answer {
    CUresult code;
    uint8_t data[32];
    int bytes;
};

static Answer ask(int attribute, CUdeviceptr p) {
    Answer a;
    memset(a.data, 0xEE, sizeof a.data);
    a.code = cuPointerGetAttribute(a.data, CUpointer_attribute(attribute), p);
    for (a.bytes = sizeof a.data; a.bytes > 0 && a.data[a.bytes - 1] == 0xEE;) a.bytes--;
    return a;
}

static string text(const Answer& a, CUdeviceptr base, size_t size) {
    u64 v = 0;
    memcpy(&v, a.data, std::min(a.bytes, 8));
    char s[80];
    string out = std::to_string(int(a.code));
    if (!a.bytes) return out + " -";
    if (v == (u64)context) snprintf(s, sizeof s, " ctx");
    else if (size && v >= base && v <= base + size) snprintf(s, sizeof s, " base+%llx", u64(v - base));
    else snprintf(s, sizeof s, v > 0xffff ? " 0x%llx" : " %llu", v);
    return out + s + (a.bytes == 8 ? "" : " w" + std::to_string(a.bytes));
}

static const char* attributeName(int a) {
    static const char* n[] = {"", "CONTEXT", "MEMORY_TYPE", "DEVICE_POINTER", "HOST_POINTER", "P2P_TOKENS",
        "SYNC_MEMOPS", "BUFFER_ID", "IS_MANAGED", "DEVICE_ORDINAL", "IS_LEGACY_IPC", "RANGE_START", "RANGE_SIZE",
        "MAPPED", "HANDLE_TYPES", "IS_RDMA", "ACCESS_FLAGS", "MEMPOOL", "MAPPING_SIZE", "MAPPING_BASE", "BLOCK_ID",
        "HW_DECOMPRESS"};
    return a < 22 ? n[a] : "?";
}

static void sectionAttrs() {
    init();
    CUdeviceptr a, small;
    MUST(cuMemAlloc(&a, 64 * MiB));
    MUST(cuMemAlloc(&small, 1000));
    Range v("V64"), h("H64"), m("V32 H32");
    void* pinned;
    MUST(cuMemHostAlloc(&pinned, 1 * MiB, 0));
    void* plain = malloc(1 * MiB);
    struct Spot {
        const char* name;
        CUdeviceptr p, base;
        size_t size;
    };
    auto table = [&](const vector<Spot>& spots) {
        printf("%-14s", "");
        for (auto& s : spots) printf(" | %-20s", s.name);
        printf("\n");
        for (int k = 1; k <= 21; k++) {
            printf("%2d %-14s", k, attributeName(k));
            for (auto& s : spots) printf("| %-21s", text(ask(k, s.p), s.base, s.size).c_str());
            printf("\n");
        }
    };
    const size_t in = 4096 + 8;
    table({{"A 64 MiB, inside", a + in, a, 64 * MiB}, {"A 1000 B, inside", small + 8, small, 1000},
           {"V 64, inside", v.p + in, v.p, v.size}, {"H 64, inside", h.p + in, h.p, h.size},
           {"V32 H32, in H", m.p + 33 * MiB, m.p, m.size}});
    Range unmapped("V2");
    MUST(cuMemUnmap(unmapped.p, 2 * MiB));
    table({{"A 64 MiB, one past", a + 64 * MiB, a, 64 * MiB}, {"A 1000 B, at 1000", small + 1000, small, 1000},
           {"V 64, one past", v.p + v.size, v.p, v.size}, {"reserved, unmapped", unmapped.p, unmapped.p, 2 * MiB},
           {"malloc'ed", (CUdeviceptr)plain, (CUdeviceptr)plain, MiB}});
    table({{"pinned host", (CUdeviceptr)pinned + 8, (CUdeviceptr)pinned, MiB}, {"null", 0, 0, 0},
           {"0x1234", 0x1234, 0, 0}, {"V32 H32, in V", m.p + 8, m.p, m.size},
           {"V32 H32, last byte", m.p + m.size - 1, m.p, m.size}});

    // The batch call: one attribute at a time, to see which it refuses and where it differs from the single call.
    printf("-- cuPointerGetAttributes, differences from the single call (batch <> single)\n");
    vector<Spot> spots = {{"A", a + in, a, 64 * MiB}, {"V", v.p + in, v.p, v.size}, {"H", h.p + in, h.p, h.size},
                          {"one past A", a + 64 * MiB, a, 64 * MiB}, {"malloc'ed", (CUdeviceptr)plain, 0, 0},
                          {"null", 0, 0, 0}, {"unmapped", unmapped.p, unmapped.p, 2 * MiB}};
    for (auto& s : spots)
        for (int k = 1; k <= 21; k++) {
            Answer single = ask(k, s.p), batch;
            memset(batch.data, 0xEE, sizeof batch.data);
            CUpointer_attribute at = CUpointer_attribute(k);
            void* out = batch.data;
            batch.code = cuPointerGetAttributes(1, &at, &out, s.p);
            for (batch.bytes = sizeof batch.data; batch.bytes > 0 && batch.data[batch.bytes - 1] == 0xEE;) batch.bytes--;
            string x = text(batch, s.base, s.size), y = text(single, s.base, s.size);
            if (x != y) printf("%-11s %2d %-14s %s <> %s\n", s.name, k, attributeName(k), x.c_str(), y.c_str());
        }
    for (auto& s : spots) {
        u64 data[22][4];
        memset(data, 0, sizeof data);
        CUpointer_attribute list[22];
        void* out[22];
        int n = 0;
        for (int k = 1; k <= 21; k++)
            if (k != 5) list[n] = CUpointer_attribute(k), out[n] = data[n], n++;
        CUresult e = cuPointerGetAttributes(n, list, out, s.p);
        int good[] = {1, 2, 3, 8, 9, 11, 12};
        for (int k = 0; k < 7; k++) list[k] = CUpointer_attribute(good[k]), out[k] = data[k];
        CUresult f = cuPointerGetAttributes(7, list, out, s.p);
        printf("batch of all but P2P_TOKENS on %-11s %d; of seven common ones %d\n", s.name, e, f);
    }
    int yes = 1;
    for (auto& s : {spots[0], spots[1], spots[2]})
        printf("set SYNC_MEMOPS on %s: %d\n", s.name,
               cuPointerSetAttribute(&yes, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, s.p - in));
    cudaPointerAttributes ra;
    for (auto& s : spots) {
        memset(&ra, 0xEE, sizeof ra);
        cudaError_t e = cudaPointerGetAttributes(&ra, (void*)s.p);
        printf("cudaPointerGetAttributes on %-11s %d, type %d, device %d, device pointer %s, host pointer %s\n", s.name, e,
               int(ra.type), ra.device, ra.devicePointer ? "set" : "null", ra.hostPointer ? "set" : "null");
        (void)cudaGetLastError();
    }
    CUmemGenericAllocationHandle handle;
    say("cuMemRetainAllocationHandle on A", cuMemRetainAllocationHandle(&handle, (void*)a));
    say("cuMemRetainAllocationHandle on malloc'ed memory", cuMemRetainAllocationHandle(&handle, plain));
    say("cuMemRetainAllocationHandle on V, inside", cuMemRetainAllocationHandle(&handle, (void*)(v.p + in)));
    int fd = -1;
    for (auto& s : {spots[0], spots[1], spots[2]}) {
        CUresult e = cuMemGetHandleForAddressRange(&fd, s.base, 2 * MiB, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0);
        printf("cuMemGetHandleForAddressRange (dma-buf) on %s: %s\n", s.name, name(e).c_str());
        CUipcMemHandle ipc;
        printf("cuIpcGetMemHandle on %s: %s\n", s.name, name(cuIpcGetMemHandle(&ipc, s.base)).c_str());
    }
}

// (iii) Sizes and addresses of cuMemAlloc

static void sectionRange() {
    init();
    size_t sizes[] = {1, 255, 256, 257, 511, 512, 513, 4096, MiB - 1, MiB, MiB + 1, 2 * MiB - 1, 2 * MiB, 2 * MiB + 1,
                      3 * MiB, 20 * MiB, 64 * MiB + 1, GiB + 1};
    printf("%12s | %-28s | aligned to | free fell by | range attributes | at size | after it\n", "asked", "address range");
    for (size_t n : sizes) {
        size_t before, after, total, size = 0, past = 0;
        CUdeviceptr p = 0, base = 0, b2 = 0;
        MUST(cuMemGetInfo(&before, &total));
        CUresult e = cuMemAlloc(&p, n);
        MUST(cuMemGetInfo(&after, &total));
        CUresult r = cuMemGetAddressRange(&base, &size, p + n - 1);
        CUresult q = cuMemGetAddressRange(&b2, &past, p + n);
        CUresult far = cuMemGetAddressRange(&b2, &past, p + (n + 2 * MiB));
        u64 rs = 0, rz = 0;
        MUST(cuPointerGetAttribute(&rs, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, p));
        MUST(cuPointerGetAttribute(&rz, CU_POINTER_ATTRIBUTE_RANGE_SIZE, p));
        printf("%12zu | %d %d base%+lld size %-10zu | %10llu | %12zd | base%+lld %-10llu | %d | %d\n", n, e, r,
               (long long)(base - p), size, u64(p & -p), ssize_t(before - after), (long long)(rs - p), rz, q, far);
        MUST(cuMemFree(p));
    }
    CUdeviceptr many[16];
    for (auto& p : many) MUST(cuMemAlloc(&p, 1));
    printf("16 allocations of 1 byte, distances:");
    for (int i = 1; i < 16; i++) printf(" %lld", (long long)(many[i] - many[i - 1]));
    printf("\n");
    for (auto p : many) MUST(cuMemFree(p));
    CUdeviceptr p[3];
    for (auto& x : p) MUST(cuMemAlloc(&x, 3 * MiB));
    printf("3 allocations of 3 MiB, distances: %lld %lld\n", (long long)(p[1] - p[0]), (long long)(p[2] - p[1]));
    CUdeviceptr base;
    size_t size;
    SAY(cuMemGetAddressRange(nullptr, nullptr, p[0]));
    SAY(cuMemGetAddressRange(&base, nullptr, p[0]));
    SAY(cuMemGetAddressRange(nullptr, &size, p[0]));
    SAY(cuMemGetAddressRange(&base, &size, 0));
    SAY(cuMemGetAddressRange(&base, &size, 0x1234));
    Range v("V2 H20");
    CUresult e = cuMemGetAddressRange(&base, &size, v.p + 3 * MiB);
    printf("cuMemGetAddressRange in a VMM range V2 H20, in H: %d base%+lld size %zu\n", e, (long long)(base - v.p), size);
    void* pinned;
    MUST(cuMemHostAlloc(&pinned, 5000, 0));
    e = cuMemGetAddressRange(&base, &size, (CUdeviceptr)pinned + 8);
    printf("cuMemGetAddressRange on pinned host memory of 5000: %d base%+lld size %zu\n", e,
           (long long)(base - (CUdeviceptr)pinned), size);
}

// (iv) Pitches

static void sectionPitch() {
    init();
    int texture = 0, surface = 0;
    cuDeviceGetAttribute(&texture, CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, device);
    cuDeviceGetAttribute(&surface, CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, device);
    printf("texture pitch alignment %d, texture alignment %d\n", texture, surface);
    for (unsigned element : {4u, 8u, 16u}) {
        int odd = 0, errors = 0, ranges = 0;
        vector<size_t> widths;
        for (size_t w = 1; w <= 10000; w++) widths.push_back(w);
        for (size_t w : {65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 100000001}) widths.push_back(w);
        for (size_t w : widths) {
            CUdeviceptr p = 0, base = 0;
            size_t pitch = 0, size = 0, rows = 1 + w % 3;
            if (cuMemAllocPitch(&p, &pitch, w, rows, element)) {
                errors++;
                continue;
            }
            size_t want = (w + 511) / 512 * 512;
            if (pitch != want && odd++ < 5) printf("  element %u width %zu: pitch %zu, not %zu\n", element, w, pitch, want);
            MUST(cuMemGetAddressRange(&base, &size, p));
            if (size != pitch * rows && ranges++ < 5)
                printf("  element %u width %zu rows %zu: size %zu, not %zu\n", element, w, rows, size, pitch * rows);
            MUST(cuMemFree(p));
        }
        printf("element %2u: %zu widths, %d pitches not the next multiple of 512, %d sizes not pitch x rows, %d errors\n",
               element, widths.size(), odd, ranges, errors);
    }
    CUdeviceptr p;
    size_t pitch;
    for (unsigned element : {0u, 1u, 2u, 3u, 32u})
        printf("element size %u: %s\n", element, name(cuMemAllocPitch(&p, &pitch, 100, 2, element)).c_str());
    SAY(cuMemAllocPitch(&p, &pitch, 0, 2, 4));
    SAY(cuMemAllocPitch(&p, &pitch, 100, 0, 4));
    SAY(cuMemAllocPitch(&p, &pitch, 0, 0, 4));
    SAY(cuMemAllocPitch(&p, &pitch, ~size_t(0), 2, 4));
    SAY(cuMemAllocPitch(&p, &pitch, size_t(1) << 40, size_t(1) << 30, 4));
    RISKY(cuMemAllocPitch(nullptr, &pitch, 100, 2, 4));
    RISKY(cuMemAllocPitch(&p, nullptr, 100, 2, 4));
}

// (v) Waiting and capturing

static const CUstreamCaptureMode MODES[] = {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                                            CU_STREAM_CAPTURE_MODE_RELAXED};
static const char* MODE_NAMES[] = {"global", "thread-local", "relaxed"};

static void sectionCapture() {
    init();
    CUstream s1 = makeStream(false), s2 = makeStream(false);
    CUdeviceptr counter;
    MUST(cuMemAlloc(&counter, 4096));
    MUST(cuMemsetD8(counter, 0, 4096));
    bump<<<1, 1, 0, (cudaStream_t)s2>>>((int*)counter); // loads the module before any capture
    MUST(cuCtxSynchronize());
    for (bool stream : {false, true})
        for (bool across : {false, true})
            for (int m = 0; m < 3; m++) {
                busy(s1, 300);
                std::atomic<int> code{-1};
                double waited = 0;
                std::thread waiter([&] {
                    cuCtxSetCurrent(context);
                    double t = now();
                    CUresult r = stream ? cuStreamSynchronize(s1) : cuCtxSynchronize();
                    waited = now() - t;
                    code = r;
                });
                std::this_thread::sleep_for(std::chrono::milliseconds(60));
                CUresult begin = cuStreamBeginCapture(s2, MODES[m]);
                bump<<<1, 1, 0, (cudaStream_t)s2>>>((int*)counter);
                cudaError_t launch = cudaGetLastError();
                if (across) waiter.join();
                CUgraph graph = nullptr;
                CUresult end = cuStreamEndCapture(s2, &graph);
                if (!across) waiter.join();
                CUgraphExec exec = nullptr;
                CUresult made = graph ? cuGraphInstantiate(&exec, graph, 0) : CUDA_ERROR_INVALID_VALUE;
                CUresult ran = exec ? cuGraphLaunch(exec, s2) : CUDA_ERROR_INVALID_VALUE;
                CUresult done = cuCtxSynchronize();
                printf("%s waiting %3.0f ms, then a %s capture %s: wait %d, begin %d, launch %d, end %d, graph %d %d %d\n",
                       stream ? "cuStreamSynchronize" : "cuCtxSynchronize", waited, MODE_NAMES[m],
                       across ? "open until it returns" : "closed meanwhile", code.load(), begin, launch, end, made, ran,
                       done);
            }
}

struct Cell {
    const char* name;
    std::function<void()> prepare;
    std::function<CUresult()> call;
    std::function<void()> clean;
};

/// One call while a capture is open, from three places. Prints `code/result of cuStreamEndCapture`.
static void captureTable(const vector<Cell>& cells, CUstream captured, CUstream other, CUdeviceptr counter) {
    printf("%-34s", "code/end of capture");
    for (int m = 0; m < 3; m++)
        for (const char* who : {"same", "other", "relaxed"}) printf(" %s.%s", m == 0 ? "G" : m == 1 ? "T" : "R", who);
    printf("\n");
    for (auto& c : cells) {
        printf("%-34s", c.name);
        for (int m = 0; m < 3; m++)
            for (int who = 0; who < 3; who++) {
                if (c.prepare) c.prepare();
                busy(other, 15);
                MUST(cuStreamBeginCapture(captured, MODES[m]));
                bump<<<1, 1, 0, (cudaStream_t)captured>>>((int*)counter);
                CUresult code = CUDA_ERROR_UNKNOWN;
                if (who == 0) code = c.call();
                else
                    std::thread([&] {
                        cuCtxSetCurrent(context);
                        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
                        if (who == 2) MUST(cuThreadExchangeStreamCaptureMode(&mode));
                        code = c.call();
                    }).join();
                CUgraph graph = nullptr;
                CUresult end = cuStreamEndCapture(captured, &graph);
                if (graph) cuGraphDestroy(graph);
                (void)cudaGetLastError();
                MUST(cuCtxSynchronize());
                if (c.clean) c.clean();
                char s[32];
                snprintf(s, sizeof s, "%d/%d", code, end);
                printf(" %7s", s);
            }
        printf("\n");
    }
}

// (v) second half and (vii): what a thread may do while somebody captures

static void sectionWhileCapturing() {
    init();
    CUstream captured = makeStream(false), other = makeStream(false);
    CUdeviceptr counter, extra = 0;
    MUST(cuMemAlloc(&counter, 4096));
    bump<<<1, 1>>>((int*)counter);
    MUST(cuCtxSynchronize());
    Range spare("V2 H2");
    CUmemGenericAllocationHandle made = 0;
    CUdeviceptr reserved = 0;
    void* host = nullptr;
    CUevent event;
    MUST(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    static char bytes[4096];
    size_t f, t;
    auto pv = prop(false), ph = prop(true);
    auto a = access();
    auto noHandle = [&] { if (made) MUST(cuMemRelease(made)); made = 0; };
    auto freeExtra = [&] { if (extra) cuMemFree(extra); extra = 0; };
    auto unmapSpare = [&] { MUST(cuMemUnmap(spare.p, spare.size)); };
    vector<Cell> cells = {
        {"cuCtxSynchronize", {}, [&] { return cuCtxSynchronize(); }, {}},
        {"cuStreamSynchronize(other)", {}, [&] { return cuStreamSynchronize(other); }, {}},
        {"cuStreamSynchronize(null)", {}, [&] { return cuStreamSynchronize(nullptr); }, {}},
        {"cuStreamQuery(other)", {}, [&] { return cuStreamQuery(other); }, {}},
        {"cuStreamQuery(null)", {}, [&] { return cuStreamQuery(nullptr); }, {}},
        {"cuEventRecord(other)", {}, [&] { return cuEventRecord(event, other); }, {}},
        {"cuEventQuery", [&] { MUST(cuEventRecord(event, other)); }, [&] { return cuEventQuery(event); }, {}},
        {"cuEventSynchronize", [&] { MUST(cuEventRecord(event, other)); }, [&] { return cuEventSynchronize(event); }, {}},
        {"cuMemsetD8Async(other)", {}, [&] { return cuMemsetD8Async(counter + 512, 0, 64, other); }, {}},
        {"cuMemcpyDtoH, pageable", {}, [&] { return cuMemcpyDtoH(bytes, counter, 64); }, {}},
        {"cuMemGetInfo", {}, [&] { return cuMemGetInfo(&f, &t); }, {}},
        {"cuPointerGetAttribute", {}, [&] { int v; return cuPointerGetAttribute(&v, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, counter); }, {}},
        {"cuMemAlloc 2 MiB", {}, [&] { return cuMemAlloc(&extra, 2 * MiB); }, freeExtra},
        {"cuMemAlloc 1 KiB", {}, [&] { return cuMemAlloc(&extra, KiB); }, freeExtra},
        {"cuMemFree 2 MiB", [&] { MUST(cuMemAlloc(&extra, 2 * MiB)); }, [&] { CUresult r = cuMemFree(extra); if (!r) extra = 0; return r; }, freeExtra},
        {"cuMemFree(0)", {}, [&] { return cuMemFree(0); }, {}},
        {"cuMemAllocPitch", {}, [&] { size_t p; return cuMemAllocPitch(&extra, &p, 100, 100, 4); }, freeExtra},
        {"cuMemHostAlloc", {}, [&] { return cuMemHostAlloc(&host, 4096, 0); }, [&] { if (host) MUST(cuMemFreeHost(host)); host = nullptr; }},
        {"cuMemHostRegister", {}, [&] { host = aligned_alloc(4096, 4096); return cuMemHostRegister(host, 4096, 0); }, [&] { cuMemHostUnregister(host); host = nullptr; }},
        {"cuMemCreate device", {}, [&] { return cuMemCreate(&made, 2 * MiB, &pv, 0); }, noHandle},
        {"cuMemCreate host", {}, [&] { return cuMemCreate(&made, 2 * MiB, &ph, 0); }, noHandle},
        {"cuMemRelease", [&] { MUST(cuMemCreate(&made, 2 * MiB, &pv, 0)); }, [&] { CUresult r = cuMemRelease(made); if (!r) made = 0; return r; }, noHandle},
        {"cuMemAddressReserve", {}, [&] { return cuMemAddressReserve(&reserved, 2 * MiB, 0, 0, 0); }, [&] { if (reserved) MUST(cuMemAddressFree(reserved, 2 * MiB)); reserved = 0; }},
        {"cuMemMap + SetAccess", unmapSpare, [&] { CUresult r = cuMemMap(spare.p, 2 * MiB, 0, spare.chunks[0].handle, 0); return r ?: cuMemSetAccess(spare.p, 2 * MiB, &a, 1); }, [&] { cuMemUnmap(spare.p, 2 * MiB); spare.remap(); }},
        {"cuMemUnmap", {}, [&] { return cuMemUnmap(spare.p, 2 * MiB); }, [&] { cuMemUnmap(spare.p, 2 * MiB); cuMemUnmap(spare.p + 2 * MiB, 2 * MiB); spare.remap(); }},
        {"cuMemAllocAsync(captured)", {}, [&] { return cuMemAllocAsync(&extra, 4096, captured); }, [&] { extra = 0; }},
        {"cuMemAllocAsync(other)", {}, [&] { return cuMemAllocAsync(&extra, 4096, other); }, freeExtra},
    };
    captureTable(cells, captured, other, counter);
}

// (vi) Contexts

static vector<std::pair<const char*, CUresult>> vmmSteps(bool host, CUdeviceptr* at, bool keep = false) {
    CUmemGenericAllocationHandle h = 0;
    *at = 0;
    auto p = prop(host);
    auto a = access();
    vector<std::pair<const char*, CUresult>> r;
    r.push_back({"reserve", cuMemAddressReserve(at, 2 * MiB, 0, 0, 0)});
    r.push_back({"create", cuMemCreate(&h, 2 * MiB, &p, 0)});
    r.push_back({"map", cuMemMap(*at, 2 * MiB, 0, h, 0)});
    r.push_back({"access", cuMemSetAccess(*at, 2 * MiB, &a, 1)});
    if (keep) return r;
    r.push_back({"unmap", cuMemUnmap(*at, 2 * MiB)});
    r.push_back({"release", cuMemRelease(h)});
    r.push_back({"unreserve", cuMemAddressFree(*at, 2 * MiB)});
    return r;
}

static void print(const char* what, const vector<std::pair<const char*, CUresult>>& steps) {
    printf("%s:", what);
    for (auto& [n, r] : steps) printf(" %s %d", n, r);
    printf("\n");
}

static void sectionContext() {
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    if (cuDeviceGetAttribute(&node, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, device) || node < 0) node = 0;
    CUdeviceptr p;
    size_t f, t;
    print("no context at all, device memory", vmmSteps(false, &p));
    print("no context at all, host memory", vmmSteps(true, &p));
    SAY(cuMemAlloc(&p, 4096));
    SAY(cuMemGetInfo(&f, &t));
    SAY(cuCtxSynchronize());
    CUcontext primary;
    MUST(cuDevicePrimaryCtxRetain(&primary, device));
    print("primary context exists, none current, device", vmmSteps(false, &p));
    print("primary context exists, none current, host", vmmSteps(true, &p));

    auto survives = [&](const char* what, CUdeviceptr v, CUdeviceptr h) {
        unsigned x[2] = {0, 0};
        CUresult a = cuMemcpyDtoH(&x[0], v + MiB, 4), b = cuMemcpyDtoH(&x[1], h + MiB, 4);
        CUresult c = cuMemsetD32(v, 9, 16), d = cuMemsetD32(h, 9, 16), e = cuCtxSynchronize();
        printf("%s: read %d %d (values %x %x), memset %d %d, synchronise %d\n", what, a, b, x[0], x[1], c, d, e);
    };
    MUST(cuCtxSetCurrent(primary));
    CUdeviceptr v, h;
    print("made in the primary context, V", vmmSteps(false, &v, true));
    print("made in the primary context, H", vmmSteps(true, &h, true));
    CUdeviceptr alloc;
    MUST(cuMemAlloc(&alloc, 4 * MiB));
    MUST(cuMemsetD32(v, 0x1111, MiB / 2));
    MUST(cuMemsetD32(h, 0x2222, MiB / 2));
    MUST(cuCtxSynchronize());
    survives("before the reset", v, h);
    MUST(cuMemsetD32(v, 0x1111, MiB / 2));
    MUST(cuMemsetD32(h, 0x2222, MiB / 2));
    SAY(cuDevicePrimaryCtxReset(device));
    SAY(cuMemcpyDtoH(&f, v, 4));
    CUcontext again;
    MUST(cuDevicePrimaryCtxRetain(&again, device));
    printf("the primary context after the reset is %s\n", again == primary ? "the same handle" : "another handle");
    MUST(cuCtxSetCurrent(again));
    survives("after the reset", v, h);
    SAY(cuMemFree(alloc));
    auto a = access();
    SAY(cuMemSetAccess(v, 2 * MiB, &a, 1));
    SAY(cuMemSetAccess(h, 2 * MiB, &a, 1));
    survives("after cuMemSetAccess again", v, h);
    SAY(cuMemUnmap(v, 2 * MiB));
    SAY(cuMemUnmap(h, 2 * MiB));
    SAY(cuMemAddressFree(v, 2 * MiB));
}

static void sectionContextOwn() {
    init();
    CUcontext own;
#if CUDA_VERSION >= 13000
    MUST(cuCtxCreate(&own, nullptr, 0, device));
#else
    MUST(cuCtxCreate(&own, 0, device));
#endif
    CUdeviceptr v, h, alloc;
    print("made in a context of our own, V", vmmSteps(false, &v, true));
    print("made in a context of our own, H", vmmSteps(true, &h, true));
    MUST(cuMemAlloc(&alloc, 4 * MiB));
    MUST(cuMemsetD32(v, 0x1111, MiB / 2));
    MUST(cuMemsetD32(h, 0x2222, MiB / 2));
    MUST(cuCtxSynchronize());
    unsigned x[2] = {0, 0};
    MUST(cuCtxSetCurrent(context));
    auto read = [&](const char* what) {
        x[0] = x[1] = 0;
        CUresult a = cuMemcpyDtoH(&x[0], v + MiB, 4), b = cuMemcpyDtoH(&x[1], h + MiB, 4);
        bump<<<1, 1>>>((int*)v);
        bump<<<1, 1>>>((int*)h);
        printf("%s: read %d %d (values %x %x), kernels %d\n", what, a, b, x[0], x[1], cuCtxSynchronize());
    };
    read("from the primary context");
    CUcontext owner = nullptr;
    CUresult e = cuPointerGetAttribute(&owner, CU_POINTER_ATTRIBUTE_CONTEXT, v);
    printf("context attribute of V: %d %s\n", e, !owner ? "null" : owner == own ? "the one it was made in" : "another");
    e = cuPointerGetAttribute(&owner, CU_POINTER_ATTRIBUTE_CONTEXT, alloc);
    printf("context attribute of A: %d %s\n", e, !owner ? "null" : owner == own ? "the one it was made in" : "another");
    SAY(cuCtxDestroy(own));
    read("after cuCtxDestroy, from the primary context");
    SAY(cuMemFree(alloc));
    SAY(cuMemUnmap(v, 2 * MiB));
    SAY(cuMemUnmap(h, 2 * MiB));
    SAY(cuMemAddressFree(v, 2 * MiB));
    SAY(cuMemAddressFree(h, 2 * MiB));
    SAY(cuCtxPushCurrent(own));
}

// (viii) Error codes

static void sectionErrors() {
    CUdeviceptr p = 0, q = 0;
    size_t f = 0, t = 0;
    int value = 0;
    static char plain[64];
    CUmemGenericAllocationHandle handle = 0;
    auto pv = prop(false);
    printf("-- before cuInit\n");
    auto common = [&] {
        SAY(cuMemAlloc(&p, 4096));
        SAY(cuMemAlloc(&p, 0));
        size_t pitch;
        SAY(cuMemAllocPitch(&p, &pitch, 100, 2, 4));
        SAY(cuMemFree(0));
        SAY(cuMemFree(0x1234));
        SAY(cuMemGetInfo(&f, &t));
        SAY(cuMemGetAddressRange(&p, &f, 0x1234));
        SAY(cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (CUdeviceptr)plain));
        CUpointer_attribute at = CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        void* out = &value;
        SAY(cuPointerGetAttributes(1, &at, &out, (CUdeviceptr)plain));
        SAY(cuDeviceTotalMem(&t, 0));
        SAY(cuCtxSynchronize());
        SAY(cuMemCreate(&handle, 2 * MiB, &pv, 0));
    };
    common();
    MUST(cuInit(0));
    printf("-- after cuInit, no context\n");
    common();
    init();
    printf("-- with a context\n");
    SAY(cuMemAlloc(&p, 0));
    SAY(cuMemFree(0));
    for (size_t n : {size_t(4096), size_t(64) * MiB}) {
        printf("-- allocation of %zu\n", n);
        MUST(cuMemAlloc(&p, n));
        say("cuMemFree(interior)", cuMemFree(p + 256));
        say("cuMemFree(interior, unaligned)", cuMemFree(p + 1));
        say("cuMemFree(one past the end)", cuMemFree(p + n));
        say("cuMemFree", cuMemFree(p));
        say("cuMemFree again", cuMemFree(p));
        say("cuMemGetAddressRange after free", cuMemGetAddressRange(&q, &f, p));
        say("cuPointerGetAttribute after free",
            cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p));
    }
    printf("-- others\n");
    SAY(cuMemFree((CUdeviceptr)plain));
    Range v("V2");
    say("cuMemFree of a VMM range", cuMemFree(v.p));
    say("cuMemFreeAsync of a VMM range", cuMemFreeAsync(v.p, nullptr));
    MUST(cuMemAlloc(&p, 4096));
    say("cuMemFreeAsync of cuMemAlloc memory", cuMemFreeAsync(p, nullptr));
    MUST(cuMemAlloc(&p, 64 * MiB));
    say("cuMemFreeAsync of an interior pointer", cuMemFreeAsync(p + 256, nullptr));
    say("cuMemFreeAsync of 64 MiB", cuMemFreeAsync(p, nullptr));
    say("cuMemFreeAsync again", cuMemFreeAsync(p, nullptr));
    MUST(cuCtxSynchronize());
    MUST(cuMemAllocAsync(&p, 4 * MiB, nullptr));
    say("cuMemFree of cuMemAllocAsync memory", cuMemFree(p));
    say("cuMemAlloc(1 PiB)", cuMemAlloc(&p, size_t(1) << 50));
    say("cuMemAlloc(SIZE_MAX)", cuMemAlloc(&p, ~size_t(0)));
    say("cuMemAlloc(SIZE_MAX - 2 MiB)", cuMemAlloc(&p, ~size_t(0) - 2 * MiB));
    MUST(cuMemGetInfo(&f, &t));
    say("cuMemAlloc(total + 1 GiB)", cuMemAlloc(&p, t + GiB));
    SAY(cuDeviceTotalMem(&t, 99));
    SAY(cuDeviceTotalMem(&t, -1));
    SAY(cuMemCreate(&handle, 0, &pv, 0));
    SAY(cuMemCreate(&handle, 3 * MiB, &pv, 0));
    auto bad = prop(true);
    bad.location.id = 77;
    say("cuMemCreate on NUMA node 77", cuMemCreate(&handle, 2 * MiB, &bad, 0));
    SAY(cuMemRelease(0x1234));
    SAY(cuMemMap(v.p, 2 * MiB, 0, 0x1234, 0));
    for (int k : {0, 22, 99, -1})
        printf("cuPointerGetAttribute(%d): %s\n", k, name(cuPointerGetAttribute(&value, CUpointer_attribute(k), v.p)).c_str());
    int kinds[] = {1, 2, 3, 4, 8, 9, 11, 12, 13};
    for (int k : kinds) {
        int stack = 0;
        Answer a = ask(k, (CUdeviceptr)plain), b = ask(k, (CUdeviceptr)&stack), c = ask(k, 0);
        printf("cuPointerGetAttribute(%-14s): static %s, stack %s, null %s\n", attributeName(k), text(a, 0, 0).c_str(),
               text(b, 0, 0).c_str(), text(c, 0, 0).c_str());
    }
    unsigned char two[2] = {1, 2};
    Range m("V2 H2");
    MUST(cuMemAlloc(&p, 64 * MiB));
    say("cuMemcpyHtoD past the end of cuMemAlloc memory", cuMemcpyHtoD(p + 64 * MiB - 1, two, 2));
    say("cuMemsetD32 at an odd address", cuMemsetD32(m.p + 1, 1, 1));
    cudaError_t e = cudaFree(plain);
    printf("cudaFree of a host pointer: %d; sticky afterwards: %d\n", e, cudaDeviceSynchronize());
    // These may cost the context, so they come last.
    say("cuMemcpyHtoD past the end of a VMM range", cuMemcpyHtoD(m.p + m.size - 1, two, 2));
    say("and then cuCtxSynchronize", cuCtxSynchronize());
    say("cuMemsetD8 past the end of a VMM range", cuMemsetD8(m.p + m.size - 1, 1, 2));
    say("and then cuCtxSynchronize", cuCtxSynchronize());
}

static void sectionNulls() {
    init();
    CUdeviceptr p = 0;
    size_t f = 0;
    MUST(cuMemAlloc(&p, 4096));
    RISKY(cuMemGetInfo(&f, nullptr));
    RISKY(cuMemGetInfo(nullptr, &f));
    RISKY(cuMemGetInfo(nullptr, nullptr));
    RISKY(cuMemGetAddressRange(nullptr, nullptr, p));
    RISKY(cuMemAlloc(nullptr, 4096));
    RISKY(cuMemAlloc(nullptr, 0));
    RISKY(cuDeviceTotalMem(nullptr, 0));
    RISKY(cuPointerGetAttribute(nullptr, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p));
    CUpointer_attribute at = CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    void* none = nullptr;
    RISKY(cuPointerGetAttributes(0, &at, &none, p));
    RISKY(cuPointerGetAttributes(1, nullptr, &none, p));
    RISKY(cuPointerGetAttributes(1, &at, nullptr, p));
    RISKY(cuPointerGetAttributes(1, &at, &none, p));
    RISKY(cuMemCreate(nullptr, 2 * MiB, nullptr, 0));
    auto lib = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    auto nvmlInit = reinterpret_cast<int (*)()>(lib ? dlsym(lib, "nvmlInit_v2") : nullptr);
    auto handle = reinterpret_cast<int (*)(unsigned, void**)>(lib ? dlsym(lib, "nvmlDeviceGetHandleByIndex_v2") : nullptr);
    auto info = reinterpret_cast<int (*)(void*, void*)>(lib ? dlsym(lib, "nvmlDeviceGetMemoryInfo") : nullptr);
    auto info2 = reinterpret_cast<int (*)(void*, void*)>(lib ? dlsym(lib, "nvmlDeviceGetMemoryInfo_v2") : nullptr);
    if (!nvmlInit || !handle || !info) return;
    u64 three[3];
    void* d = nullptr;
    printf("nvmlDeviceGetMemoryInfo before nvmlInit: %d\n", info(nullptr, three));
    // One after the other: arguments of one call are evaluated in any order.
    int ready = nvmlInit(), found = handle(0, &d);
    printf("nvmlInit %d, handle %d\n", ready, found);
    RISKY(CUresult(info(d, nullptr)));
    RISKY(CUresult(info(nullptr, three)));
    struct {
        unsigned version;
        u64 n[4];
    } two = {0, {}};
    for (unsigned version : {0u, 1u << 24 | 40u, 2u << 24 | 40u, 3u << 24 | 40u, 2u << 24 | 24u, 2u}) {
        two.version = version;
        printf("nvmlDeviceGetMemoryInfo_v2 with version %x: %d\n", version, info2 ? info2(d, &two) : -1);
    }
    RISKY(CUresult(info2 ? info2(d, nullptr) : -1));
}

// (ix) Costs

static double median(vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty() ? 0 : v[v.size() / 2];
}

template <class F> static double timed(F&& f) {
    double t = now();
    f();
    return (now() - t) * 1e3;
}

static void sectionCost() {
    init();
    printf("microseconds, medians\n%-24s %10s %10s\n", "cuMemAlloc, cuMemFree", "alloc", "free");
    for (size_t mib : {1, 2, 8, 20, 64, 256, 1024}) {
        vector<double> a, f;
        for (int i = 0; i < 15; i++) {
            CUdeviceptr p;
            a.push_back(timed([&] { MUST(cuMemAlloc(&p, mib * MiB)); }));
            f.push_back(timed([&] { MUST(cuMemFree(p)); }));
        }
        vector<double> fresh;
        vector<CUdeviceptr> held(mib > 256 ? 4 : 16);
        for (auto& p : held) fresh.push_back(timed([&] { MUST(cuMemAlloc(&p, mib * MiB)); }));
        for (auto p : held) MUST(cuMemFree(p));
        printf("%18zu MiB   %10.1f %10.1f   without frees in between %.1f\n", mib, median(a), median(f), median(fresh));
    }
    printf("%-24s %10s %10s %10s %10s %10s %10s %10s | %s\n", "VMM, one access call", "reserve", "create", "map", "access",
           "unmap", "release", "unreserve", "alloc, free in all");
    for (bool host : {false, true})
        for (size_t mib : {2, 8, 20, 64, 256, 1024})
            for (size_t chunk : {2, 20, 32, 64}) {
                if (chunk > mib || (host && mib > 256)) continue;
                vector<double> s[7];
                vector<double> up, down;
                for (int i = 0; i < (host ? 3 : 9); i++) {
                    size_t n = (mib + chunk - 1) / chunk, size = n * chunk * MiB;
                    CUdeviceptr p;
                    vector<CUmemGenericAllocationHandle> h(n);
                    auto pr = prop(host);
                    auto a = access();
                    double x[7];
                    x[0] = timed([&] { MUST(cuMemAddressReserve(&p, size, 2 * MiB, 0, 0)); });
                    x[1] = timed([&] { for (auto& y : h) MUST(cuMemCreate(&y, chunk * MiB, &pr, 0)); });
                    x[2] = timed([&] { for (size_t k = 0; k < n; k++) MUST(cuMemMap(p + k * chunk * MiB, chunk * MiB, 0, h[k], 0)); });
                    x[3] = timed([&] { MUST(cuMemSetAccess(p, size, &a, 1)); });
                    x[4] = timed([&] { for (size_t k = 0; k < n; k++) MUST(cuMemUnmap(p + k * chunk * MiB, chunk * MiB)); });
                    x[5] = timed([&] { for (auto y : h) MUST(cuMemRelease(y)); });
                    x[6] = timed([&] { MUST(cuMemAddressFree(p, size)); });
                    for (int k = 0; k < 7; k++) s[k].push_back(x[k]);
                    up.push_back(x[0] + x[1] + x[2] + x[3]);
                    down.push_back(x[4] + x[5] + x[6]);
                }
                printf("%s %5zu MiB by %2zu         ", host ? "H" : "V", mib, chunk);
                for (auto& v : s) printf(" %10.1f", median(v));
                printf(" | %.1f %.1f\n", median(up), median(down));
            }
    for (size_t mib : {2, 64, 1024, 65536}) {
        vector<double> r, f;
        for (int i = 0; i < 20; i++) {
            CUdeviceptr p;
            r.push_back(timed([&] { MUST(cuMemAddressReserve(&p, mib * MiB, 2 * MiB, 0, 0)); }));
            f.push_back(timed([&] { MUST(cuMemAddressFree(p, mib * MiB)); }));
        }
        printf("cuMemAddressReserve %5zu MiB %.1f, free %.1f\n", mib, median(r), median(f));
    }
    auto cheap = [&](const char* what, auto&& f) {
        vector<double> v;
        for (int i = 0; i < 200; i++) v.push_back(timed(f));
        printf("%-34s %.2f\n", what, median(v));
    };
    size_t a, b;
    CUdeviceptr p;
    int value;
    CUcontext c;
    CUevent event;
    CUstreamCaptureStatus status;
    CUstream s = makeStream(false);
    MUST(cuMemAlloc(&p, 4096));
    MUST(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    cheap("cuCtxSynchronize, idle", [&] { cuCtxSynchronize(); });
    cheap("cuStreamSynchronize, idle", [&] { cuStreamSynchronize(s); });
    cheap("cuStreamQuery", [&] { cuStreamQuery(s); });
    cheap("cuEventRecord", [&] { cuEventRecord(event, s); });
    cheap("cuEventQuery", [&] { cuEventQuery(event); });
    cheap("cuStreamIsCapturing", [&] { cuStreamIsCapturing(s, &status); });
    cheap("cuMemGetInfo", [&] { cuMemGetInfo(&a, &b); });
    cheap("cuCtxGetCurrent", [&] { cuCtxGetCurrent(&c); });
    cheap("cuCtxPushCurrent + PopCurrent", [&] { cuCtxPushCurrent(context); cuCtxPopCurrent(&c); });
    cheap("cuThreadExchangeStreamCaptureMode", [&] { CUstreamCaptureMode m = CU_STREAM_CAPTURE_MODE_RELAXED; cuThreadExchangeStreamCaptureMode(&m); cuThreadExchangeStreamCaptureMode(&m); });
    cheap("cuPointerGetAttribute", [&] { cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p); });
    cheap("cuMemAlloc 1 KiB + cuMemFree", [&] { CUdeviceptr q; cuMemAlloc(&q, KiB); cuMemFree(q); });
    vector<CUstream> many(100);
    for (auto& x : many) x = makeStream(false);
    cheap("cuCtxSynchronize, 100 idle streams", [&] { cuCtxSynchronize(); });
}

// (x) When do synchronous and null-stream forms return?

struct Form {
    const char* name;
    bool source; // it has a source on the device
    std::function<CUresult(CUdeviceptr, CUdeviceptr)> call;
};

static CUDA_MEMCPY2D rect(CUdeviceptr d, CUdeviceptr s) {
    CUDA_MEMCPY2D c = {};
    c.srcMemoryType = c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    c.srcDevice = s;
    c.dstDevice = d;
    c.srcPitch = c.dstPitch = 4096;
    c.WidthInBytes = 1000;
    c.Height = 1000;
    return c;
}

static CUDA_MEMCPY3D box(CUdeviceptr d, CUdeviceptr s) {
    CUDA_MEMCPY3D c = {};
    c.srcMemoryType = c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    c.srcDevice = s;
    c.dstDevice = d;
    c.srcPitch = c.dstPitch = 4096;
    c.srcHeight = c.dstHeight = 64;
    c.WidthInBytes = 1000;
    c.Height = 50;
    c.Depth = 8;
    return c;
}

static vector<Form> forms(void* pinned, void* plain) {
    constexpr size_t N = 16 * MiB;
    CUstream null = nullptr, legacy = CU_STREAM_LEGACY, own = CU_STREAM_PER_THREAD;
    auto absent = [](CUdeviceptr, CUdeviceptr) { return CUDA_ERROR_NOT_FOUND; };
    vector<Form> f = {
        {"cuMemcpyDtoD", true, [](auto d, auto s) { return cuMemcpyDtoD(d, s, N); }},
        {"cuMemcpyDtoD 64 B", true, [](auto d, auto s) { return cuMemcpyDtoD(d, s, 64); }},
        {"cuMemcpy", true, [](auto d, auto s) { return cuMemcpy(d, s, N); }},
        {"cuMemcpyPeer", true, [](auto d, auto s) { return cuMemcpyPeer(d, context, s, context, N); }},
        {"cuMemcpy2D", true, [](auto d, auto s) { auto c = rect(d, s); return cuMemcpy2D(&c); }},
        {"cuMemcpy2DUnaligned", true, [](auto d, auto s) { auto c = rect(d, s); return cuMemcpy2DUnaligned(&c); }},
        {"cuMemcpy3D", true, [](auto d, auto s) { auto c = box(d, s); return cuMemcpy3D(&c); }},
        {"cuMemcpy3DPeer", true, [](auto d, auto s) {
             auto b = box(d, s);
             CUDA_MEMCPY3D_PEER c = {};
             c.srcMemoryType = c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
             c.srcDevice = s, c.dstDevice = d, c.srcContext = c.dstContext = context;
             c.srcPitch = c.dstPitch = b.srcPitch, c.srcHeight = c.dstHeight = b.srcHeight;
             c.WidthInBytes = b.WidthInBytes, c.Height = b.Height, c.Depth = b.Depth;
             return cuMemcpy3DPeer(&c);
         }},
        {"cuMemsetD8", false, [](auto d, auto) { return cuMemsetD8(d, 1, N); }},
        {"cuMemsetD8 64 B", false, [](auto d, auto) { return cuMemsetD8(d, 1, 64); }},
        {"cuMemsetD16", false, [](auto d, auto) { return cuMemsetD16(d, 1, N / 2); }},
        {"cuMemsetD32", false, [](auto d, auto) { return cuMemsetD32(d, 1, N / 4); }},
        {"cuMemsetD2D8", false, [](auto d, auto) { return cuMemsetD2D8(d, 4096, 1, 1000, 1000); }},
        {"cuMemsetD2D16", false, [](auto d, auto) { return cuMemsetD2D16(d, 4096, 1, 1000, 1000); }},
        {"cuMemsetD2D32", false, [](auto d, auto) { return cuMemsetD2D32(d, 4096, 1, 1000, 1000); }},
        {"cuMemcpyHtoD pageable", false, [=](auto d, auto) { return cuMemcpyHtoD(d, plain, N); }},
        {"cuMemcpyHtoD pageable 4K", false, [=](auto d, auto) { return cuMemcpyHtoD(d, plain, 4096); }},
        {"cuMemcpyHtoD pinned", false, [=](auto d, auto) { return cuMemcpyHtoD(d, pinned, N); }},
        {"cuMemcpyDtoH pinned", false, [=](auto d, auto) { return cuMemcpyDtoH(pinned, d, N); }},
        {"DtoDAsync null stream", true, [=](auto d, auto s) { return cuMemcpyDtoDAsync(d, s, N, null); }},
        {"DtoDAsync legacy", true, [=](auto d, auto s) { return cuMemcpyDtoDAsync(d, s, N, legacy); }},
        {"cuMemcpyAsync null stream", true, [=](auto d, auto s) { return cuMemcpyAsync(d, s, N, null); }},
        {"memsetD8Async null stream", false, [=](auto d, auto) { return cuMemsetD8Async(d, 1, N, null); }},
        {"HtoDAsync pageable null", false, [=](auto d, auto) { return cuMemcpyHtoDAsync(d, plain, N, null); }},
        {"HtoDAsync pageable 4K null", false, [=](auto d, auto) { return cuMemcpyHtoDAsync(d, plain, 4096, null); }},
        {"DtoDAsync per thread", true, [=](auto d, auto s) { return cuMemcpyDtoDAsync(d, s, N, own); }},
    };
    auto dtod = VARIANT(cuMemcpyDtoD, "cuMemcpyDtoD_v2_ptds");
    auto copy = VARIANT(cuMemcpy, "cuMemcpy_ptds");
    auto set8 = VARIANT(cuMemsetD8, "cuMemsetD8_v2_ptds");
    auto set2 = VARIANT(cuMemsetD2D8, "cuMemsetD2D8_v2_ptds");
    auto two = VARIANT(cuMemcpy2D, "cuMemcpy2D_v2_ptds");
    f.push_back({"cuMemcpyDtoD_v2_ptds", true, dtod ? [=](auto d, auto s) { return dtod(d, s, N); } : std::function<CUresult(CUdeviceptr, CUdeviceptr)>(absent)});
    f.push_back({"cuMemcpy_ptds", true, copy ? [=](auto d, auto s) { return copy(d, s, N); } : std::function<CUresult(CUdeviceptr, CUdeviceptr)>(absent)});
    f.push_back({"cuMemcpy2D_v2_ptds", true, two ? [=](auto d, auto s) { auto c = rect(d, s); return two(&c); } : std::function<CUresult(CUdeviceptr, CUdeviceptr)>(absent)});
    f.push_back({"cuMemsetD8_v2_ptds", false, set8 ? [=](auto d, auto) { return set8(d, 1, N); } : std::function<CUresult(CUdeviceptr, CUdeviceptr)>(absent)});
    f.push_back({"cuMemsetD2D8_v2_ptds", false, set2 ? [=](auto d, auto) { return set2(d, 4096, 1, 1000, 1000); } : std::function<CUresult(CUdeviceptr, CUdeviceptr)>(absent)});
    return f;
}

static void sectionSync() {
    init();
    Range v1("V32"), v2("V32"), h1("H32"), h2("H32"), m1("V4 H28"), m2("V4 H28");
    void *pinned, *plain = malloc(16 * MiB);
    memset(plain, 1, 16 * MiB);
    MUST(cuMemHostAlloc(&pinned, 16 * MiB, 0));
    CUstream blocking = makeStream(true), free = makeStream(false);
    auto list = forms(pinned, plain);
#if CUDA_VERSION >= 13000
    auto batch = [&](CUdeviceptr d, CUdeviceptr s, CUstream on) {
        CUdeviceptr ds[2] = {d, d + 8 * MiB}, ss[2] = {s, s + 8 * MiB};
        size_t sizes[2] = {4 * MiB, 4 * MiB}, first = 0;
        CUmemcpyAttributes a = {};
        a.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
        return cuMemcpyBatchAsync(ds, ss, sizes, 2, &a, &first, 1, on);
    };
    list.push_back({"cuMemcpyBatchAsync in order", true, [&](auto d, auto s) { return batch(d, s, blocking); }});
    list.push_back({"cuMemcpyBatchAsync from pinned", false, [&](auto d, auto) { return batch(d, (CUdeviceptr)pinned, blocking); }});
#endif
    struct Pair {
        const char* name;
        CUdeviceptr d, s;
    } pairs[] = {{"V<-V", v2.p, v1.p}, {"V<-H", v1.p, h1.p}, {"H<-V", h1.p, v1.p}, {"H<-H", h2.p, h1.p}, {"M<-M", m2.p, m1.p}};
    struct Behind {
        const char* name;
        CUstream s;
    } behind[] = {{"null", nullptr}, {"blocking", blocking}, {"non-block", free}, {"per-thread", CU_STREAM_PER_THREAD}};
    // Warm: the first use of each form may load something.
    for (auto& f : list)
        for (auto& p : pairs) f.call(p.d, p.s);
    MUST(cuCtxSynchronize());
    printf("each call behind a 40 ms kernel; ms until the call returned; memsets and host copies have no source\n");
    printf("%-30s %-11s |", "form", "kernel in");
    for (auto& p : pairs) printf("  %s", p.name);
    printf("\n");
    for (auto& f : list)
        for (auto& b : behind) {
            printf("%-30s %-11s |", f.name, b.name);
            bool waits[5] = {}, different = false;
            string codes;
            for (int k = 0; k < 5; k++) {
                if (!f.source && (k == 1 || k == 2)) {
                    printf("     -");
                    continue;
                }
                busy(b.s, 40);
                double t = now();
                CUresult e = f.call(pairs[k].d, pairs[k].s);
                t = now() - t;
                MUST(cuCtxSynchronize());
                waits[k] = t > 20;
                different |= waits[k] != waits[0];
                printf(" %5.1f", t);
                if (e) codes += " code " + std::to_string(int(e));
            }
            printf("%s%s\n", different ? "  DIFFERENT" : "", codes.c_str());
        }
}

static void sectionSyncCapture() {
    init();
    Range v1("V32"), v2("V32"), h1("H32"), h2("H32");
    void *pinned, *plain = malloc(16 * MiB);
    memset(plain, 1, 16 * MiB);
    MUST(cuMemHostAlloc(&pinned, 16 * MiB, 0));
    CUstream blocking = makeStream(true), free = makeStream(false);
    CUdeviceptr counter;
    MUST(cuMemAlloc(&counter, 4096));
    bump<<<1, 1>>>((int*)counter);
    MUST(cuCtxSynchronize());
    printf("code/end of capture, by the capturing thread (other: by another thread), on VRAM and on host memory;\n"
           "capturing a blocking (b) or non-blocking (n) stream, global (G), thread-local (T) or relaxed (R)\n");
    printf("%-28s %17s %17s %17s %17s %17s\n", "", "b.G", "n.G", "n.T", "b.R", "n.G other");
    for (auto& f : forms(pinned, plain)) {
        printf("%-28s", f.name);
        struct Column {
            CUstream s;
            CUstreamCaptureMode m;
            bool other;
        } columns[] = {{blocking, MODES[0], false}, {free, MODES[0], false}, {free, MODES[1], false},
                       {blocking, MODES[2], false}, {free, MODES[0], true}};
        for (auto& c : columns) {
            string cell;
            for (bool host : {false, true}) {
                MUST(cuStreamBeginCapture(c.s, c.m));
                bump<<<1, 1, 0, (cudaStream_t)c.s>>>((int*)counter);
                CUresult code;
                auto call = [&] { code = host ? f.call(h2.p, h1.p) : f.call(v2.p, v1.p); };
                if (c.other)
                    std::thread([&] {
                        cuCtxSetCurrent(context);
                        call();
                    }).join();
                else call();
                CUgraph g = nullptr;
                CUresult end = cuStreamEndCapture(c.s, &g);
                if (g) cuGraphDestroy(g);
                (void)cudaGetLastError();
                MUST(cuCtxSynchronize());
                cell += (host ? " " : "") + std::to_string(int(code)) + "/" + std::to_string(int(end));
            }
            printf(" %17s", cell.c_str());
        }
        printf("\n");
    }
}

// (xi) Atomics, bulk copies, grid barriers on host memory

__global__ void atomics(uint8_t* base) {
    auto u = reinterpret_cast<unsigned*>(base);
    auto q = reinterpret_cast<u64*>(base + 256);
    auto f = reinterpret_cast<float*>(base + 512);
    auto d = reinterpret_cast<double*>(base + 768);
    auto h = reinterpret_cast<__half2*>(base + 1024);
    auto b = reinterpret_cast<__nv_bfloat162*>(base + 1280);
    auto i = reinterpret_cast<int*>(base + 1536);
    unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
    for (int k = 0; k < 2; k++) {
        atomicAdd(&u[0], 1u);
        atomicSub(&u[1], 3u);
        atomicMax(&u[2], t * 7 % 1009);
        atomicMin(&u[3], 5000000 - t);
        atomicAnd(&u[4], ~(1u << (t % 13)));
        atomicOr(&u[5], 1u << (t % 29));
        atomicXor(&u[6], 1u << (t % 31));
        atomicInc(&u[7], 1u << 30);
        atomicDec(&u[8], 1u << 30);
        atomicCAS(&u[9], 0u, 7u);
        atomicAdd_system(&u[10], 1u);
        atomicAdd(&q[0], 5ull);
        atomicMax(&q[1], u64(t) * 11 % 100003);
        atomicCAS(&q[2], 0ull, 9ull);
        atomicXor(&q[3], 1ull << (t % 61));
        atomicAdd(&f[0], 0.5f);
        atomicAdd(&d[0], 0.25);
        if (t % 64 == 0 && k == 0) atomicAdd(&h[0], __floats2half2_rn(1.f, 2.f));
        if (t % 128 == 0 && k == 0) atomicAdd(&b[0], __floats2bfloat162_rn(1.f, 1.f));
        atomicMin(&i[0], int(t % 977) - 500);
        atomicMax(&i[1], int(t % 977) - 500);
        asm volatile("red.global.gpu.add.u32 [%0], 2;" ::"l"(&u[11]) : "memory");
        asm volatile("red.release.sys.global.add.u64 [%0], 3;" ::"l"(&q[4]) : "memory");
        asm volatile("red.global.gpu.add.f32 [%0], 0f3F800000;" ::"l"(&f[1]) : "memory");
#if __CUDA_ARCH__ >= 900
        asm volatile("red.global.gpu.v4.f32.add [%0], {%1, %1, %1, %1};" ::"l"(base + 2048), "f"(1.0f) : "memory");
        asm volatile("{ .reg .b128 o, c, n; mov.b128 c, {%1, %2}; mov.b128 n, {%3, %4};\n"
                     " atom.relaxed.gpu.global.cas.b128 o, [%0], c, n; }" ::"l"(base + 2304), "l"(0ull), "l"(0ull),
                     "l"(77ull), "l"(78ull) : "memory");
#endif
    }
    // A lock, and plain data under it.
    if (threadIdx.x == 0) {
        auto lock = reinterpret_cast<int*>(base + 2560);
        auto data = reinterpret_cast<volatile int*>(base + 2816);
        for (int tries = 0; atomicCAS(lock, 0, 1); tries++) {
            if (tries > 1000000) return; // and the data will be wrong
            __nanosleep(50);
        }
        __threadfence();
        for (int k = 0; k < 16; k++) data[k] = data[k] + k + 1;
        __threadfence();
        atomicExch(lock, 0);
    }
}

/// Each thread adds to its own place and to one that it shares with others, spread over many pages.
__global__ void spread(unsigned* p, u64 words) {
    u64 t = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    for (int k = 0; k < 4; k++) {
        u64 x = (t * 4 + k) * 0x9E3779B97F4A7C15ull;
        atomicAdd(&p[(x >> 20) % words], unsigned(x));
    }
}

__global__ void bulk(const uint8_t* from, uint8_t* to, unsigned* sums, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) uint8_t buffer[];
    __shared__ __align__(8) uint64_t barrier;
    auto smem = unsigned(__cvta_generic_to_shared(buffer)), bar = unsigned(__cvta_generic_to_shared(&barrier));
    const uint8_t* s = from + size_t(blockIdx.x) * bytes;
    uint8_t* d = to + size_t(blockIdx.x) * bytes;
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar));
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem),
                     "l"(s), "r"(bytes), "r"(bar) : "memory");
        unsigned done = 0;
        while (!done)
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done) : "r"(bar) : "memory");
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(d), "r"(smem), "r"(bytes) : "memory");
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%0], [%1], %2;" ::"l"(sums), "r"(smem),
                     "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.commit_group;");
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(s), "r"(bytes));
    }
#endif
}

__global__ void tensor(const __grid_constant__ CUtensorMap in, const __grid_constant__ CUtensorMap out) {
#if __CUDA_ARCH__ >= 900
    __shared__ __align__(128) uint8_t tile[64 * 64 * 4];
    __shared__ __align__(8) uint64_t barrier;
    auto smem = unsigned(__cvta_generic_to_shared(tile)), bar = unsigned(__cvta_generic_to_shared(&barrier));
    int x = blockIdx.x * 64, y = blockIdx.y * 64;
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar));
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(unsigned(sizeof tile)) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                     ::"r"(smem), "l"(&in), "r"(x), "r"(y), "r"(bar) : "memory");
        unsigned done = 0;
        while (!done)
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done) : "r"(bar) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&out), "r"(x),
                     "r"(y), "r"(smem) : "memory");
        asm volatile("cp.async.bulk.commit_group;");
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
#endif
}

__global__ void cpAsync(const uint4* from, uint4* to) {
    __shared__ uint4 buffer[256];
    size_t i = size_t(blockIdx.x) * 256 + threadIdx.x;
    auto s = unsigned(__cvta_generic_to_shared(&buffer[threadIdx.x]));
    if (blockIdx.x % 3 == 0) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s), "l"(from + i) : "memory");
    else if (blockIdx.x % 3 == 1)
        for (int k = 0; k < 2; k++)
            asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(s + 8 * k), "l"((const char*)(from + i) + 8 * k) : "memory");
    else
        for (int k = 0; k < 4; k++)
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(s + 4 * k), "l"((const char*)(from + i) + 4 * k) : "memory");
    asm volatile("cp.async.commit_group; cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    uint4 v = buffer[255 - threadIdx.x], w = __ldg(from + i), x = __ldcs(from + i), y = __ldcg(from + i);
    to[i] = make_uint4(v.x + w.x, v.y ^ x.y, v.z - y.z, v.w);
}

/// Rounds of "write own word, grid barrier, read a neighbour's word".
__global__ void grid(unsigned* a, unsigned* b, int rounds) {
    auto g = cooperative_groups::this_grid();
    unsigned n = gridDim.x * blockDim.x, t = blockIdx.x * blockDim.x + threadIdx.x;
    for (int r = 0; r < rounds; r++) {
        b[t] = a[(t + n - 257) % n] * 1664525u + 1013904223u + r;
        g.sync();
        a[t] = b[(t + 4099) % n] ^ t;
        g.sync();
    }
}

/// Blocks hand a value on through flags in memory, with acquire and release.
__global__ void relay(unsigned* flag, unsigned* value, int rounds) {
    if (threadIdx.x) return;
    for (int r = 0; r < rounds; r++) {
        unsigned turn = r * gridDim.x + blockIdx.x, seen;
        int tries = 0;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        while (seen != turn && ++tries < 3000000);
        if (seen != turn) return; // and the value will be wrong
        *value = *value * 1664525u + 1013904223u + blockIdx.x;
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(turn + 1) : "memory");
    }
}

static void sectionAtomics() {
    init();
    constexpr size_t N = 16 * MiB;
    Range v1("V16"), v2("V16"), h1("H16"), h2("H16"), m1("V8 H8"), m2("V8 H8");
    struct Place {
        const char* name;
        CUdeviceptr in, out;
    } places[] = {{"VRAM", v1.p, v2.p}, {"host", h1.p, h2.p}, {"mixed", m1.p, m2.p}, {"V->H", v1.p, h2.p}, {"H->V", h1.p, v2.p}};
    vector<uint8_t> source(N);
    for (size_t i = 0; i < N; i++) source[i] = uint8_t((i * 2654435761u) >> 13);
    auto run = [&](const char* what, auto&& work) {
        printf("%-34s", what);
        vector<uint8_t> first;
        for (auto& p : places) {
            MUST(cuMemcpyHtoD(p.in, source.data(), N));
            MUST(cuMemsetD8(p.out, 0, N));
            MUST(cuCtxSynchronize());
            double t = now();
            work(p.in, p.out);
            cudaError_t launched = cudaGetLastError();
            CUresult e = cuCtxSynchronize();
            t = now() - t;
            vector<uint8_t> got(2 * N);
            CUresult c = cuMemcpyDtoH(got.data(), p.out, N);
            c = c ?: cuMemcpyDtoH(got.data() + N, p.in, N);
            if (first.empty()) first = got;
            printf("  %s %s %.2f ms", p.name, launched || e || c ? ("error " + std::to_string(launched ? int(launched) : e ? int(e) : int(c))).c_str()
                   : got == first ? "equal" : "DIFFERENT", t);
            if (e) {
                printf("\n  the context is lost; run the section again without this line\n");
                return false;
            }
        }
        printf("\n");
        return true;
    };
    bool ok = run("atomics, vector and 128-bit ones, lock", [](auto, auto o) { atomics<<<64, 256>>>((uint8_t*)o); });
    ok = ok && run("atomics spread over 16 MiB", [](auto, auto o) { spread<<<128, 256>>>((unsigned*)o, N / 4); });
    ok = ok && run("cp.async 4/8/16, ld.nc/cs/cg", [](auto i, auto o) { cpAsync<<<N / 4096, 256>>>((uint4*)i, (uint4*)o); });
    ok = ok && run("cp.async.bulk, cp.reduce.async.bulk", [](auto i, auto o) {
        bulk<<<(N - 64 * KiB) / (16 * KiB), 32, 16 * KiB>>>((uint8_t*)i, (uint8_t*)o + 64 * KiB, (unsigned*)o, 16 * KiB);
    });
    ok = ok && run("TMA tensor 2d load and store", [](auto i, auto o) {
        CUtensorMap maps[2];
        cuuint64_t dims[2] = {2048, 2048}, strides[1] = {8192};
        cuuint32_t boxes[2] = {64, 64}, elements[2] = {1, 1};
        for (int k = 0; k < 2; k++)
            MUST(cuTensorMapEncodeTiled(&maps[k], CU_TENSOR_MAP_DATA_TYPE_UINT32, 2, (void*)(k ? o : i), dims, strides, boxes,
                                        elements, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                                        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
        tensor<<<dim3(32, 32), 32>>>(maps[0], maps[1]);
    });
    ok = ok && run("cooperative grid barriers", [](auto i, auto o) {
        unsigned *a = (unsigned*)i, *b = (unsigned*)o;
        int rounds = 50, blocks = 0;
        MUST(cuDeviceGetAttribute(&blocks, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
        void* args[] = {&a, &b, &rounds};
        MUSTRT(cudaLaunchCooperativeKernel((void*)grid, dim3(blocks), dim3(256), args, 0, nullptr));
    });
    ok = ok && run("relay by acquire and release", [](auto, auto o) {
        relay<<<64, 32>>>((unsigned*)o, (unsigned*)(o + 9 * MiB), 20);
    });
    // A lone host allocation by the driver, as a third opinion.
    int native = 0;
    cuDeviceGetAttribute(&native, CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED, device);
    printf("HOST_NATIVE_ATOMIC_SUPPORTED %d\n", native);
}

// (xii, xiii) NVML and CUDA

static void sectionNvml() {
    auto lib = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!lib) {
        printf("no libnvidia-ml.so.1: %s\n", dlerror());
        return;
    }
    auto f = [&](const char* n) { return dlsym(lib, n); };
    void* d = nullptr;
    struct {
        u64 total, free, used;
    } one = {};
    struct {
        unsigned version;
        u64 total, reserved, free, used;
    } two = {};
    auto initialise = reinterpret_cast<int (*)()>(f("nvmlInit_v2"));
    auto handle = reinterpret_cast<int (*)(unsigned, void**)>(f("nvmlDeviceGetHandleByIndex_v2"));
    auto info = reinterpret_cast<int (*)(void*, void*)>(f("nvmlDeviceGetMemoryInfo"));
    auto info2 = reinterpret_cast<int (*)(void*, void*)>(f("nvmlDeviceGetMemoryInfo_v2"));
    auto uuid = reinterpret_cast<int (*)(void*, char*, unsigned)>(f("nvmlDeviceGetUUID"));
    auto byUuid = reinterpret_cast<int (*)(const char*, void**)>(f("nvmlDeviceGetHandleByUUID"));
    auto bar1 = reinterpret_cast<int (*)(void*, void*)>(f("nvmlDeviceGetBAR1MemoryInfo"));
    if (!initialise || !handle || !info || !info2 || !uuid) {
        printf("NVML lacks a function\n");
        return;
    }
    int ready = initialise(), found = handle(0, &d); // in this order
    printf("nvmlInit %d, handle %d\n", ready, found);
    auto show = [&](const char* when) {
        two.version = unsigned(sizeof two) | 2 << 24;
        int a = info(d, &one), b = info2(d, &two);
        printf("%s\n  v1: %d total %llu free %llu used %llu; free + used is total %+lld\n", when, a, one.total, one.free,
               one.used, (long long)(one.free + one.used - one.total));
        printf("  v2: %d version %x total %llu reserved %llu free %llu used %llu; the three are total %+lld\n", b,
               two.version, two.total, two.reserved, two.free, two.used,
               (long long)(two.free + two.used + two.reserved - two.total));
        size_t free = 0, total = 0, whole = 0;
        CUresult e = cuMemGetInfo(&free, &total), g = cuDeviceTotalMem(&whole, 0);
        printf("  cuMemGetInfo %d free %zu total %zu; cuDeviceTotalMem %d %zu\n", e, free, total, g, whole);
        printf("  v1 total - CUDA total %lld; v1 free - CUDA free %lld; v2 reserved %lld\n",
               (long long)(one.total - total), (long long)(one.free - free), (long long)two.reserved);
    };
    show("before cuInit");
    MUST(cuInit(0));
    show("after cuInit");
    init();
    show("with a context");
    CUdeviceptr p;
    MUST(cuMemAlloc(&p, GiB));
    show("after cuMemAlloc of 1 GiB");
    MUST(cuMemFree(p));
    Range v("V64 V64"), h("H64 H64");
    show("after V128 and H128");
    cudaDeviceProp prop;
    MUSTRT(cudaGetDeviceProperties(&prop, 0));
    printf("totalGlobalMem %zu\n", prop.totalGlobalMem);
    u64 bar[3] = {};
    if (bar1) printf("BAR1: %d total %llu free %llu used %llu\n", bar1(d, bar), bar[0], bar[1], bar[2]);
    char textual[96] = "";
    int e = uuid(d, textual, sizeof textual);
    CUuuid a = {}, b = {};
    CUresult r1 = cuDeviceGetUuid(&a, device);
    auto v1 = symbol<CUresult (*)(CUuuid*, CUdevice)>("cuDeviceGetUuid");
    CUresult r2 = v1 ? v1(&b, device) : CUDA_ERROR_NOT_FOUND;
    auto hex = [](const CUuuid& u) {
        string s;
        char x[4];
        for (unsigned char c : u.bytes) snprintf(x, sizeof x, "%02x", c), s += x;
        return s;
    };
    printf("nvmlDeviceGetUUID %d %s\ncuDeviceGetUuid as compiled %d %s\ncuDeviceGetUuid (v1)        %d %s\n", e, textual, r1,
           hex(a).c_str(), r2, hex(b).c_str());
    string digits;
    for (const char* c = strchr(textual, '-'); c && *c; c++)
        if (*c != '-') digits += *c;
    printf("bytes of NVML's text equal CUDA's: %s\n", digits == hex(a) ? "yes" : "NO");
    void* again = nullptr;
    if (byUuid) {
        e = byUuid(textual, &again);
        printf("nvmlDeviceGetHandleByUUID %d, the same handle: %s\n", e, again == d ? "yes" : "no");
    }
    struct {
        const char* name;
        CUdevice_attribute a;
    } attributes[] = {{"VMM", CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED},
                      {"HOST_NUMA_VMM", CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED},
                      {"HOST_NUMA_ID", CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID},
                      {"RDMA_WITH_VMM", CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED},
                      {"PAGEABLE_MEMORY_ACCESS", CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS},
                      {"GPU_OVERLAP", CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT}};
    for (auto& x : attributes) {
        int value = -1;
        CUresult code = cuDeviceGetAttribute(&value, x.a, device);
        printf("%s %d (%d)  ", x.name, value, code);
    }
    int version = 0;
    cuDriverGetVersion(&version);
    printf("\ndriver API %d\n", version);
    // With RDMA asked for: does creation still work, and what does the pointer say?
    auto pr = ::prop(false);
    pr.allocFlags.gpuDirectRDMACapable = 1;
    CUmemGenericAllocationHandle handle2 = 0;
    printf("cuMemCreate with gpuDirectRDMACapable: %d\n", cuMemCreate(&handle2, 2 * MiB, &pr, 0));
}

// (xiv) The seam between VRAM and host memory

static void sectionSeam() {
    init();
    long wrong = 0, done = 0;
    for (const char* layout : {"V2 H2", "H2 V2", "V2 H2 V2 H2"}) {
        Range r(layout), w(layout);
        vector<uint8_t> model(r.size), image(r.size), back(r.size);
        for (size_t i = 0; i < r.size; i++) model[i] = uint8_t((i * 2654435761u) >> 15);
        void* pinned;
        MUST(cuMemHostAlloc(&pinned, r.size, 0));
        auto pin = (uint8_t*)pinned;
        MUST(cuMemcpyHtoD(r.p, model.data(), r.size));
        MUST(cuMemcpyDtoD(w.p, r.p, r.size));
        image = model;
        CUstream s = makeStream(false);
        unsigned seed = 12345;
        auto random = [&](size_t n) { return (seed = seed * 1664525u + 1013904223u, size_t(seed >> 4) % n); };
        auto check = [&](const char* what, size_t from, size_t n, CUresult e) {
            e = e ?: cuCtxSynchronize();
            size_t lo = from > 64 ? from - 64 : 0, hi = std::min(w.size, from + n + 64);
            e = e ?: cuMemcpyDtoH(back.data() + lo, w.p + lo, hi - lo);
            done++;
            if (e || memcmp(back.data() + lo, image.data() + lo, hi - lo))
                if (wrong++ < 10) printf("WRONG: %s, layout %s, at %zu, %zu bytes, code %d\n", what, layout, from, n, e);
        };
        for (int i = 0; i < 400; i++) {
            size_t n = 1 + (i < 200 ? random(67) : random(9001));
            size_t edge = 2 * MiB * (1 + random(r.size / (2 * MiB) - 1));
            size_t to = edge - std::min(random(n + 1), edge), from = random(r.size - n);
            uint8_t byte = uint8_t(random(256));
            switch (i % 8) {
                case 0: memcpy(&image[to], &model[from], n); check("HtoD", to, n, cuMemcpyHtoD(w.p + to, &model[from], n)); break;
                case 1:
                    memcpy(pin, &model[from], n);
                    memcpy(&image[to], pin, n);
                    check("HtoDAsync pinned", to, n, cuMemcpyHtoDAsync(w.p + to, pin, n, s));
                    break;
                case 2: memcpy(&image[to], &model[from], n); check("DtoD", to, n, cuMemcpyDtoD(w.p + to, r.p + from, n)); break;
                case 3: memcpy(&image[to], &model[from], n); check("DtoDAsync", to, n, cuMemcpyDtoDAsync(w.p + to, r.p + from, n, s)); break;
                case 4: memset(&image[to], byte, n); check("memsetD8", to, n, cuMemsetD8(w.p + to, byte, n)); break;
                case 5: memset(&image[to], byte, n); check("memsetD8Async", to, n, cuMemsetD8Async(w.p + to, byte, n, s)); break;
                case 6: {
                    // Rows that lie on both sides, and rows that are cut by the edge.
                    size_t rows = 5, pitch = n + 13;
                    if (to + rows * pitch > w.size || from + rows * pitch > r.size) break;
                    CUDA_MEMCPY2D c = {};
                    c.srcMemoryType = c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
                    c.srcDevice = r.p + from, c.dstDevice = w.p + to, c.srcPitch = c.dstPitch = pitch;
                    c.WidthInBytes = n, c.Height = rows;
                    for (size_t k = 0; k < rows; k++) memcpy(&image[to + k * pitch], &model[from + k * pitch], n);
                    check("2DUnaligned", to, rows * pitch, cuMemcpy2DUnaligned(&c));
                    break;
                }
                case 7: memcpy(&image[to], &model[from], n); check("cuMemcpy", to, n, cuMemcpy(w.p + to, r.p + from, n)); break;
            }
        }
        CUresult e = cuMemcpyDtoH(pinned, w.p, w.size);
        if (e || memcmp(pinned, image.data(), w.size)) wrong++, printf("WRONG: the whole of layout %s, code %d\n", layout, e);
    }
    printf("%ld copies and memsets of 1 to 9001 bytes over seams, %ld wrong\n", done, wrong);
}

int main(int argc, char** argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    struct {
        const char* name;
        void (*run)();
    } sections[] = {{"span", sectionSpan}, {"attrs", sectionAttrs}, {"range", sectionRange}, {"pitch", sectionPitch},
                    {"capture", sectionCapture}, {"whilecapturing", sectionWhileCapturing}, {"context", sectionContext},
                    {"contextown", sectionContextOwn}, {"errors", sectionErrors}, {"nulls", sectionNulls},
                    {"cost", sectionCost}, {"sync", sectionSync}, {"synccapture", sectionSyncCapture},
                    {"atomics", sectionAtomics}, {"nvml", sectionNvml}, {"seam", sectionSeam}};
    if (argc < 2) {
        for (auto& s : sections) printf("%s\n", s.name);
        return 0;
    }
    for (auto& s : sections)
        if (!strcmp(s.name, argv[1])) {
            s.run();
            return 0;
        }
    fprintf(stderr, "no section %s\n", argv[1]);
    return 2;
}
