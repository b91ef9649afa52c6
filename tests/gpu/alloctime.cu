// What allocating costs: cudaMalloc and cudaFree of several sizes, each timed alone. The last line is `RESULT {json}`,
// all figures in microseconds (medians).
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

static double now() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void must(cudaError_t e, int line) {
    if (e == cudaSuccess) return;
    printf("FAILED: %s, line %d\n", cudaGetErrorName(e), line);
    fflush(stdout);
    _Exit(1);
}
#define MUST(call) must((call), __LINE__)

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty() ? 0 : v[v.size() / 2];
}

static double timed(auto&& f) {
    double t = now();
    f();
    return now() - t;
}

struct Cost {
    double fresh, freshWorst, release, cycleAlloc, cycleFree, cycle;
};

/// `fresh`: `many` without freeing one in between; `cycle`: one is allocated and freed again and again.
static Cost cost(size_t bytes, int many, int cycles) {
    std::vector<double> fresh, release, alloc, free, both;
    std::vector<void*> held;
    for (int i = 0; i < many; i++) {
        void* p;
        fresh.push_back(timed([&] { MUST(cudaMalloc(&p, bytes)); }));
        held.push_back(p);
    }
    for (void* p : held) release.push_back(timed([&] { MUST(cudaFree(p)); }));
    for (int i = 0; i < cycles; i++) {
        void* p;
        alloc.push_back(timed([&] { MUST(cudaMalloc(&p, bytes)); }));
        free.push_back(timed([&] { MUST(cudaFree(p)); }));
        both.push_back(alloc.back() + free.back());
    }
    return {median(fresh), *std::max_element(fresh.begin(), fresh.end()), median(release), median(alloc), median(free),
            median(both)};
}

int main() {
    double t = now();
    MUST(cudaFree(nullptr));
    double start = now() - t;
    struct {
        const char* name;
        size_t bytes;
        int many, cycles;
        Cost c;
    } rows[] = {{"64M", size_t(64) << 20, 32, 40, {}},
                {"1M", size_t(1) << 20, 64, 40, {}},
                {"20M", size_t(20) << 20, 32, 40, {}},
                {"1G", size_t(1) << 30, 4, 10, {}}};
    printf("CUDA start %.0f us\n", start);
    for (auto& r : rows) {
        r.c = cost(r.bytes, r.many, r.cycles);
        printf("%4s: fresh %.1f (worst %.1f), release %.1f; cycle %.1f + %.1f us\n", r.name, r.c.fresh, r.c.freshWorst,
               r.c.release, r.c.cycleAlloc, r.c.cycleFree);
    }
    printf("RESULT {\"ok\": true, \"start\": %.1f", start);
    for (auto& r : rows)
        printf(", \"%s\": {\"fresh\": %.2f, \"release\": %.2f, \"alloc\": %.2f, \"free\": %.2f, \"cycle\": %.2f}", r.name,
               r.c.fresh, r.c.release, r.c.cycleAlloc, r.c.cycleFree, r.c.cycle);
    printf("}\n");
}
