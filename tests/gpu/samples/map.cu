// Virtual memory management: a vector that grows by mapping, aliases, handles that change places, exports. Linked to
// libcuda, unlike the others, which find the driver through the runtime.
#include <cuda.h>
#include <unistd.h>

#include "section.cuh"

static void must(CUresult r, const char* what, int line) {
    if (r == CUDA_SUCCESS) return;
    const char* name = "?";
    cuGetErrorName(r, &name);
    throw std::runtime_error(std::string(what) + ": " + name + ", map.cu:" + std::to_string(line));
}
#define CU(call) must((call), #call, __LINE__)

static CUmemAllocationProp property(bool exportable = false) {
    CUmemAllocationProp p = {};
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    if (exportable) p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    return p;
}

static CUmemGenericAllocationHandle create(size_t bytes, bool exportable = false) {
    CUmemAllocationProp p = property(exportable);
    CUmemGenericAllocationHandle h;
    CU(cuMemCreate(&h, bytes, &p, 0));
    return h;
}

static CUdeviceptr reserve(size_t bytes) {
    CUdeviceptr at;
    CU(cuMemAddressReserve(&at, bytes, 0, 0, 0));
    return at;
}

static void place(CUdeviceptr at, size_t bytes, CUmemGenericAllocationHandle h) {
    CU(cuMemMap(at, bytes, 0, h, 0));
    CUmemAccessDesc access = {};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CU(cuMemSetAccess(at, bytes, &access, 1));
}

static void* ptr(CUdeviceptr at) { return reinterpret_cast<void*>(at); }

static size_t granularity() {
    CUmemAllocationProp p = property();
    size_t g;
    CU(cuMemGetAllocationGranularity(&g, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
    return g;
}

/// A vector that grows in place, and moves to a larger range with its handles when that is full.
static void grow(Section& s) {
    Ballast ballast(s, 48);
    const size_t step = (7 * MiB + granularity() - 1) / granularity() * granularity();
    struct Part {
        CUmemGenericAllocationHandle handle;
        size_t bytes;
    };
    std::vector<Part> parts;
    size_t room = 8 * step, size = 0;
    CUdeviceptr at = reserve(room);
    for (u64 i = 0; i < 14; i++) {
        size_t bytes = i % 3 == 2 ? 2 * step : step;
        if (size + bytes > room) {
            // The driver may know a range right behind; a program has to bear both answers.
            CUdeviceptr larger = reserve(3 * room);
            MUST(cudaDeviceSynchronize());
            CU(cuMemUnmap(at, size));
            CU(cuMemAddressFree(at, room));
            size_t offset = 0;
            for (auto& p : parts) {
                place(larger + offset, p.bytes, p.handle);
                offset += p.bytes;
            }
            at = larger;
            room *= 3;
        }
        parts.push_back({create(bytes), bytes});
        place(at + size, bytes, parts.back().handle);
        fillKernel<<<BLOCKS, THREADS>>>(static_cast<u64*>(ptr(at + size)), bytes / 8, 9 + size / 8);
        launched();
        size += bytes;
        // The whole vector is one sequence.
        s.filled(ptr(at), size, 9, "the vector after it grew");
    }
    for (auto& p : parts) {
        CUmemAllocationProp is;
        CU(cuMemGetAllocationPropertiesFromHandle(&is, p.handle));
        s.expect(is.location.type == CU_MEM_LOCATION_TYPE_DEVICE && is.location.id == 0, "a handle is not the device's");
        s.take(is.type);
        s.take(is.location.type);
        CU(cuMemRelease(p.handle));  // still mapped
    }
    unsigned long long flags = 0;
    CUmemLocation here = property().location;
    CU(cuMemGetAccess(&flags, &here, at));
    s.take(flags);
    CUmemGenericAllocationHandle again;
    CU(cuMemRetainAllocationHandle(&again, ptr(at + step + 8)));
    CU(cuMemRelease(again));
    unsigned kind = 0;
    CU(cuPointerGetAttribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at + size - 8));
    s.take(kind);
    stir(ptr(at), size, 4);
    s.words(ptr(at), size, [](u64 i) { return mix(mix(9 + i) + 4); }, "the vector, its handles released");
    MUST(cudaDeviceSynchronize());
    CU(cuMemUnmap(at, size));
    CU(cuMemAddressFree(at, room));
    ballast.done();
}

/// One handle at two addresses; handles that change places, with what is in them.
static void places(Section& s) {
    Ballast ballast(s, 48);
    const size_t bytes = 16 * MiB;
    CUdeviceptr a = reserve(8 * bytes), b = reserve(8 * bytes);
    std::vector<CUmemGenericAllocationHandle> handles;
    for (u64 i = 0; i < 8; i++) {
        handles.push_back(create(bytes));
        place(a + i * bytes, bytes, handles[i]);
        place(b + (7 - i) * bytes, bytes, handles[i]);
    }
    fill(ptr(a), 8 * bytes, 30);
    MUST(cudaDeviceSynchronize());
    auto mirrored = [=](u64 i) {
        u64 part = bytes / 8;
        return mix(30 + (7 - i / part) * part + i % part);
    };
    s.words(ptr(b), 8 * bytes, mirrored, "the second mapping");
    stir(ptr(b), 8 * bytes, 1);
    MUST(cudaDeviceSynchronize());
    s.words(ptr(a), 8 * bytes, [](u64 i) { return mix(mix(30 + i) + 1); }, "the first mapping");
    // Off and on again, turned by three: as a memory pool that sleeps and wakes does.
    for (u64 i = 0; i < 8; i++) CU(cuMemUnmap(a + i * bytes, bytes));
    CU(cuMemUnmap(b, 8 * bytes));
    for (u64 i = 0; i < 8; i++) place(a + i * bytes, bytes, handles[(i + 3) % 8]);
    auto turned = [=](u64 i) {
        u64 part = bytes / 8;
        return mix(mix(30 + (i / part + 3) % 8 * part + i % part) + 1);
    };
    s.words(ptr(a), 8 * bytes, turned, "handles in other places");
    // One part is thrown away and replaced; its neighbours stay.
    CU(cuMemUnmap(a + 2 * bytes, bytes));
    CU(cuMemRelease(handles[5]));
    handles[5] = create(bytes);
    place(a + 2 * bytes, bytes, handles[5]);
    fill(ptr(a + 2 * bytes), bytes, 60);
    s.filled(ptr(a + 2 * bytes), bytes, 60, "a new part");
    s.take(ptr(a), 8 * bytes);
    // Copies and memsets over the borders of parts.
    CU(cuMemcpyDtoD(a + bytes - 8000, a + 5 * bytes - 4096, 2 * MiB));
    CU(cuMemsetD32(a + 3 * bytes - 400, 0x1234, 1000));
    std::vector<u64> up(300'000), down(300'000);
    for (u64 i = 0; i < up.size(); i++) up[i] = mix(i * 3);
    CU(cuMemcpyHtoD(a + 6 * bytes - 8 * 150'000, up.data(), 8 * up.size()));
    CU(cuMemcpyDtoH(down.data(), a + 6 * bytes - 8 * 150'000, 8 * down.size()));
    s.expect(up == down, "an upload over a border came back different");
    s.take(ptr(a), 8 * bytes);
    MUST(cudaDeviceSynchronize());
    CU(cuMemUnmap(a, 8 * bytes));
    for (auto h : handles) CU(cuMemRelease(h));
    CU(cuMemAddressFree(a, 8 * bytes));
    CU(cuMemAddressFree(b, 8 * bytes));
    ballast.done();
}

/// Exportable handles: made into a file descriptor and imported again by the same process.
static void exported(Section& s) {
    Ballast ballast(s, 32);
    const size_t bytes = 8 * MiB;
    CUdeviceptr at = reserve(4 * bytes);
    std::vector<CUmemGenericAllocationHandle> handles;
    for (u64 i = 0; i < 2; i++) {
        handles.push_back(create(bytes, true));
        place(at + i * bytes, bytes, handles[i]);
    }
    fill(ptr(at), 2 * bytes, 70);
    MUST(cudaDeviceSynchronize());
    for (u64 i = 0; i < 2; i++) {
        int fd = -1;
        CU(cuMemExportToShareableHandle(&fd, handles[i], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
        CUmemGenericAllocationHandle h;
        CU(cuMemImportFromShareableHandle(&h, reinterpret_cast<void*>(uintptr_t(fd)),
                                          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
        close(fd);
        place(at + (2 + i) * bytes, bytes, h);
        handles.push_back(h);
    }
    s.words(ptr(at), 4 * bytes, [=](u64 i) { return mix(70 + i % (2 * bytes / 8)); }, "both, side by side");
    stir(ptr(at + 2 * bytes), 2 * bytes, 6);
    MUST(cudaDeviceSynchronize());
    s.words(ptr(at), 2 * bytes, [](u64 i) { return mix(mix(70 + i) + 6); }, "what was written through the import");
    MUST(cudaDeviceSynchronize());
    CU(cuMemUnmap(at, 4 * bytes));
    for (auto h : handles) CU(cuMemRelease(h));
    CU(cuMemAddressFree(at, 4 * bytes));
    ballast.done();
    // What asks for no export cannot be exported.
    CUmemGenericAllocationHandle h = create(bytes);
    int fd = -1;
    s.take(cuMemExportToShareableHandle(&fd, h, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    CU(cuMemRelease(h));
}

int main(int argc, char** argv) {
    return sections({{"vmm_grow", grow}, {"vmm_places", places}, {"vmm_export", exported}}, argc, argv);
}
