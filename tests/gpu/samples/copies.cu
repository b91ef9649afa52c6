// Every form of copy and memset: pitched, 2D, 3D, batches, symbols, peers, pageable and pinned memory.
#include <cuda.h>

#include "section.cuh"

template <class T>
static T* take(size_t bytes) {
    void* p;
    MUST(cudaMalloc(&p, bytes));
    return static_cast<T*>(p);
}

/// What the host thinks a device buffer holds.
class Model {
public:
    explicit Model(size_t bytes) : bytes(bytes), host(bytes) { at = take<char>(bytes); }
    void fillBoth(u64 seed) {
        auto* words = reinterpret_cast<u64*>(host.data());
        for (u64 i = 0; i < bytes / 8; i++) words[i] = mix(seed + i);
        fill(at, bytes, seed);
    }
    void compare(Section& s, const std::string& what, cudaStream_t stream = 0) {
        u64 is = fold(at, bytes, stream);
        s.take(is);
        s.expect(is == foldHost(host.data(), bytes), what);
    }
    size_t bytes;
    std::vector<char> host;
    char* at;
};

static void rows(char* to, size_t toPitch, const char* from, size_t fromPitch, size_t width, size_t height) {
    for (size_t y = 0; y < height; y++) memmove(to + y * toPitch, from + y * fromPitch, width);
}

/// cudaMallocPitch, cudaMalloc3D and copies between all of them and the host.
static void pitched(Section& s) {
    Ballast ballast(s, 64);
    const size_t width = 3001, height = 2000;
    char *a, *b;
    size_t pitch, pitch2;
    MUST(cudaMallocPitch(reinterpret_cast<void**>(&a), &pitch, width, height));
    MUST(cudaMallocPitch(reinterpret_cast<void**>(&b), &pitch2, width * 2, height));
    s.take(pitch);
    s.take(pitch2);
    MUST(cudaMemset(a, 0, pitch * height));
    MUST(cudaMemset(b, 0, pitch2 * height));
    std::vector<char> in(width * height), out(width * height);
    for (size_t i = 0; i < in.size(); i++) in[i] = char(mix(i));
    MUST(cudaMemcpy2D(a, pitch, in.data(), width, width, height, cudaMemcpyHostToDevice));
    MUST(cudaMemcpy2D(b + 17, pitch2, a, pitch, width, height, cudaMemcpyDeviceToDevice));
    MUST(cudaMemcpy2D(out.data(), width, b + 17, pitch2, width, height, cudaMemcpyDeviceToHost));
    s.expect(in == out, "rows came back different");
    s.take(a, pitch * height);
    s.take(b, pitch2 * height);
    MUST(cudaMemset2D(a + 100, pitch, 0x31, 777, height - 100));
    s.take(a, pitch * height);
    MUST(cudaFree(a));
    MUST(cudaFree(b));

    cudaPitchedPtr p, q;
    cudaExtent e = make_cudaExtent(900, 200, 60);
    MUST(cudaMalloc3D(&p, e));
    MUST(cudaMalloc3D(&q, e));
    s.take(p.pitch);
    MUST(cudaMemset3D(p, 1, e));
    MUST(cudaMemset3D(q, 2, e));
    cudaMemcpy3DParms c = {};
    c.srcPtr = make_cudaPitchedPtr(in.data(), 900, 900, 100);
    c.dstPtr = p;
    c.dstPos = make_cudaPos(0, 3, 4);
    c.extent = make_cudaExtent(900, 100, 50);
    c.kind = cudaMemcpyHostToDevice;
    MUST(cudaMemcpy3D(&c));
    c = {};
    c.srcPtr = p;
    c.srcPos = make_cudaPos(10, 5, 6);
    c.dstPtr = q;
    c.dstPos = make_cudaPos(100, 50, 1);
    c.extent = make_cudaExtent(700, 90, 40);
    c.kind = cudaMemcpyDeviceToDevice;
    MUST(cudaMemcpy3D(&c));
    const size_t volume = 900 * 200 * 60;
    std::vector<char> back(volume), model(volume, 2);
    c = {};
    c.srcPtr = q;
    c.dstPtr = make_cudaPitchedPtr(back.data(), 900, 900, 200);
    c.extent = e;
    c.kind = cudaMemcpyDeviceToHost;
    MUST(cudaMemcpy3D(&c));
    auto before = [&](size_t x, size_t y, size_t z) {
        return y >= 3 && y < 103 && z >= 4 && z < 54 ? in[((z - 4) * 100 + y - 3) * 900 + x] : char(1);
    };
    for (size_t z = 0; z < 40; z++)
        for (size_t y = 0; y < 90; y++)
            for (size_t x = 0; x < 700; x++) model[((z + 1) * 200 + y + 50) * 900 + x + 100] = before(x + 10, y + 5, z + 6);
    s.expect(back == model, "a box came back different");
    s.take(foldHost(back.data(), volume));
    MUST(cudaFree(p.ptr));
    MUST(cudaFree(q.ptr));
    ballast.done();
}

/// Linear copies of odd lengths at odd places: pageable and pinned, with and without streams, through the driver too.
static void forms(Section& s) {
    Ballast ballast(s, 64);
    Model a(24 * MiB), b(24 * MiB);
    a.fillBoth(1);
    b.fillBoth(2);
    cudaStream_t streams[2];
    MUST(cudaStreamCreate(&streams[0]));
    MUST(cudaStreamCreateWithFlags(&streams[1], cudaStreamNonBlocking));
    char* pinned;
    MUST(cudaMallocHost(reinterpret_cast<void**>(&pinned), 4 * MiB));
    std::vector<char> pageable(4 * MiB);
    for (size_t i = 0; i < 4 * MiB; i++) pinned[i] = char(mix(i) >> 8), pageable[i] = char(mix(i) >> 16);
    const size_t n = 3'000'001;
    for (int form = 0; form < 12; form++) {
        cudaStream_t stream = form % 3 ? streams[form % 3 - 1] : nullptr;
        char* host = form % 2 ? pinned : pageable.data();
        size_t at = 2 * MiB - 1000 + form * 1'100'003;
        MUST(cudaDeviceSynchronize());
        MUST(cudaMemcpyAsync(a.at + at, host + form, n, cudaMemcpyHostToDevice, stream));
        memcpy(a.host.data() + at, host + form, n);
        MUST(cudaMemcpyAsync(b.at + at / 2 + 1, a.at + at + 3, n - 7, cudaMemcpyDefault, stream));
        memcpy(b.host.data() + at / 2 + 1, a.host.data() + at + 3, n - 7);
        MUST(cudaMemsetAsync(b.at + at / 3, form, 54'321, stream));
        memset(b.host.data() + at / 3, form, 54'321);
        MUST(cudaStreamSynchronize(stream));
        std::vector<char> back(n);
        MUST(cudaMemcpy(back.data(), b.at + at / 3 - 5, n, cudaMemcpyDeviceToHost));
        s.expect(!memcmp(back.data(), b.host.data() + at / 3 - 5, n), "a download is wrong, form " + std::to_string(form));
    }
    a.compare(s, "the uploads are wrong");
    b.compare(s, "the copies are wrong");
    // Overwritten at once after the call returned: a pageable source has been read by then.
    for (int i = 0; i < 4; i++) {
        MUST(cudaMemcpyAsync(a.at + i * n, pageable.data(), n, cudaMemcpyHostToDevice, streams[1]));
        memcpy(a.host.data() + i * n, pageable.data(), n);
        memset(pageable.data(), i, n);
    }
    MUST(cudaStreamSynchronize(streams[1]));
    a.compare(s, "a pageable source was read too late");
    // The widths that only the driver's functions have. The synchronous ones go to the null stream.
    auto symbol = [](const char* name) {
        void* f = nullptr;
        cudaDriverEntryPointQueryResult found;
        MUST(cudaGetDriverEntryPointByVersion(name, &f, 12000, cudaEnableDefault, &found));
        if (!f) throw Unsupported(std::string("no ") + name);
        return f;
    };
    auto at = [](char* p) { return CUdeviceptr(p); };
    auto set16 = reinterpret_cast<CUresult (*)(CUdeviceptr, unsigned short, size_t)>(symbol("cuMemsetD16"));
    auto set32 = reinterpret_cast<CUresult (*)(CUdeviceptr, unsigned, size_t)>(symbol("cuMemsetD32"));
    auto set2d = reinterpret_cast<CUresult (*)(CUdeviceptr, size_t, unsigned, size_t, size_t)>(symbol("cuMemsetD2D32"));
    s.take(set16(at(a.at + 2 * MiB - 6), 0xBEEF, 1'000'001));
    for (size_t i = 0; i < 1'000'001; i++) memcpy(a.host.data() + 2 * MiB - 6 + 2 * i, "\xEF\xBE", 2);
    s.take(set32(at(a.at + 8 * MiB - 12), 0xCAFE0123, 500'003));
    for (size_t i = 0; i < 500'003; i++) memcpy(a.host.data() + 8 * MiB - 12 + 4 * i, "\x23\x01\xFE\xCA", 4);
    s.take(set2d(at(a.at + 12 * MiB), 4096, 7, 300, 2000));
    for (size_t y = 0; y < 2000; y++)
        for (size_t x = 0; x < 300; x++) memcpy(a.host.data() + 12 * MiB + y * 4096 + 4 * x, "\7\0\0\0", 4);
    a.compare(s, "a memset is wrong");
    MUST(cudaMemcpyPeer(a.at + 100, 0, b.at, 0, 5'000'000));
    memcpy(a.host.data() + 100, b.host.data(), 5'000'000);
    MUST(cudaMemcpyPeerAsync(b.at + 6'000'000, 0, a.at, 0, 5'000'000, streams[0]));
    MUST(cudaStreamSynchronize(streams[0]));
    memcpy(b.host.data() + 6'000'000, a.host.data(), 5'000'000);
    a.compare(s, "a peer copy is wrong");
    b.compare(s, "an asynchronous peer copy is wrong");
    for (auto stream : streams) MUST(cudaStreamDestroy(stream));
    MUST(cudaFreeHost(pinned));
    MUST(cudaFree(a.at));
    MUST(cudaFree(b.at));
    ballast.done();
}

/// Many copies by one call.
static void batch(Section& s) {
#if CUDART_VERSION < 13000
    throw Unsupported("this toolkit is older than 13.0");
#else
    Ballast ballast(s, 64);
    Model a(24 * MiB), b(24 * MiB);
    a.fillBoth(5);
    b.fillBoth(6);
    MUST(cudaDeviceSynchronize());
    cudaStream_t stream;
    MUST(cudaStreamCreate(&stream));
    char* pinned;
    MUST(cudaMallocHost(reinterpret_cast<void**>(&pinned), 8 * MiB));
    for (size_t i = 0; i < 8 * MiB; i++) pinned[i] = char(mix(i) >> 24);
    std::vector<void*> to;
    std::vector<const void*> from;
    std::vector<size_t> sizes;
    for (size_t i = 0; i < 40; i++) {
        size_t n = 1000 + i * 10'007, at = i * 500'009;
        bool upload = i % 3 == 0;
        to.push_back(b.at + at);
        from.push_back(upload ? pinned + i * 1000 : a.at + at + 11);
        sizes.push_back(n);
        memcpy(b.host.data() + at, upload ? pinned + i * 1000 : a.host.data() + at + 11, n);
    }
    cudaMemcpyAttributes attribute = {};
    attribute.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t first = 0;
    cudaError_t e = cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), sizes.size(), &attribute, &first, 1, stream);
    if (e == cudaErrorNotSupported || e == cudaErrorCallRequiresNewerDriver) throw Unsupported("the driver has no batch copies");
    MUST(e);
    MUST(cudaStreamSynchronize(stream));
    b.compare(s, "a batch copied wrongly");
    // Boxes.
    std::vector<cudaMemcpy3DBatchOp> boxes;
    for (size_t i = 0; i < 6; i++) {
        cudaMemcpy3DBatchOp op = {};
        op.src.type = op.dst.type = cudaMemcpyOperandTypePointer;
        op.src.op.ptr.ptr = b.at + i * 3'000'000;
        op.src.op.ptr.rowLength = 1000;
        op.src.op.ptr.layerHeight = 100;
        op.dst.op.ptr.ptr = a.at + i * 3'100'000 + 64;
        op.dst.op.ptr.rowLength = 1024;
        op.dst.op.ptr.layerHeight = 110;
        op.extent = make_cudaExtent(1000, 90, 12);
        op.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
        boxes.push_back(op);
        for (size_t z = 0; z < 12; z++)
            rows(a.host.data() + i * 3'100'000 + 64 + z * 1024 * 110, 1024, b.host.data() + i * 3'000'000 + z * 1000 * 100, 1000,
                 1000, 90);
    }
    MUST(cudaMemcpy3DBatchAsync(boxes.size(), boxes.data(), 0, stream));
    MUST(cudaStreamSynchronize(stream));
    a.compare(s, "a batch of boxes copied wrongly");
    MUST(cudaStreamDestroy(stream));
    MUST(cudaFreeHost(pinned));
    MUST(cudaFree(a.at));
    MUST(cudaFree(b.at));
    ballast.done();
#endif
}

// Globals of the module

__device__ u64 table[512 * 1024];
__constant__ u64 constants[1024];
__device__ u64* cursor;

static __global__ void useGlobals(u64* out, u64 n) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) {
        out[i] = mix(table[i % (512 * 1024)] ^ constants[i % 1024]);
        if (i < 1000) cursor[i] = i * i;
    }
}

/// Module globals: copies to and from symbols, addresses of symbols, a pointer in a global.
static void globals(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 16 * MiB;
    u64 *out = take<u64>(bytes), *side = take<u64>(4 * MiB);
    std::vector<u64> words(512 * 1024), small(1024);
    for (u64 i = 0; i < words.size(); i++) words[i] = mix(i * 5);
    for (u64 i = 0; i < small.size(); i++) small[i] = mix(i * 9);
    MUST(cudaMemcpyToSymbol(table, words.data(), words.size() * 8));
    MUST(cudaMemcpyToSymbol(constants, small.data(), small.size() * 8));
    MUST(cudaMemcpyToSymbol(cursor, &side, sizeof side));
    MUST(cudaMemset(side, 0, 4 * MiB));
    useGlobals<<<BLOCKS, THREADS>>>(out, bytes / 8);
    launched();
    s.words(out, bytes, [&](u64 i) { return mix(words[i % words.size()] ^ small[i % 1024]); }, "what globals gave");
    s.words(side, 4 * MiB, [](u64 i) { return i < 1000 ? i * i : 0; }, "what was written through a pointer in a global");
    void* at;
    size_t size;
    MUST(cudaGetSymbolAddress(&at, table));
    MUST(cudaGetSymbolSize(&size, table));
    s.take(size);
    // From memory outside VRAM into the global and back.
    MUST(cudaMemcpy(at, out, size, cudaMemcpyDeviceToDevice));
    MUST(cudaMemcpyFromSymbol(out + MiB, table, size, 0, cudaMemcpyDeviceToDevice));
    s.take(out, bytes);
    cudaPointerAttributes attributes;
    MUST(cudaPointerGetAttributes(&attributes, at));
    s.take(attributes.type);
    MUST(cudaPointerGetAttributes(&attributes, out));
    s.take(attributes.type);
    MUST(cudaFree(out));
    MUST(cudaFree(side));
    ballast.done();
}

int main(int argc, char** argv) {
    return sections({{"copy_pitched", pitched}, {"copy_forms", forms}, {"copy_batch", batch}, {"globals", globals}}, argc, argv);
}
