// What the sample programs share: sections that are chosen by name, errors, patterns, and one digest of all results.
//
//   PROGRAM [SECTION...]      all of them without an argument
//
// A section computes, compares what it can with the host's own model, and adds every result to its digest; the digest of
// two runs must be the same whatever runs beneath. The last line is `RESULT {json}`; the exit status is 0 when no section
// found anything wrong. Plain CUDA, nothing of greenboost in it.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

using u64 = unsigned long long;
using u32 = unsigned;

constexpr size_t KiB = 1 << 10, MiB = 1 << 20;
constexpr int BLOCKS = 264, THREADS = 256;

/// This driver or device cannot do it, and why.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void check(cudaError_t e, const char* what, const char* file, int line) {
    if (e == cudaSuccess) return;
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(e) + " (" + std::to_string(int(e)) + "), " +
                             file + ":" + std::to_string(line));
}
#define MUST(call) check((call), #call, __FILE_NAME__, __LINE__)

__host__ __device__ inline u64 mix(u64 x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

__device__ inline u64 firstIndex() { return u64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline u64 strideOfGrid() { return u64(gridDim.x) * blockDim.x; }

// p[i] = mix(seed + i)
static __global__ void fillKernel(u64* p, u64 n, u64 seed) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) p[i] = mix(seed + i);
}

// p[i] = mix(p[i] + v)
static __global__ void stirKernel(u64* p, u64 n, u64 v) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) p[i] = mix(p[i] + v);
}

// *out += mix(p[i] ^ mix(i)) over all words: every bit and every place counts, the order of additions does not.
static __global__ void foldKernel(const u64* p, u64 n, u64* out) {
    u64 sum = 0;
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) sum += mix(p[i] ^ mix(i));
    for (int k = 16; k; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
    if (threadIdx.x % 32 == 0) atomicAdd(out, sum);
}

// Keeps the stream busy for that long.
static __global__ void spinKernel(u64 nanoseconds) {
    u64 begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    do {
        __nanosleep(1000);
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - begin < nanoseconds);
}

inline void launched() { MUST(cudaGetLastError()); }

inline void fill(void* p, size_t bytes, u64 seed, cudaStream_t s = 0) {
    fillKernel<<<BLOCKS, THREADS, 0, s>>>(static_cast<u64*>(p), bytes / 8, seed);
    launched();
}

inline void stir(void* p, size_t bytes, u64 v, cudaStream_t s = 0) {
    stirKernel<<<BLOCKS, THREADS, 0, s>>>(static_cast<u64*>(p), bytes / 8, v);
    launched();
}

inline void spin(double ms, cudaStream_t s = 0) {
    spinKernel<<<1, 1, 0, s>>>(u64(ms * 1e6));
    launched();
}

/// Folds device-accessible words; waits for the stream.
inline u64 fold(const void* p, size_t bytes, cudaStream_t s = 0) {
    // Pinned memory: a digest needs none of the memory that is under test.
    static thread_local u64* sum = nullptr;
    if (!sum) MUST(cudaHostAlloc(reinterpret_cast<void**>(&sum), 8, cudaHostAllocPortable | cudaHostAllocMapped));
    *sum = 0;
    foldKernel<<<BLOCKS, THREADS, 0, s>>>(static_cast<const u64*>(p), bytes / 8, sum);
    launched();
    MUST(cudaStreamSynchronize(s));
    return *sum;
}

/// The same of words that the host knows.
template <class F>
u64 foldHost(size_t bytes, F word) {
    u64 sum = 0;
    for (u64 i = 0; i < bytes / 8; i++) sum += mix(word(i) ^ mix(i));
    return sum;
}

inline u64 foldHost(const void* p, size_t bytes) {
    auto* words = static_cast<const u64*>(p);
    return foldHost(bytes, [&](u64 i) { return words[i]; });
}

class Section {
public:
    std::string name;
    u64 digest = 0x6A09E667F3BCC908ull;
    std::vector<std::string> problems;

    /// A result: it counts, in this order.
    void take(u64 value) { digest = mix(digest ^ value) * 3 + value; }
    void take(const void* p, size_t bytes, cudaStream_t s = 0) { take(fold(p, bytes, s)); }

    void expect(bool right, const std::string& what) {
        if (!right && problems.size() < 10) problems.push_back(what);
        if (!right) printf("FAILED: %s: %s\n", name.c_str(), what.c_str());
    }

    /// Words that must be what the host says they are.
    template <class F>
    void words(const void* p, size_t bytes, F word, const std::string& what, cudaStream_t s = 0) {
        u64 is = fold(p, bytes, s);
        take(is);
        expect(is == foldHost(bytes, word), what + ": the words are not what they should be");
    }

    /// Words `mix(seed + i)`.
    void filled(const void* p, size_t bytes, u64 seed, const std::string& what, cudaStream_t s = 0) {
        words(p, bytes, [=](u64 i) { return mix(seed + i); }, what, s);
    }

    /// How a call of the runtime ended: part of what a program can see.
    void outcome(cudaError_t e) {
        take(u64(e));
        (void)cudaGetLastError();
    }
};

/// Memory that takes up VRAM while a section runs, and must be as it was in the end. Under a VRAM limit of its size, what
/// comes later lies outside.
class Ballast {
public:
    Ballast(Section& s, size_t mib, u64 seed = 77) : section(s), bytes(mib * MiB), seed(seed) {
        MUST(cudaMalloc(&at, bytes));
        fill(at, bytes, seed);
    }
    /// Compares and frees.
    void done() {
        MUST(cudaDeviceSynchronize());
        section.filled(at, bytes, seed, "the memory beside it");
        MUST(cudaFree(at));
        at = nullptr;
    }
    void* at = nullptr;

private:
    Section& section;
    size_t bytes;
    u64 seed;
};

struct Entry {
    const char* name;
    std::function<void(Section&)> run;
};

inline std::string jsonText(const std::string& text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out + "\"";
}

/// Runs the sections that the arguments name.
inline int sections(const std::vector<Entry>& table, int argc, char** argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    std::string digests, skipped, problems;
    for (auto& entry : table) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted |= !strcmp(argv[i], entry.name);
        if (!wanted) continue;
        Section s;
        s.name = entry.name;
        printf("%s\n", entry.name);
        auto add = [&](std::string& list, const std::string& value) {
            list += (list.empty() ? "" : ", ") + jsonText(entry.name) + ": " + jsonText(value);
        };
        try {
            entry.run(s);
            MUST(cudaDeviceSynchronize());
        } catch (const Unsupported& e) {
            printf("SKIP %s: %s\n", entry.name, e.what());
            add(skipped, e.what());
            (void)cudaGetLastError();
            continue;
        } catch (const std::exception& e) {
            s.expect(false, e.what());
            (void)cudaGetLastError();
        }
        char hex[17];
        snprintf(hex, sizeof hex, "%016llx", s.digest);
        printf("DIGEST %s %s\n", entry.name, hex);
        add(digests, hex);
        for (auto& p : s.problems) problems += (problems.empty() ? "" : ", ") + jsonText(std::string(entry.name) + ": " + p);
    }
    printf("RESULT {\"ok\": %s, \"digests\": {%s}, \"skipped\": {%s}, \"problems\": [%s]}\n",
           problems.empty() ? "true" : "false", digests.c_str(), skipped.c_str(), problems.c_str());
    return problems.empty() ? 0 : 1;
}
