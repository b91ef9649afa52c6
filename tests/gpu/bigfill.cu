// Fills more memory than the card has and checks every byte of it, by kernel and by copies.
//
//   bigfill --total GiB [--pieces MIB,MIB,...] [--seed N]     pieces of mixed sizes, fill, verify, copy, free, reuse
//   bigfill --stream GiB                                      read rate of what lies outside VRAM against the DMA rate
//
// Plain CUDA runtime, nothing of greenboost in it: it is built with `-cudart static` and with `-cudart shared`.
// The last line is `RESULT {json}`; the exit status is 0 when every byte was right.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

using u64 = unsigned long long;

constexpr size_t KiB = 1 << 10, MiB = 1 << 20, GiB = 1 << 30;

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static long failures = 0;

static void fail(const std::string& what) {
    if (++failures <= 20) printf("FAILED: %s\n", what.c_str());
}

static void must(cudaError_t e, const char* what, int line) {
    if (e == cudaSuccess) return;
    printf("FAILED: %s: %s (%d), line %d\n", what, cudaGetErrorName(e), int(e), line);
    fflush(stdout);
    _Exit(1);
}
#define MUST(call) must((call), #call, __LINE__)

__host__ __device__ inline u64 splitmix64(u64 x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// Word i of a piece is splitmix64(seed + i); the bytes after the last whole word are the low bytes of the next one.

__global__ void fill(u64* p, u64 words, u64 first, u64 seed) {
    u64 stride = u64(gridDim.x) * blockDim.x, pairs = words / 2;
    u64 start = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    auto* wide = reinterpret_cast<ulonglong2*>(p);
    for (u64 i = start; i < pairs; i += stride) {
        u64 x = seed + first + 2 * i;
        wide[i] = make_ulonglong2(splitmix64(x), splitmix64(x + 1));
    }
    if (start == 0 && words % 2) p[words - 1] = splitmix64(seed + first + words - 1);
}

__global__ void fillTail(uint8_t* p, unsigned bytes, u64 word) {
    if (threadIdx.x < bytes) p[threadIdx.x] = uint8_t(word >> (8 * threadIdx.x));
}

struct Bad {
    u64 count, first;
};

__global__ void verify(const u64* p, u64 words, u64 first, u64 seed, Bad* bad) {
    u64 stride = u64(gridDim.x) * blockDim.x, pairs = words / 2;
    u64 start = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    auto* wide = reinterpret_cast<const ulonglong2*>(p);
    auto note = [&](u64 i) {
        atomicAdd(&bad->count, 1ull);
        atomicMin(&bad->first, i);
    };
    u64 i = start;
    for (; i + 3 * stride < pairs; i += 4 * stride) {
        ulonglong2 v[4];
        for (int k = 0; k < 4; k++) v[k] = wide[i + k * stride];
        for (int k = 0; k < 4; k++) {
            u64 at = 2 * (i + k * stride), x = seed + first + at;
            if (v[k].x != splitmix64(x)) note(at);
            if (v[k].y != splitmix64(x + 1)) note(at + 1);
        }
    }
    for (; i < pairs; i += stride) {
        ulonglong2 v = wide[i];
        u64 x = seed + first + 2 * i;
        if (v.x != splitmix64(x)) note(2 * i);
        if (v.y != splitmix64(x + 1)) note(2 * i + 1);
    }
    if (start == 0 && words % 2 && p[words - 1] != splitmix64(seed + first + words - 1)) note(words - 1);
}

__global__ void verifyTail(const uint8_t* p, unsigned bytes, u64 word, Bad* bad) {
    if (threadIdx.x < bytes && p[threadIdx.x] != uint8_t(word >> (8 * threadIdx.x))) atomicAdd(&bad->count, 1ull);
}

__global__ void readAll(const uint4* p, u64 n, unsigned* out) {
    u64 stride = u64(gridDim.x) * blockDim.x, i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    unsigned a = 0;
    for (; i + 3 * stride < n; i += 4 * stride) {
        uint4 v[4];
        for (int k = 0; k < 4; k++) v[k] = p[i + k * stride];
        for (int k = 0; k < 4; k++) a ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    for (; i < n; i += stride) a ^= p[i].x ^ p[i].y ^ p[i].z ^ p[i].w;
    if (a == 0x9E3779B9u) *out = a;
}

constexpr int BLOCKS = 1056, THREADS = 512;

struct Piece {
    uint8_t* at;
    size_t bytes;
    u64 seed;

    u64* words() const { return reinterpret_cast<u64*>(at); }
    size_t count() const { return bytes / 8; }
    unsigned tail() const { return unsigned(bytes % 8); }
    u64 word(size_t i) const { return splitmix64(seed + i); }
};

static Bad* badDevice;
static u64 seedNow;

static double timed(cudaStream_t stream, const std::string& what, auto&& work) {
    static cudaEvent_t a, b;
    if (!a) {
        MUST(cudaEventCreate(&a));
        MUST(cudaEventCreate(&b));
    }
    MUST(cudaEventRecord(a, stream));
    work();
    MUST(cudaGetLastError());
    MUST(cudaEventRecord(b, stream));
    cudaError_t e = cudaEventSynchronize(b);
    if (e != cudaSuccess) {
        printf("while: %s\n", what.c_str());
        must(e, what.c_str(), __LINE__);
    }
    float ms = 0;
    MUST(cudaEventElapsedTime(&ms, a, b));
    return ms / 1e3;
}

static double fillPiece(const Piece& p) {
    return timed(0, "fill", [&] {
        if (p.count()) fill<<<BLOCKS, THREADS>>>(p.words(), p.count(), 0, p.seed);
        if (p.tail()) fillTail<<<1, 8>>>(p.at + p.count() * 8, p.tail(), p.word(p.count()));
    });
}

static void fillRange(const Piece& p, size_t word, size_t words) {
    timed(0, "fill a range", [&] { fill<<<BLOCKS, THREADS>>>(p.words() + word, words, word, p.seed); });
}

/// Words [at, at + words) of `p` must be words [first, ...) of the sequence of `seed`.
static double verifyRange(const Piece& p, size_t at, size_t words, u64 first, u64 seed, const std::string& what) {
    Bad bad{0, ~0ull};
    MUST(cudaMemcpy(badDevice, &bad, sizeof bad, cudaMemcpyHostToDevice));
    double t = timed(0, what, [&] {
        if (words) verify<<<BLOCKS, THREADS>>>(p.words() + at, words, first, seed, badDevice);
        if (at + words == p.count() && p.tail() && seed == p.seed && first == at)
            verifyTail<<<1, 8>>>(p.at + p.count() * 8, p.tail(), p.word(p.count()), badDevice);
    });
    MUST(cudaMemcpy(&bad, badDevice, sizeof bad, cudaMemcpyDeviceToHost));
    if (bad.count)
        fail(what + ": " + std::to_string(bad.count) + " words wrong, the first at word " + std::to_string(bad.first) +
             " of " + std::to_string(words));
    return t;
}

static double verifyPiece(const Piece& p, const std::string& what) {
    return verifyRange(p, 0, p.count(), 0, p.seed, what);
}

/// Bytes [offset, offset + size) of the piece, copied to `host`, must be right.
static void compare(const Piece& p, size_t offset, const uint8_t* host, size_t size, const char* what) {
    for (size_t i = 0; i < size;) {
        size_t at = offset + i;
        u64 word = p.word(at / 8);
        size_t skip = at % 8, n = std::min<size_t>(8 - skip, size - i);
        if (memcmp(host + i, reinterpret_cast<uint8_t*>(&word) + skip, n)) {
            fail(std::string(what) + ": byte " + std::to_string(at) + " of a piece of " + std::to_string(p.bytes));
            return;
        }
        i += n;
    }
}

static size_t sample(const Piece& p, std::vector<uint8_t>& buffer) {
    std::vector<size_t> at = {0, p.bytes};
    for (size_t b = 64 * MiB; b < p.bytes; b += 64 * MiB) at.push_back(b);
    for (int i = 0; i < 8; i++) at.push_back(splitmix64(p.seed * 31 + i) % p.bytes);
    size_t bytes = 0;
    for (size_t middle : at) {
        size_t from = middle > 3001 ? middle - 3001 : 0, to = std::min(p.bytes, middle + 5003);
        if (to <= from) continue;
        MUST(cudaMemcpy(buffer.data(), p.at + from, to - from, cudaMemcpyDeviceToHost));
        compare(p, from, buffer.data(), to - from, "sample");
        bytes += to - from;
    }
    return bytes;
}

static void wholePiece(const Piece& p, uint8_t* pinned, size_t room) {
    for (size_t o = 0; o < p.bytes; o += room) {
        size_t n = std::min(room, p.bytes - o);
        MUST(cudaMemcpy(pinned, p.at + o, n, cudaMemcpyDeviceToHost));
        std::vector<std::thread> threads;
        size_t part = (n / 12 + 8) & ~size_t(7);
        for (size_t f = 0; f < n; f += part)
            threads.emplace_back([&, f] { compare(p, o + f, pinned + f, std::min(part, n - f), "whole copy"); });
        for (auto& t : threads) t.join();
    }
}

static Piece makePiece(size_t bytes) {
    Piece p{nullptr, bytes, splitmix64(++seedNow)};
    cudaError_t e = cudaMalloc(reinterpret_cast<void**>(&p.at), bytes);
    if (e != cudaSuccess) {
        size_t free = 0, total = 0;
        cudaMemGetInfo(&free, &total);
        printf("cudaMalloc of %zu bytes failed; free %.2f of %.2f GiB\n", bytes, double(free) / GiB, double(total) / GiB);
        must(e, "cudaMalloc", __LINE__);
    }
    return p;
}

/// Copies between two pieces in several forms, at odd places, verified by kernel; then both are as before.
static double copies(const Piece& a, const Piece& b, cudaStream_t stream) {
    size_t most = std::min({a.count(), b.count(), 256 * MiB / 8});
    if (most < 64) return 0;
    double rate = 0;
    for (int form = 0; form < 4; form++) {
        size_t n = (form ? most * (5 - form) / 5 : most) & ~size_t(1);
        size_t from = (a.count() - n) / 2 & ~size_t(1), to = (b.count() - n) / 3 & ~size_t(1);
        void *s = a.words() + from, *d = b.words() + to;
        std::string what = "device-to-device copy, form " + std::to_string(form);
        double t = timed(form == 1 ? stream : 0, what, [&] {
            switch (form) {
                case 0: MUST(cudaMemcpy(d, s, n * 8, cudaMemcpyDeviceToDevice)); break;
                case 1: MUST(cudaMemcpyAsync(d, s, n * 8, cudaMemcpyDeviceToDevice, stream)); break;
                case 2: MUST(cudaMemcpy(d, s, n * 8, cudaMemcpyDefault)); break;
                case 3:
                    n = n / 1024 * 1024;
                    if (n) MUST(cudaMemcpy2D(d, 8192, s, 8192, 8192, n / 1024, cudaMemcpyDeviceToDevice));
                    break;
            }
        });
        MUST(cudaStreamSynchronize(stream));
        if (form == 0) rate = n * 8 / t;
        if (n) verifyRange(b, to, n, from, a.seed, what);
        if (n) fillRange(b, to, n);
    }
    MUST(cudaDeviceSynchronize());
    verifyPiece(b, "the target after its copies");
    return rate;
}

/// Uploads and memsets of odd lengths at odd places over a boundary between chunks.
static void uploads(const Piece& p, std::vector<uint8_t>& buffer) {
    for (size_t edge : {size_t(2) * MiB, size_t(64) * MiB, p.bytes / 2, p.bytes}) {
        const size_t size = 1000003;
        if (edge > p.bytes || edge < size || p.bytes < 2 * size) continue;
        size_t from = edge == p.bytes ? edge - size : edge - size / 2 - 1;
        if (from + size > p.bytes) from = p.bytes - size;
        for (size_t i = 0; i < size; i++) buffer[i] = uint8_t(splitmix64(from + i) >> 9);
        MUST(cudaMemcpy(p.at + from, buffer.data(), size, cudaMemcpyHostToDevice));
        MUST(cudaMemset(p.at + from + 101, 0x5A, 2001));
        memset(buffer.data() + 101, 0x5A, 2001);
        std::vector<uint8_t> back(size);
        MUST(cudaMemcpy(back.data(), p.at + from, size, cudaMemcpyDeviceToHost));
        if (memcmp(back.data(), buffer.data(), size)) fail("an upload of odd length came back different");
    }
    fillPiece(p);
}

static double dmaRate(bool toDevice) {
    void *host, *device;
    MUST(cudaMallocHost(&host, GiB));
    MUST(cudaMalloc(&device, GiB));
    memset(host, 1, GiB);
    double best = 1e9;
    for (int i = 0; i < 4; i++)
        best = std::min(best, timed(0, "DMA", [&] {
            if (toDevice) MUST(cudaMemcpyAsync(device, host, GiB, cudaMemcpyHostToDevice, 0));
            else MUST(cudaMemcpyAsync(host, device, GiB, cudaMemcpyDeviceToHost, 0));
        }));
    MUST(cudaFree(device));
    MUST(cudaFreeHost(host));
    return GiB / best;
}

static int stream(double total) {
    // Before the big one, so that the target of the DMA lies in VRAM.
    double down = dmaRate(true), up = dmaRate(false);
    unsigned* out;
    MUST(cudaMalloc(&out, 4));
    size_t piece = 512 * MiB, n = size_t(total * GiB) / piece;
    std::vector<Piece> pieces;
    for (size_t i = 0; i < n; i++) pieces.push_back(makePiece(piece));
    for (auto& p : pieces) fillPiece(p);
    std::vector<double> slow, fast, writes;
    for (auto& p : pieces) {
        double best = 1e9;
        for (int i = 0; i < 3; i++)
            best = std::min(best, timed(0, "read", [&] {
                readAll<<<BLOCKS, THREADS>>>(reinterpret_cast<uint4*>(p.at), p.bytes / 16, out);
            }));
        double rate = p.bytes / best;
        (rate < 200e9 ? slow : fast).push_back(rate);
        if (rate < 60e9) writes.push_back(p.bytes / fillPiece(p));
    }
    for (auto& p : pieces) verifyPiece(p, "after the reads");
    auto median = [](std::vector<double>& v) {
        if (v.empty()) return 0.0;
        std::sort(v.begin(), v.end());
        return v[v.size() / 2] / 1e9;
    };
    double read = median(slow), write = median(writes), vram = median(fast);
    printf("DMA to device %.1f, to host %.1f GB/s; kernel reads spilled memory %.1f, writes %.1f, VRAM %.0f GB/s\n",
           down / 1e9, up / 1e9, read, write, vram);
    printf("RESULT {\"ok\": %s, \"dma_h2d\": %.2f, \"dma_d2h\": %.2f, \"read\": %.2f, \"write\": %.2f, \"vram\": %.1f, "
           "\"slow_pieces\": %zu, \"pieces\": %zu}\n",
           failures ? "false" : "true", down / 1e9, up / 1e9, read, write, vram, slow.size(), pieces.size());
    return failures ? 1 : 0;
}

int main(int argc, char** argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    double total = 4, streamed = 0;
    std::string sizes = "300,1024,64,2560,5120,3,700,4096,200,1536";
    for (int i = 1; i + 1 < argc; i += 2) {
        std::string a = argv[i];
        if (a == "--total") total = atof(argv[i + 1]);
        else if (a == "--pieces") sizes = argv[i + 1];
        else if (a == "--seed") seedNow = strtoull(argv[i + 1], nullptr, 0);
        else if (a == "--stream") streamed = atof(argv[i + 1]);
        else {
            fprintf(stderr, "unknown argument %s\n", a.c_str());
            return 2;
        }
    }
    double begin = now();
    MUST(cudaSetDevice(0));
    MUST(cudaMalloc(reinterpret_cast<void**>(&badDevice), sizeof(Bad)));
    cudaDeviceProp prop;
    MUST(cudaGetDeviceProperties(&prop, 0));
    size_t free = 0, all = 0;
    MUST(cudaMemGetInfo(&free, &all));
    printf("%s: told of %.2f GiB, %.2f free; start took %.2f s\n", prop.name, double(all) / GiB, double(free) / GiB,
           now() - begin);
    if (streamed > 0) return stream(streamed);

    // Odd bytes on top of each size, so that no piece ends where a chunk does.
    std::vector<size_t> list;
    const size_t odd[] = {0, 1, 511, 513, 4096, 2 * KiB + 7, 8, 1 * MiB + 5};
    for (size_t i = 0, k = 0; i < sizes.size(); k++) {
        list.push_back(size_t(atof(sizes.c_str() + i) * MiB) + odd[k % 8]);
        size_t comma = sizes.find(',', i);
        i = comma == std::string::npos ? sizes.size() : comma + 1;
    }
    const size_t want = size_t(total * GiB);
    size_t held = 0;
    std::vector<Piece> pieces;
    double t = now();
    for (size_t i = 0; held < want; i++) {
        size_t bytes = std::min(list[i % list.size()], want - held);
        pieces.push_back(makePiece(bytes));
        held += bytes;
    }
    double allocated = now() - t;
    printf("%zu pieces, %.2f GiB, allocated in %.2f s\n", pieces.size(), double(held) / GiB, allocated);

    std::vector<uint8_t> buffer(2 * MiB);
    uint8_t* pinned;
    MUST(cudaMallocHost(reinterpret_cast<void**>(&pinned), 64 * MiB));
    cudaStream_t side;
    MUST(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));

    double fillTime = 0, verifyTime = 0, slowTime = 0, slowBytes = 0, slowFill = 0;
    std::vector<double> fillTimes;
    for (auto& p : pieces) fillTimes.push_back(fillPiece(p)), fillTime += fillTimes.back();
    for (size_t i = 0; i < pieces.size(); i++) {
        double s = verifyPiece(pieces[i], "piece " + std::to_string(i));
        verifyTime += s;
        // Zero-copy: far slower than VRAM, and large enough to time.
        if (pieces[i].bytes >= 64 * MiB && pieces[i].bytes / s < 60e9)
            slowTime += s, slowBytes += pieces[i].bytes, slowFill += fillTimes[i];
    }
    printf("filled at %.1f GB/s, verified by kernel at %.1f GB/s\n", held / fillTime / 1e9, held / verifyTime / 1e9);
    printf("pieces outside VRAM (%.1f GiB): written at %.1f, read at %.1f GB/s\n", slowBytes / GiB,
           slowTime ? slowBytes / slowFill / 1e9 : 0, slowTime ? slowBytes / slowTime / 1e9 : 0);

    t = now();
    size_t sampled = 0;
    for (auto& p : pieces) sampled += sample(p, buffer);
    size_t whole = 0;
    for (size_t i = 0; i < pieces.size(); i++) {
        // Some at the start (in VRAM), in the middle and at the end (outside).
        const Piece& p = pieces[(i * 7 + pieces.size() - 1) % pieces.size()];
        if (whole + p.bytes > size_t(6) * GiB) continue;
        wholePiece(p, pinned, 64 * MiB);
        whole += p.bytes;
    }
    printf("samples of %.1f MiB and whole pieces of %.2f GiB copied to the host and compared in %.2f s\n",
           double(sampled) / MiB, double(whole) / GiB, now() - t);

    t = now();
    double best = 0, worst = 1e18;
    for (size_t i = 0; i < std::min<size_t>(pieces.size() / 2, 8); i++) {
        const Piece &a = pieces[i], &b = pieces[pieces.size() - 1 - i];
        for (double r : {copies(a, b, side), copies(b, a, side)})
            if (r > 0) best = std::max(best, r), worst = std::min(worst, r);
    }
    for (size_t i = 0; i < pieces.size(); i += std::max<size_t>(1, pieces.size() / 8)) uploads(pieces[i], buffer);
    uploads(pieces.back(), buffer);
    printf("copies between pieces at %.1f to %.1f GB/s, uploads of odd lengths; %.2f s\n", worst / 1e9, best / 1e9,
           now() - t);

    t = now();
    size_t freed = 0;
    for (size_t i = 0; i < pieces.size(); i += 2) {
        MUST(cudaFree(pieces[i].at));
        freed += pieces[i].bytes;
        pieces[i].at = nullptr;
    }
    double freeTime = now() - t;
    t = now();
    std::vector<Piece> kept;
    for (auto& p : pieces)
        if (p.at) kept.push_back(p);
    size_t survivors = kept.size();
    // Other sizes than before, in another order.
    for (size_t i = list.size(), again = 0; again < freed; i += 3) {
        size_t bytes = std::min(list[i % list.size()] / 2 * 3 + 77, freed - again);
        kept.push_back(makePiece(bytes));
        again += bytes;
    }
    double reuseTime = now() - t;
    for (size_t i = survivors; i < kept.size(); i++) fillPiece(kept[i]);
    double again = 0;
    for (size_t i = 0; i < kept.size(); i++)
        again += verifyPiece(kept[i], (i < survivors ? "survivor " : "new piece ") + std::to_string(i));
    for (auto& p : kept) sample(p, buffer);
    printf("freed %.1f GiB in %.2f s, allocated as much in %.2f s; everything verified at %.1f GB/s\n",
           double(freed) / GiB, freeTime, reuseTime, held / again / 1e9);

    // Far too much is out of memory, and nothing else is harmed by that.
    void* never = nullptr;
    cudaError_t e = cudaMalloc(&never, size_t(1) << 45);
    if (e != cudaErrorMemoryAllocation) fail(std::string("32 TiB gave ") + cudaGetErrorName(e));
    (void)cudaGetLastError();
    for (size_t i = 0; i < kept.size(); i += 5) verifyPiece(kept[i], "after out of memory");

    for (auto& p : kept) MUST(cudaFree(p.at));
    MUST(cudaFreeHost(pinned));
    double down = dmaRate(true);
    MUST(cudaDeviceSynchronize());
    printf("all freed; DMA host to device in this run %.1f GB/s; %.1f s in all; %s\n", down / 1e9, now() - begin,
           failures ? "WRONG" : "every byte right");
    printf("RESULT {\"ok\": %s, \"failures\": %ld, \"gib\": %.2f, \"pieces\": %zu, \"alloc_s\": %.3f, \"fill_gbs\": %.2f, "
           "\"verify_gbs\": %.2f, \"outside_gib\": %.2f, \"outside_write_gbs\": %.2f, \"outside_read_gbs\": %.2f, "
           "\"dma_h2d\": %.2f, \"free_s\": %.3f, \"realloc_s\": %.3f, \"seconds\": %.2f}\n",
           failures ? "false" : "true", failures, double(held) / GiB, pieces.size(), allocated, held / fillTime / 1e9,
           held / verifyTime / 1e9, slowBytes / GiB, slowTime ? slowBytes / slowFill / 1e9 : 0,
           slowTime ? slowBytes / slowTime / 1e9 : 0, down / 1e9, freeTime, reuseTime, now() - begin);
    return failures ? 1 : 0;
}
