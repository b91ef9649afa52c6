// Memory shared between processes: IPC handles, exported handles, exported pools; each time with a child that is this
// program again. Linked to libcuda.
#include <cuda.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "section.cuh"

static void must(CUresult r, const char* what, int line) {
    if (r == CUDA_SUCCESS) return;
    const char* name = "?";
    cuGetErrorName(r, &name);
    throw std::runtime_error(std::string(what) + ": " + name + ", share.cu:" + std::to_string(line));
}
#define CU(call) must((call), #call, __LINE__)

extern char** environ;

/// What parent and child say to each other, with or without a file descriptor.
struct Message {
    char what[16];
    u64 bytes, seed, sum;
    cudaIpcMemHandle_t memory;
    cudaIpcEventHandle_t event;
    cudaMemPoolPtrExportData pointer;
};

class Peer {
public:
    explicit Peer(int fd) : fd(fd) {
        timeval patience = {30, 0};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    }

    /// Starts this program again as a child that does `mode`. `outside`: without what the environment preloads.
    static Peer start(const char* mode, bool outside = false) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) throw std::runtime_error("socketpair");
        fcntl(ends[1], F_SETFD, 0);
        std::string number = std::to_string(ends[1]);
        const char* argv[] = {"share", "child", mode, number.c_str(), nullptr};
        std::vector<char*> environment;
        for (char** e = environ; *e; e++)
            if (!outside || (strncmp(*e, "LD_PRELOAD=", 11) && strncmp(*e, "GREENBOOST", 10))) environment.push_back(*e);
        environment.push_back(nullptr);
        Peer peer(ends[0]);
        if (posix_spawn(&peer.pid, "/proc/self/exe", nullptr, nullptr, const_cast<char**>(argv), environment.data()))
            throw std::runtime_error("posix_spawn");
        close(ends[1]);
        return peer;
    }

    void say(const Message& m, int passed = -1) {
        iovec part = {const_cast<Message*>(&m), sizeof m};
        alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))] = {};
        msghdr header = {};
        header.msg_iov = &part;
        header.msg_iovlen = 1;
        if (passed >= 0) {
            header.msg_control = room;
            header.msg_controllen = sizeof room;
            cmsghdr* c = CMSG_FIRSTHDR(&header);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(c), &passed, sizeof passed);
        }
        if (sendmsg(fd, &header, MSG_NOSIGNAL) != ssize_t(sizeof m)) throw std::runtime_error("the other process is gone");
    }

    Message hear(int* passed = nullptr) {
        Message m;
        iovec part = {&m, sizeof m};
        alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))] = {};
        msghdr header = {};
        header.msg_iov = &part;
        header.msg_iovlen = 1;
        header.msg_control = room;
        header.msg_controllen = sizeof room;
        if (recvmsg(fd, &header, MSG_WAITALL | MSG_CMSG_CLOEXEC) != ssize_t(sizeof m))
            throw std::runtime_error("no answer from the other process");
        if (passed) {
            *passed = -1;
            if (cmsghdr* c = CMSG_FIRSTHDR(&header)) memcpy(passed, CMSG_DATA(c), sizeof *passed);
            if (*passed < 0) throw std::runtime_error("no descriptor came");
        }
        return m;
    }

    /// Waits for its end.
    int end() {
        close(fd);
        int status = -1;
        waitpid(pid, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

    pid_t pid = 0;
    int fd;
};

static Message message(const char* what, u64 bytes = 0, u64 seed = 0) {
    Message m = {};
    snprintf(m.what, sizeof m.what, "%s", what);
    m.bytes = bytes;
    m.seed = seed;
    return m;
}

static u64 sumOf(u64 bytes, u64 seed) {
    return foldHost(bytes, [=](u64 i) { return mix(seed + i); });
}

// Legacy handles and events

static int childLegacy(Peer& parent) {
    for (;;) {
        Message m = parent.hear();
        if (!strcmp(m.what, "end")) return 0;
        void* p = nullptr;
        cudaError_t e = cudaIpcOpenMemHandle(&p, m.memory, cudaIpcMemLazyEnablePeerAccess);
        if (e != cudaSuccess) {
            (void)cudaGetLastError();
            parent.say(message("refused", u64(e)));
            continue;
        }
        if (!strcmp(m.what, "behind")) {
            // What the parent's stream still writes is waited for through its event.
            cudaEvent_t event;
            MUST(cudaIpcOpenEventHandle(&event, m.event));
            MUST(cudaStreamWaitEvent(0, event, 0));
            m.sum = fold(p, m.bytes);
            MUST(cudaEventDestroy(event));
        } else {
            m.sum = fold(p, m.bytes);
            // Into memory of our own and back, and a kernel over it.
            void* own;
            MUST(cudaMalloc(&own, m.bytes));
            MUST(cudaMemcpy(own, p, m.bytes, cudaMemcpyDeviceToDevice));
            stir(own, m.bytes, 1);
            MUST(cudaMemcpy(p, own, m.bytes, cudaMemcpyDeviceToDevice));
            stir(p, m.bytes, 2);
            MUST(cudaDeviceSynchronize());
            MUST(cudaFree(own));
        }
        snprintf(m.what, sizeof m.what, "done");
        parent.say(m);
        // Kept until told, so that two children have it open at once.
        parent.hear();
        MUST(cudaIpcCloseMemHandle(p));
        parent.say(message("closed"));
    }
}

static void legacy(Section& s) {
    Ballast ballast(s, 48);
    Peer children[2] = {Peer::start("legacy"), Peer::start("legacy")};
    for (u64 bytes : {40 * MiB, 24 * MiB + 4096, 2 * MiB, 64 * KiB}) {
        u64* p;
        MUST(cudaMalloc(reinterpret_cast<void**>(&p), bytes));
        fill(p, bytes, bytes);
        MUST(cudaDeviceSynchronize());
        Message m = message("open", bytes, bytes);
        MUST(cudaIpcGetMemHandle(&m.memory, p));
        for (u64 c = 0; c < 2; c++) {
            children[c].say(m);
            Message answer = children[c].hear();
            if (!strcmp(answer.what, "refused")) throw std::runtime_error("a child could not open: " + std::to_string(answer.bytes));
            auto word = [=](u64 i) { return c ? mix(mix(mix(bytes + i) + 1) + 2) : mix(bytes + i); };
            s.expect(answer.sum == foldHost(bytes, word), "child " + std::to_string(c) + " sees other words");
            s.take(answer.sum);
        }
        auto twice = [=](u64 i) { return mix(mix(mix(mix(mix(bytes + i) + 1) + 2) + 1) + 2); };
        s.words(p, bytes, twice, "what both children wrote");
        for (auto& child : children) {
            child.say(message("close"));
            child.hear();
        }
        s.words(p, bytes, twice, "after both children closed it");
        MUST(cudaFree(p));
    }
    // An event that another process waits for.
    u64* p;
    MUST(cudaMalloc(reinterpret_cast<void**>(&p), 24 * MiB));
    Message m = message("behind", 24 * MiB);
    cudaEvent_t event;
    MUST(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventInterprocess));
    MUST(cudaIpcGetEventHandle(&m.event, event));
    MUST(cudaIpcGetMemHandle(&m.memory, p));
    cudaStream_t stream;
    MUST(cudaStreamCreate(&stream));
    spin(100, stream);
    fill(p, 24 * MiB, 9, stream);
    MUST(cudaEventRecord(event, stream));
    children[0].say(m);
    Message answer = children[0].hear();
    s.expect(!strcmp(answer.what, "done") && answer.sum == sumOf(24 * MiB, 9), "a child did not wait for the event");
    children[0].say(message("close"));
    children[0].hear();
    for (auto& child : children) {
        child.say(message("end"));
        s.expect(child.end() == 0, "a child ended badly");
    }
    MUST(cudaEventDestroy(event));
    MUST(cudaStreamDestroy(stream));
    MUST(cudaFree(p));
    // What is no allocation has no handle.
    s.outcome(cudaIpcGetMemHandle(&m.memory, reinterpret_cast<void*>(uintptr_t(0x12345678))));
    ballast.done();
}

/// A process that shares nothing but the handle. It may be refused; what it may not is see other words.
static void outside(Section& s) {
    Ballast ballast(s, 48);
    Peer child = Peer::start("legacy", true);
    u64* p;
    MUST(cudaMalloc(reinterpret_cast<void**>(&p), 40 * MiB));
    fill(p, 40 * MiB, 4);
    MUST(cudaDeviceSynchronize());
    Message m = message("open", 40 * MiB);
    cudaError_t e = cudaIpcGetMemHandle(&m.memory, p);
    if (e == cudaSuccess) {
        child.say(m);
        Message answer = child.hear();
        if (!strcmp(answer.what, "refused")) {
            printf("note: the process outside was refused with error %llu\n", answer.bytes);
            s.filled(p, 40 * MiB, 4, "memory that was refused to another process");
        } else {
            printf("note: the process outside opened it\n");
            s.expect(answer.sum == sumOf(40 * MiB, 4), "a process outside sees other words");
            child.say(message("close"));
            child.hear();
        }
    } else {
        printf("note: no handle for it: %s\n", cudaGetErrorName(e));
        (void)cudaGetLastError();
    }
    child.say(message("end"));
    s.expect(child.end() == 0, "the child ended badly");
    MUST(cudaFree(p));
    ballast.done();
    s.digest = 0;  // both are right
}

// Exported handles

static CUdeviceptr mapped(CUmemGenericAllocationHandle h, size_t bytes) {
    CUdeviceptr at;
    CU(cuMemAddressReserve(&at, bytes, 0, 0, 0));
    CU(cuMemMap(at, bytes, 0, h, 0));
    CUmemAccessDesc access = {};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CU(cuMemSetAccess(at, bytes, &access, 1));
    return at;
}

static void unmapped(CUdeviceptr at, size_t bytes, CUmemGenericAllocationHandle h) {
    MUST(cudaDeviceSynchronize());
    CU(cuMemUnmap(at, bytes));
    CU(cuMemAddressFree(at, bytes));
    CU(cuMemRelease(h));
}

static int childVmm(Peer& parent) {
    MUST(cudaFree(nullptr));
    int fd;
    Message m = parent.hear(&fd);
    CUmemGenericAllocationHandle h;
    CU(cuMemImportFromShareableHandle(&h, reinterpret_cast<void*>(uintptr_t(fd)), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    CUdeviceptr at = mapped(h, m.bytes);
    void* p = reinterpret_cast<void*>(at);
    m.sum = fold(p, m.bytes);
    stir(p, m.bytes, 3);
    unmapped(at, m.bytes, h);
    parent.say(m);
    return 0;
}

static void vmm(Section& s) {
    Ballast ballast(s, 32);
    const size_t bytes = 16 * MiB;
    Peer child = Peer::start("vmm");
    MUST(cudaFree(nullptr));
    CUmemAllocationProp p = {};
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    CUmemGenericAllocationHandle h;
    CU(cuMemCreate(&h, bytes, &p, 0));
    CUdeviceptr at = mapped(h, bytes);
    void* memory = reinterpret_cast<void*>(at);
    fill(memory, bytes, 12);
    MUST(cudaDeviceSynchronize());
    int fd = -1;
    CU(cuMemExportToShareableHandle(&fd, h, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    child.say(message("import", bytes), fd);
    close(fd);
    Message answer = child.hear();
    s.expect(answer.sum == sumOf(bytes, 12), "the child sees other words");
    s.take(answer.sum);
    s.expect(child.end() == 0, "the child ended badly");
    s.words(memory, bytes, [](u64 i) { return mix(mix(12 + i) + 3); }, "what the child wrote");
    unmapped(at, bytes, h);
    ballast.done();
}

// Exported pools

static int childPool(Peer& parent) {
    MUST(cudaFree(nullptr));
    int fd;
    Message m = parent.hear(&fd);
    cudaMemPool_t pool;
    MUST(cudaMemPoolImportFromShareableHandle(&pool, reinterpret_cast<void*>(uintptr_t(fd)),
                                              cudaMemHandleTypePosixFileDescriptor, 0));
    close(fd);
    cudaMemAccessDesc access = {};
    access.location.type = cudaMemLocationTypeDevice;
    access.flags = cudaMemAccessFlagsProtReadWrite;
    cudaMemAccessFlags has = cudaMemAccessFlagsProtNone;
    MUST(cudaMemPoolGetAccess(&has, pool, &access.location));
    if (has != cudaMemAccessFlagsProtReadWrite) MUST(cudaMemPoolSetAccess(pool, &access, 1));
    void* p;
    MUST(cudaMemPoolImportPointer(&p, pool, &m.pointer));
    m.sum = fold(p, m.bytes);
    stir(p, m.bytes, 5);
    MUST(cudaStreamSynchronize(0));
    // Freed by the importer first, then by the exporter.
    MUST(cudaFreeAsync(p, 0));
    MUST(cudaStreamSynchronize(0));
    MUST(cudaMemPoolDestroy(pool));
    parent.say(m);
    return 0;
}

static void pool(Section& s) {
    int kinds = 0;
    MUST(cudaDeviceGetAttribute(&kinds, cudaDevAttrMemoryPoolSupportedHandleTypes, 0));
    if (!(kinds & cudaMemHandleTypePosixFileDescriptor)) throw Unsupported("pools cannot be exported here");
    Ballast ballast(s, 16);
    const size_t bytes = 16 * MiB;
    Peer child = Peer::start("pool");
    cudaMemPoolProps props = {};
    props.allocType = cudaMemAllocationTypePinned;
    props.location.type = cudaMemLocationTypeDevice;
    props.handleTypes = cudaMemHandleTypePosixFileDescriptor;
    cudaMemPool_t pool;
    MUST(cudaMemPoolCreate(&pool, &props));
    int fd = -1;
    MUST(cudaMemPoolExportToShareableHandle(&fd, pool, cudaMemHandleTypePosixFileDescriptor, 0));
    void* p;
    MUST(cudaMallocFromPoolAsync(&p, bytes, pool, 0));
    fill(p, bytes, 31);
    MUST(cudaStreamSynchronize(0));
    Message m = message("import", bytes);
    MUST(cudaMemPoolExportPointer(&m.pointer, p));
    child.say(m, fd);
    close(fd);
    Message answer = child.hear();
    s.expect(answer.sum == sumOf(bytes, 31), "the child sees other words");
    s.take(answer.sum);
    s.expect(child.end() == 0, "the child ended badly");
    s.words(p, bytes, [](u64 i) { return mix(mix(31 + i) + 5); }, "what the child wrote");
    MUST(cudaFreeAsync(p, 0));
    MUST(cudaStreamSynchronize(0));
    MUST(cudaMemPoolDestroy(pool));
    ballast.done();
}

int main(int argc, char** argv) {
    if (argc == 4 && !strcmp(argv[1], "child")) {
        Peer parent(atoi(argv[3]));
        std::string mode = argv[2];
        try {
            return mode == "legacy" ? childLegacy(parent) : mode == "vmm" ? childVmm(parent) : childPool(parent);
        } catch (const std::exception& e) {
            printf("FAILED: the child, %s: %s\n", argv[2], e.what());
            return 1;
        }
    }
    return sections({{"ipc_legacy", legacy}, {"ipc_outside", outside}, {"ipc_vmm", vmm}, {"ipc_pool", pool}}, argc, argv);
}
