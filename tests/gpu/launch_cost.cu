// What a kernel launch costs the calling thread: an empty kernel with 8 pointers and 4 numbers, by cuLaunchKernel.
//
//   launch_cost [--ballast MIB] [--launches N]
//
// Each call is timed alone by the time-stamp counter; queues are emptied every 64 launches, so that no call waits for room
// in one. Two ways alternate in each batch: the function that the program is linked to, which a preloaded library may have
// replaced, and the driver's own, found in the symbol table of the loaded libcuda. Their difference is what such a library
// adds, free of the luck of a process (addresses, clocks); without one it is the error of the measurement. One thread, then
// 8 threads with a stream each. The pointers lead to allocations of 4 MiB; those of the second half (`far`) are made after
// the ballast: under a VRAM limit below the ballast they lie outside VRAM.
// The last line is `RESULT {json}`; figures are nanoseconds of the median call (and of the 90th in a hundred).
#include <cuda.h>
#include <cuda_runtime.h>
#include <elf.h>
#include <link.h>
#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

static void must(int e, const char* what, int line) {
    if (!e) return;
    printf("FAILED: %s: %d, line %d\n", what, e, line);
    fflush(stdout);
    _Exit(1);
}
#define MUST(call) must(int(call), #call, __LINE__)

__global__ void nothing(float*, float*, float*, float*, const float*, const float*, int*, int*, int, int, float, long) {}

using Launch = CUresult (*)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**);

/// The address of a function in the dynamic symbol table of a loaded library, whatever was preloaded before it.
static void* own(const char* library, const char* name) {
    struct Wish {
        const char *library, *name;
        void* found;
    } wish = {library, name, nullptr};
    dl_iterate_phdr([](dl_phdr_info* info, size_t, void* data) {
        auto& w = *static_cast<Wish*>(data);
        const char* file = strrchr(info->dlpi_name, '/');
        if (strncmp(file ? file + 1 : info->dlpi_name, w.library, strlen(w.library))) return 0;
        const ElfW(Dyn)* dynamic = nullptr;
        for (int i = 0; i < info->dlpi_phnum; i++)
            if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
                dynamic = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
        const ElfW(Sym)* symbols = nullptr;
        const char* names = nullptr;
        const uint32_t* hash = nullptr;
        for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
            // glibc has added the load address already.
            if (dynamic->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym)*>(dynamic->d_un.d_ptr);
            if (dynamic->d_tag == DT_STRTAB) names = reinterpret_cast<const char*>(dynamic->d_un.d_ptr);
            if (dynamic->d_tag == DT_GNU_HASH) hash = reinterpret_cast<const uint32_t*>(dynamic->d_un.d_ptr);
        }
        if (!symbols || !names || !hash) return 0;
        // buckets, first hashed symbol, words of the filter, shift; then the filter, the buckets, the chains.
        uint32_t buckets = hash[0], first = hash[1];
        const uint32_t* bucket = hash + 4 + hash[2] * (sizeof(ElfW(Addr)) / 4);
        const uint32_t* chain = bucket + buckets;
        for (uint32_t b = 0; b < buckets; b++)
            for (uint32_t i = bucket[b]; i >= first; i++) {
                if (!strcmp(names + symbols[i].st_name, w.name) && symbols[i].st_shndx != SHN_UNDEF)
                    w.found = reinterpret_cast<void*>(info->dlpi_addr + symbols[i].st_value);
                if (chain[i - first] & 1) break;
            }
        return w.found ? 1 : 0;
    }, &wish);
    return wish.found;
}

constexpr int WAYS = 2, BATCH = 64, POINTERS = 8;
static const char* const WAY[WAYS] = {"linked", "own"};

struct Times {
    std::vector<unsigned> ticks[WAYS];
};

static double perTick;

static double nanoseconds(std::vector<unsigned> all, double share) {
    if (all.empty()) return 0;
    auto at = all.begin() + size_t(double(all.size() - 1) * share);
    std::nth_element(all.begin(), at, all.end());
    return *at * perTick;
}

/// Launches by one thread: batches in turn, each way first as often as second.
static void work(CUfunction function, CUstream stream, const Launch* ways, void** pointers, int launches, Times& times) {
    int a = 1, b = 2;
    float c = 3;
    long d = 4;
    void* arguments[POINTERS + 4];
    for (int i = 0; i < POINTERS; i++) arguments[i] = &pointers[i];
    arguments[8] = &a, arguments[9] = &b, arguments[10] = &c, arguments[11] = &d;
    for (auto& t : times.ticks) t.reserve(size_t(launches));
    for (int done = -BATCH * 8, turn = 0; done < launches; done += BATCH, turn++)
        for (int k = 0; k < WAYS; k++) {
            int way = (turn + k) % WAYS;
            for (int i = 0; i < BATCH; i++) {
                unsigned aux;
                unsigned long long begin = __rdtscp(&aux);
                _mm_lfence();
                CUresult e = ways[way](function, 1, 1, 1, 32, 1, 1, 0, stream, arguments, nullptr);
                unsigned long long end = __rdtscp(&aux);
                MUST(e);
                if (done >= 0) times.ticks[way].push_back(unsigned(std::min(end - begin, 0xFFFFFFFFull)));
            }
            MUST(cuStreamSynchronize(stream));
        }
}

static std::string figures(const Times& t, const char* name) {
    char text[400];
    double median[WAYS], worse[WAYS];
    for (int w = 0; w < WAYS; w++) median[w] = nanoseconds(t.ticks[w], 0.5), worse[w] = nanoseconds(t.ticks[w], 0.9);
    printf("%-22s linked %7.0f ns (90 %%: %7.0f), own %7.0f (%7.0f): %+.0f\n", name, median[0], worse[0], median[1], worse[1],
           median[0] - median[1]);
    snprintf(text, sizeof text, "\"%s\": {\"linked\": %.1f, \"own\": %.1f, \"added\": %.1f, \"linked_90\": %.1f, \"own_90\": %.1f}",
             name, median[0], median[1], median[0] - median[1], worse[0], worse[1]);
    return text;
}

int main(int argc, char** argv) {
    size_t ballast = 0;
    int launches = 20000;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--ballast")) ballast = strtoull(argv[i + 1], nullptr, 0) << 20;
        else if (!strcmp(argv[i], "--launches")) launches = atoi(argv[i + 1]);
        else return 2;
    }
    MUST(cudaFree(nullptr));
    CUcontext context;
    MUST(cuCtxGetCurrent(&context));
    cudaFunction_t function;
    MUST(cudaGetFuncBySymbol(&function, reinterpret_cast<const void*>(nothing)));
    // Found in the relocated program: what it is linked to. As other programs do it, by the dynamic loader.
    Launch ways[WAYS] = {cuLaunchKernel, reinterpret_cast<Launch>(own("libcuda.so", "cuLaunchKernel"))};
    if (!ways[1]) {
        printf("FAILED: no cuLaunchKernel in libcuda's symbol table\n");
        return 1;
    }
    void *near[POINTERS], *far[POINTERS], *heavy = nullptr;
    auto allocate = [](void** all) {
        for (int i = 0; i < POINTERS; i++) {
            MUST(cudaMalloc(&all[i], 4 << 20));
            MUST(cudaMemset(all[i], 0, 4 << 20));
        }
    };
    allocate(near);
    if (ballast) {
        MUST(cudaMalloc(&heavy, ballast));
        MUST(cudaMemset(heavy, 0, ballast));
    }
    allocate(far);
    MUST(cudaDeviceSynchronize());

    using Clock = std::chrono::steady_clock;
    unsigned aux;
    auto t = Clock::now();
    unsigned long long ticks = __rdtscp(&aux);
    while (Clock::now() - t < std::chrono::milliseconds(50)) {}
    perTick = std::chrono::duration<double, std::nano>(Clock::now() - t).count() / double(__rdtscp(&aux) - ticks);

    std::string all;
    for (int place = 0; place < 2; place++) {
        void** pointers = place ? far : near;
        std::string name = place ? "far" : "near";
        CUstream stream;
        MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        Times one;
        work(function, stream, ways, pointers, launches, one);
        all += figures(one, (name + ", 1 thread").c_str()) + ", ";
        MUST(cuStreamDestroy(stream));

        constexpr int THREADS = 8;
        Times times[THREADS], sum;
        std::barrier<> together(THREADS);
        std::vector<std::thread> threads;
        for (int k = 0; k < THREADS; k++)
            threads.emplace_back([&, k] {
                MUST(cuCtxSetCurrent(context));
                CUstream mine;
                MUST(cuStreamCreate(&mine, CU_STREAM_NON_BLOCKING));
                together.arrive_and_wait();
                work(function, mine, ways, pointers, launches / 4, times[k]);
                MUST(cuStreamDestroy(mine));
            });
        for (auto& thread : threads) thread.join();
        for (auto& one : times)
            for (int w = 0; w < WAYS; w++) sum.ticks[w].insert(sum.ticks[w].end(), one.ticks[w].begin(), one.ticks[w].end());
        all += figures(sum, (name + ", 8 threads").c_str()) + (place ? "" : ", ");
    }
    printf("RESULT {\"ok\": true, \"replaced\": %s, %s}\n", ways[0] == ways[1] ? "false" : "true", all.c_str());
}
