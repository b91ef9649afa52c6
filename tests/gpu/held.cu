// Holds memory as it is told, one command per line on stdin, one answer per line on stdout.
//
//   alloc COUNT BYTES   allocates COUNT times        free N   frees the N oldest
//   info                what cudaMemGetInfo says: free and total bytes
//   fail COUNT          asks COUNT times for more than there can be
//   cycle COUNT BYTES   allocates and frees COUNT times; the answer has the seconds that took
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>

static void must(cudaError_t e, int line) {
    if (e == cudaSuccess) return;
    printf("FAILED %s, line %d\n", cudaGetErrorName(e), line);
    fflush(stdout);
    _Exit(1);
}
#define MUST(call) must((call), __LINE__)

int main() {
    std::deque<void*> held;
    char line[200], word[20];
    MUST(cudaFree(nullptr));
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long a = 0, b = 0;
        sscanf(line, "%19s %llu %llu", word, &a, &b);
        double seconds = 0;
        size_t free = 0, total = 0;
        if (!strcmp(word, "alloc")) {
            for (unsigned long long i = 0; i < a; i++) {
                void* p;
                MUST(cudaMalloc(&p, b));
                held.push_back(p);
            }
        } else if (!strcmp(word, "free")) {
            for (; a && !held.empty(); a--) {
                MUST(cudaFree(held.front()));
                held.pop_front();
            }
        } else if (!strcmp(word, "info")) {
            MUST(cudaMemGetInfo(&free, &total));
        } else if (!strcmp(word, "fail")) {
            for (unsigned long long i = 0; i < a; i++) {
                void* p;
                if (cudaMalloc(&p, 1ull << 50) != cudaErrorMemoryAllocation) MUST(cudaErrorUnknown);
                cudaGetLastError();
            }
        } else if (!strcmp(word, "cycle")) {
            auto start = std::chrono::steady_clock::now();
            for (unsigned long long i = 0; i < a; i++) {
                void* p;
                MUST(cudaMalloc(&p, b));
                MUST(cudaFree(p));
            }
            seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        } else {
            MUST(cudaErrorInvalidValue);
        }
        printf("done %.6f %zu %zu\n", seconds, free, total);
        fflush(stdout);
    }
    MUST(cudaDeviceSynchronize());
    printf("RESULT {\"ok\": true}\n");
}
