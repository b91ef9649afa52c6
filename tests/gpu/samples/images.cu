// Textures and surfaces: over linear memory, pitched memory, arrays, layers and mipmaps.
#include "section.cuh"

// texel i of a 1D texture over linear memory; `out` gets a mix of four neighbours.
static __global__ void fetchLinear(cudaTextureObject_t t, u64 n, u64* out) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) {
        uint2 a = tex1Dfetch<uint2>(t, int(i)), b = tex1Dfetch<uint2>(t, int((i * 7919 + 13) % n));
        out[i] = mix(a.x | u64(a.y) << 32) ^ (b.x | u64(b.y) << 32);
    }
}

static __global__ void sample2D(cudaTextureObject_t t, int width, int height, float* out) {
    for (u64 i = firstIndex(); i < u64(width) * height; i += strideOfGrid()) {
        int x = int(i % width), y = int(i / width);
        out[i] = tex2D<float>(t, x + 1.0f, y + 1.0f) * 4 + tex2D<float>(t, x + 0.5f, y + 0.5f);
    }
}

static __global__ void sample3D(cudaTextureObject_t t, int w, int h, int d, float* out) {
    for (u64 i = firstIndex(); i < u64(w) * h * d; i += strideOfGrid()) {
        int x = int(i % w), y = int(i / w % h), z = int(i / w / h);
        out[i] = tex3D<float>(t, x + 0.5f, y + 0.5f, z + 0.5f) * 2 + 1;
    }
}

static __global__ void sampleLayer(cudaTextureObject_t t, int w, int h, int layers, float* out) {
    for (u64 i = firstIndex(); i < u64(w) * h * layers; i += strideOfGrid())
        out[i] = tex2DLayered<float>(t, i % w + 0.5f, i / w % h + 0.5f, int(i / w / h)) + 3;
}

static __global__ void sampleLevel(cudaTextureObject_t t, int w, int h, float level, float* out) {
    for (u64 i = firstIndex(); i < u64(w) * h; i += strideOfGrid())
        out[i] = tex2DLod<float>(t, (i % w + 0.5f) / w, (i / w + 0.5f) / h, level);
}

static __global__ void turnSurface(cudaSurfaceObject_t in, cudaSurfaceObject_t out, int w, int h) {
    for (u64 i = firstIndex(); i < u64(w) * h; i += strideOfGrid()) {
        int x = int(i % w), y = int(i / w);
        uint2 v;
        surf2Dread(&v, in, x * 8, y);
        v.x += x;
        surf2Dwrite(v, out, (w - 1 - x) * 8, h - 1 - y);
    }
}

// Small integers as floats: sums of a few of them are exact.
static __global__ void smallFloats(float* p, u64 n, u64 seed) {
    for (u64 i = firstIndex(); i < n; i += strideOfGrid()) p[i] = float(mix(seed + i) & 0xFFF);
}

static float smallFloat(u64 seed, u64 i) { return float(mix(seed + i) & 0xFFF); }

template <class T>
static T* take(size_t bytes) {
    void* p;
    MUST(cudaMalloc(&p, bytes));
    return static_cast<T*>(p);
}

static cudaTextureObject_t texture(const cudaResourceDesc& resource, bool linear, bool mipmapped = false) {
    cudaTextureDesc d = {};
    for (auto& mode : d.addressMode) mode = cudaAddressModeClamp;
    d.filterMode = linear ? cudaFilterModeLinear : cudaFilterModePoint;
    d.readMode = cudaReadModeElementType;
    if (mipmapped) {
        d.normalizedCoords = 1;  // required for mipmaps
        d.mipmapFilterMode = cudaFilterModePoint;
        d.maxMipmapLevelClamp = 10;
    }
    cudaTextureObject_t t;
    MUST(cudaCreateTextureObject(&t, &resource, &d, nullptr));
    return t;
}

static void floats(float* p, u64 n, u64 seed) {
    smallFloats<<<BLOCKS, THREADS>>>(p, n, seed);
    launched();
}

static u64 bits(float a, float b) {
    u32 x, y;
    memcpy(&x, &a, 4);
    memcpy(&y, &b, 4);
    return x | u64(y) << 32;
}

/// 1D over linear memory that spills; 2D over pitched memory that spills.
static void linear(Section& s) {
    Ballast ballast(s, 64);
    const size_t bytes = 32 * MiB, n = bytes / 8;
    u64 *in = take<u64>(bytes), *out = take<u64>(bytes);
    fill(in, bytes, 3);
    cudaResourceDesc r = {};
    r.resType = cudaResourceTypeLinear;
    r.res.linear.devPtr = in;
    r.res.linear.desc = cudaCreateChannelDesc<uint2>();
    r.res.linear.sizeInBytes = bytes;
    cudaTextureObject_t t = texture(r, false);
    fetchLinear<<<BLOCKS, THREADS>>>(t, n, out);
    launched();
    s.words(out, bytes, [=](u64 i) { return mix(mix(3 + i)) ^ mix(3 + (i * 7919 + 13) % n); }, "texels of linear memory");
    // The memory changes under the texture.
    fill(in, bytes, 4);
    fetchLinear<<<BLOCKS, THREADS>>>(t, n, out);
    launched();
    s.words(out, bytes, [=](u64 i) { return mix(mix(4 + i)) ^ mix(4 + (i * 7919 + 13) % n); }, "texels after a change");
    MUST(cudaDestroyTextureObject(t));
    MUST(cudaFree(in));
    MUST(cudaFree(out));

    const int w = 2000, h = 1500;
    float* pitched;
    size_t pitch;
    MUST(cudaMallocPitch(&pitched, &pitch, w * 4, h));
    s.take(pitch);
    float *plain = take<float>(size_t(w) * h * 4), *result = take<float>(size_t(w) * h * 4);
    floats(plain, size_t(w) * h, 50);
    MUST(cudaMemcpy2D(pitched, pitch, plain, w * 4, w * 4, h, cudaMemcpyDeviceToDevice));
    r = {};
    r.resType = cudaResourceTypePitch2D;
    r.res.pitch2D.devPtr = pitched;
    r.res.pitch2D.desc = cudaCreateChannelDesc<float>();
    r.res.pitch2D.width = w;
    r.res.pitch2D.height = h;
    r.res.pitch2D.pitchInBytes = pitch;
    t = texture(r, true);
    sample2D<<<BLOCKS, THREADS>>>(t, w, h, result);
    launched();
    // How the hardware rounds is its own affair: only the digest counts.
    s.take(result, size_t(w) * h * 4);
    MUST(cudaDestroyTextureObject(t));
    MUST(cudaFree(pitched));
    MUST(cudaFree(plain));
    MUST(cudaFree(result));
    ballast.done();
}

/// 2D and 3D arrays, layers, mipmaps, filled from memory that spills and read back into it. The arrays come first: they
/// cannot lie outside VRAM.
static void arrays(Section& s) {
    const int w = 1024, h = 768, d = 8;
    const cudaChannelFormatDesc one = cudaCreateChannelDesc<float>();
    cudaArray_t flat, deep, layered;
    MUST(cudaMallocArray(&flat, &one, w, h));
    MUST(cudaMalloc3DArray(&deep, &one, make_cudaExtent(w / 2, h / 2, d)));
    MUST(cudaMalloc3DArray(&layered, &one, make_cudaExtent(w / 2, h / 2, d), cudaArrayLayered));
    cudaMipmappedArray_t mips;
    MUST(cudaMallocMipmappedArray(&mips, &one, make_cudaExtent(w, h, 0), 3));
    Ballast ballast(s, 40);
    const size_t bytes = size_t(w) * h * 4 * 8;
    float *in = take<float>(bytes), *out = take<float>(bytes);
    floats(in, bytes / 4, 90);

    MUST(cudaMemcpy2DToArray(flat, 0, 0, in, w * 4, w * 4, h, cudaMemcpyDeviceToDevice));
    cudaResourceDesc r = {};
    r.resType = cudaResourceTypeArray;
    r.res.array.array = flat;
    cudaTextureObject_t t = texture(r, true);
    sample2D<<<BLOCKS, THREADS>>>(t, w, h, out);
    launched();
    s.take(out, size_t(w) * h * 4);
    MUST(cudaDestroyTextureObject(t));
    MUST(cudaMemcpy2DFromArray(out, w * 4, flat, 0, 0, w * 4, h, cudaMemcpyDeviceToDevice));
    s.words(out, size_t(w) * h * 4, [](u64 i) { return bits(smallFloat(90, 2 * i), smallFloat(90, 2 * i + 1)); },
            "an array copied back");

    const size_t volume = size_t(w / 2) * (h / 2) * d;
    for (cudaArray_t array : {deep, layered}) {
        cudaMemcpy3DParms p = {};
        p.srcPtr = make_cudaPitchedPtr(in, w / 2 * 4, w / 2, h / 2);
        p.dstArray = array;
        p.extent = make_cudaExtent(w / 2, h / 2, d);
        p.kind = cudaMemcpyDeviceToDevice;
        MUST(cudaMemcpy3D(&p));
        r.res.array.array = array;
        t = texture(r, false);
        if (array == deep) sample3D<<<BLOCKS, THREADS>>>(t, w / 2, h / 2, d, out);
        else sampleLayer<<<BLOCKS, THREADS>>>(t, w / 2, h / 2, d, out);
        launched();
        float factor = array == deep ? 2 : 1, more = array == deep ? 1 : 3;
        s.words(out, volume * 4,
                [=](u64 i) { return bits(smallFloat(90, 2 * i) * factor + more, smallFloat(90, 2 * i + 1) * factor + more); },
                array == deep ? "texels of a 3D array" : "texels of layers");
        MUST(cudaDestroyTextureObject(t));
    }

    for (int level = 0; level < 3; level++) {
        cudaArray_t part;
        MUST(cudaGetMipmappedArrayLevel(&part, mips, level));
        MUST(cudaMemcpy2DToArray(part, 0, 0, in + 1000 * level, (w >> level) * 4, (w >> level) * 4, h >> level,
                                 cudaMemcpyDeviceToDevice));
    }
    r = {};
    r.resType = cudaResourceTypeMipmappedArray;
    r.res.mipmap.mipmap = mips;
    t = texture(r, false, true);
    for (int level = 0; level < 3; level++) {
        int lw = w >> level, lh = h >> level;
        sampleLevel<<<BLOCKS, THREADS>>>(t, lw, lh, float(level), out);
        launched();
        s.words(out, size_t(lw) * lh * 4,
                [=](u64 i) { return bits(smallFloat(90, 1000 * level + 2 * i), smallFloat(90, 1000 * level + 2 * i + 1)); },
                "texels of a mipmap");
    }
    MUST(cudaDestroyTextureObject(t));
    MUST(cudaFreeMipmappedArray(mips));
    MUST(cudaFreeArray(flat));
    MUST(cudaFreeArray(deep));
    MUST(cudaFreeArray(layered));
    MUST(cudaFree(in));
    MUST(cudaFree(out));
    ballast.done();
}

/// Surfaces over arrays, fed from and read into memory that spills.
static void surface(Section& s) {
    const int w = 1024, h = 512;
    const cudaChannelFormatDesc two = cudaCreateChannelDesc<uint2>();
    cudaArray_t a, b;
    MUST(cudaMallocArray(&a, &two, w, h, cudaArraySurfaceLoadStore));
    MUST(cudaMallocArray(&b, &two, w, h, cudaArraySurfaceLoadStore));
    Ballast ballast(s, 56);
    const size_t bytes = size_t(w) * h * 8;
    u64 *in = take<u64>(bytes), *out = take<u64>(4 * bytes);
    fill(in, bytes, 12);
    MUST(cudaMemcpy2DToArray(a, 0, 0, in, w * 8, w * 8, h, cudaMemcpyDeviceToDevice));
    cudaSurfaceObject_t from, to;
    cudaResourceDesc r = {};
    r.resType = cudaResourceTypeArray;
    r.res.array.array = a;
    MUST(cudaCreateSurfaceObject(&from, &r));
    r.res.array.array = b;
    MUST(cudaCreateSurfaceObject(&to, &r));
    turnSurface<<<BLOCKS, THREADS>>>(from, to, w, h);
    launched();
    for (int i = 0; i < 4; i++)
        MUST(cudaMemcpy2DFromArray(reinterpret_cast<char*>(out) + i * bytes, w * 8, b, 0, 0, w * 8, h, cudaMemcpyDeviceToDevice));
    auto word = [=](u64 i) {
        u64 k = u64(w) * h - 1 - i % (u64(w) * h), v = mix(12 + k);
        return (v & ~0xFFFFFFFFull) | u32(u32(v) + u32(k % w));
    };
    s.words(out, 4 * bytes, word, "what a surface wrote");
    MUST(cudaDestroySurfaceObject(from));
    MUST(cudaDestroySurfaceObject(to));
    MUST(cudaFreeArray(a));
    MUST(cudaFreeArray(b));
    MUST(cudaFree(in));
    MUST(cudaFree(out));
    ballast.done();
}

int main(int argc, char** argv) {
    return sections({{"texture_linear", linear}, {"texture_arrays", arrays}, {"surface", surface}}, argc, argv);
}
