// A long random run: 8 threads and 16 streams allocate (plain, stream-ordered, mapped by themselves; large and small),
// fill, copy, set, capture, free; every byte is compared on the GPU with what the host says it should be.
//
//   stress --total MIB [--seconds S] [--seed N] [--threads N] [--round S] [--linger S]
//
// `total` is what all threads hold together: four times the VRAM limit, say. First all that can be done is done by every
// thread, graphs with memory of their own included, and a short random round; then come the rounds. At the end of each
// everything is freed, and device memory and the process's own memory must be what they were after the warm-up. Between
// its phases it lingers, so that one can look at it from outside while it holds nothing; when, it prints, on one line:
//
//   phase NAME  BEGIN and END in UNIX time  MiB: free on the device, resident, kept for graphs, kept by the pool
//
// `context`: nothing was done yet. `warm`: trimmed after the warm-up, the base of comparison. `freed`: after the last round,
// all is freed, nothing trimmed. `trimmed`: graphs' memory and the pool as well. `ended`: the streams are gone.
// Plain CUDA, nothing of greenboost in it. The last line is `RESULT {json}`. Linked to libcuda.
#include <malloc.h>
#include <unistd.h>

#include <fstream>

#include "stress_worker.cuh"

struct Figures {
    double free, resident, graphs, pool;
};

static Figures figures() {
    size_t free = 0, total = 0;
    u64 graphs = 0, reserved = 0;
    long pages = 0;
    cudaMemPool_t pool;
    MUST(cudaMemGetInfo(&free, &total));
    MUST(cudaDeviceGetGraphMemAttribute(0, cudaGraphMemAttrReservedMemCurrent, &graphs));
    MUST(cudaDeviceGetDefaultMemPool(&pool, 0));
    MUST(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved));
    std::ifstream("/proc/self/statm") >> pages >> pages;
    return {double(free) / MiB, double(pages) * sysconf(_SC_PAGESIZE) / MiB, double(graphs) / MiB, double(reserved) / MiB};
}

static void trim() {
    cudaMemPool_t pool;
    MUST(cudaDeviceSynchronize());
    MUST(cudaDeviceGetDefaultMemPool(&pool, 0));
    MUST(cudaMemPoolTrimTo(pool, 0));
    MUST(cudaDeviceGraphMemTrim(0));
    malloc_trim(0);
}

struct Phase {
    const char* name;
    double begin, end;
    Figures figures;
};

/// Lets others look at the process, and tells what they may see.
static Phase phase(const char* name, double linger) {
    auto unix_ = [] { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); };
    Phase p = {name, unix_(), 0, figures()};
    usleep(useconds_t(linger * 1e6));
    p.end = unix_();
    auto& f = p.figures;
    printf("phase %s %.3f %.3f %.1f %.1f %.1f %.1f\n", name, p.begin, p.end, f.free, f.resident, f.graphs, f.pool);
    return p;
}

static std::string broken;

/// Each worker in a thread of its own; false when one has failed.
template <class F>
static bool together(std::vector<std::unique_ptr<Worker>>& workers, F work) {
    std::vector<std::thread> all;
    for (auto& w : workers)
        all.emplace_back([&] {
            try {
                work(*w);
            } catch (const std::exception& e) {
                stopped = true;
                std::lock_guard<std::mutex> guard(say);
                if (broken.empty()) broken = e.what();
                printf("FAILED: %s\n", e.what());
            }
        });
    for (auto& t : all) t.join();
    return !stopped;
}

int main(int argc, char** argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    double seconds = 20, roundSeconds = 0, linger = 0;
    size_t total = 1024 * MiB;
    u64 seed = 1;
    int threads = 8, rounds = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        std::string a = argv[i];
        if (a == "--total") total = strtoull(argv[i + 1], nullptr, 0) * MiB;
        else if (a == "--seconds") seconds = atof(argv[i + 1]);
        else if (a == "--seed") seed = strtoull(argv[i + 1], nullptr, 0);
        else if (a == "--threads") threads = atoi(argv[i + 1]);
        else if (a == "--linger") linger = atof(argv[i + 1]);
        else if (a == "--round") roundSeconds = atof(argv[i + 1]);
        else {
            fprintf(stderr, "unknown argument %s\n", a.c_str());
            return 2;
        }
    }
    if (roundSeconds <= 0) roundSeconds = std::max(2.0, seconds / 6);
    std::vector<Phase> phases;
    try {
        printf("pid %d\n", getpid());
        MUST(cudaSetDevice(0));
        MUST(cudaFree(nullptr));
        phases.push_back(phase("context", linger));
        void* p;
        MUST(cudaMalloc(&p, COMMON));
        common = static_cast<u64*>(p);
        commonModel = {seed, {}, 0, 0};
        fill(common, COMMON, seed);
        std::vector<std::unique_ptr<Worker>> workers;
        for (int t = 0; t < threads; t++) workers.push_back(std::make_unique<Worker>(mix(seed * 1000 + t), total / threads, t));
        double warmed = now() + std::min(4.0, seconds / 8);
        if (together(workers, [&](Worker& w) { w.warm(); }) && together(workers, [&](Worker& w) { w.round(warmed); })) {
            trim();
            phases.push_back(phase("warm", linger));
        }
        double begin = now();
        while (!stopped && now() - begin < seconds - 1) {
            double until = std::min(now() + roundSeconds, begin + seconds);
            if (!together(workers, [&](Worker& w) { w.round(until); })) break;
            MUST(cudaDeviceSynchronize());
            auto f = figures();
            printf("round %d, %.0f s: %llu operations, %llu allocations, %llu out of memory, %llu wrong; "
                   "%.1f MiB free, %.1f MiB resident\n",
                   ++rounds, now() - begin, operations.load(), allocations.load(), outOfMemory.load(), mismatches.load(),
                   f.free, f.resident);
        }
        if (!stopped) {
            phases.push_back(phase("freed", linger));
            std::vector<u64> words(COMMON / 8);
            MUST(cudaMemcpy(words.data(), common, COMMON, cudaMemcpyDeviceToHost));
            for (u64 i = 0; i < words.size(); i++)
                if (words[i] != mix(seed + i)) {
                    wrong("the block that all threads read has changed, word " + std::to_string(i));
                    break;
                }
            words = {};
            trim();
            phases.push_back(phase("trimmed", linger));
            workers.clear();
            MUST(cudaFree(common));
            trim();
            phases.push_back(phase("ended", linger));
        }
    } catch (const std::exception& e) {
        printf("FAILED: %s\n", e.what());
        broken = e.what();
    }
    double leaked = 0, grown = 0;
    if (phases.size() == 5) {
        leaked = phases[1].figures.free - phases[3].figures.free;
        grown = phases[3].figures.resident - phases[1].figures.resident;
    }
    bool ok = broken.empty() && !mismatches && rounds;
    printf("RESULT {\"ok\": %s, \"problems\": [%s], \"mismatches\": %llu, \"operations\": %llu, \"allocations\": %llu, "
           "\"launches\": %llu, \"graphs\": %llu, \"moved_gib\": %.2f, \"out_of_memory\": %llu, \"rounds\": %d, "
           "\"leaked_mib\": %.1f, \"grown_mib\": %.1f, \"phases\": {",
           ok ? "true" : "false", broken.empty() ? "" : jsonText(broken).c_str(), mismatches.load(), operations.load(),
           allocations.load(), launches.load(), graphs.load(), double(moved.load()) / (1024.0 * MiB), outOfMemory.load(),
           rounds, leaked, grown);
    for (auto& p : phases)
        printf("%s\"%s\": {\"begin\": %.3f, \"end\": %.3f, \"free\": %.1f, \"resident\": %.1f, \"graphs\": %.1f, \"pool\": %.1f}",
               &p == &phases[0] ? "" : ", ", p.name, p.begin, p.end, p.figures.free, p.figures.resident, p.figures.graphs,
               p.figures.pool);
    printf("}}\n");
    return ok ? 0 : 1;
}
