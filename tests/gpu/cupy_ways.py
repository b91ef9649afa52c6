"""CuPy with one of its memory pools: kernels, libraries, streams, graphs, pinned memory. Exact throughout.

    cupy_ways.py --pool default|async|own|none [SECTION...]
"""

import argparse
import sys

import cupy as cp
import numpy as np

import sections

parser = argparse.ArgumentParser()
parser.add_argument("--pool", choices=("default", "async", "own", "none"), default="default")
parser.add_argument("sections", nargs="*")
args = parser.parse_args()
N = 1 << 22
pool = {
    "default": cp.get_default_memory_pool,
    "async": cp.cuda.MemoryAsyncPool,
    "own": cp.cuda.MemoryPool,
    "none": lambda: None,
}[args.pool]()
cp.cuda.set_allocator(pool.malloc if pool is not None else None)

mix = cp.RawKernel(
    r"""extern "C" __global__ void mix(unsigned long long* p, unsigned long long n, unsigned long long v) {
        unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
        for (; i < n; i += (unsigned long long)gridDim.x * blockDim.x) {
            unsigned long long x = p[i] + v;
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
            p[i] = x ^ (x >> 27);
        }
    }""",
    "mix",
)


def take(digest, *arrays):
    for array in arrays:
        digest.update(cp.asnumpy(array).tobytes())


def arrays(digest):
    held = []
    for k in range(8):
        a = cp.arange(N + 1000 * k, dtype=cp.uint64)
        mix((256,), (256,), (a, cp.uint64(a.size), cp.uint64(k)))
        held.append(a)
        if k % 3 == 2:
            held.pop(0)
    total = sum(a[:N] for a in held)
    take(digest, total, cp.sort(total)[::3], cp.cumsum(total), cp.unique(total % cp.uint64(9973)),
         total[(held[0][: N // 4] % cp.uint64(N)).astype(cp.int64)], cp.bincount((total % cp.uint64(1009)).astype(cp.int64)))
    # The pool gives back and takes again.
    del held, total
    if pool is not None and hasattr(pool, "free_all_blocks"):
        pool.free_all_blocks()
    for size in (1000, 70_000, 3_000_000, 9_000_000):
        a = cp.full(size, size, dtype=cp.uint64)
        mix((64,), (256,), (a, cp.uint64(size), cp.uint64(1)))
        take(digest, a)


def libraries(digest):
    m = (cp.arange(2048 * 1536) * 7919 % 5 - 2).astype(cp.float32).reshape(2048, 1536)
    take(digest, m @ m.T, cp.einsum("ij,kj->ik", m[:256], m[:256]))
    wide = (cp.arange(1024 * 1024) % 7 - 3).astype(cp.float64).reshape(1024, 1024)
    take(digest, wide @ wide)
    try:
        take(digest, cp.rint(cp.fft.ifft2(cp.fft.fft2(wide)).real))
    except ImportError as e:
        print(f"no FFT: {e}")
    try:
        take(digest, cp.random.RandomState(5).randint(0, 1 << 30, size=N))
    except ImportError as e:
        print(f"no random numbers: {e}")


def streams(digest):
    lanes = [cp.cuda.Stream(non_blocking=True) for _ in range(4)]
    memory = cp.cuda.alloc_pinned_memory(4 * N * 8)
    host = np.frombuffer(memory, np.uint64, 4 * N).reshape(4, N)
    host[:] = np.arange(N, dtype=np.uint64)
    results = []
    for i, lane in enumerate(lanes):
        with lane:
            a = cp.empty(N, cp.uint64)
            a.set(host[i], stream=lane)
            mix((128,), (256,), (a, cp.uint64(N), cp.uint64(i)))
            b = a * cp.uint64(3)  # a goes while its stream may still work on it
            mix((128,), (256,), (b, cp.uint64(N), cp.uint64(9)))
            b.get(out=host[i], stream=lane, blocking=False)
            results.append(b)
    for lane in lanes:
        lane.synchronize()
    digest.update(host.tobytes())
    take(digest, sum(results))


def graph(digest):
    stream = cp.cuda.Stream(non_blocking=True)
    a, b = cp.zeros(N, cp.uint64), cp.zeros(N, cp.uint64)
    cp.cuda.Device().synchronize()
    with stream:
        mix((128,), (256,), (a, cp.uint64(N), cp.uint64(1)))
        stream.synchronize()
        stream.begin_capture()
        mix((128,), (256,), (a, cp.uint64(N), cp.uint64(2)))
        b.data.copy_from_device_async(a.data, a.nbytes, stream)
        mix((128,), (256,), (b, cp.uint64(N), cp.uint64(3)))
        captured = stream.end_capture()
        for _ in range(4):
            captured.launch(stream)
            stream.synchronize()
            extra = cp.arange(N // 2, dtype=cp.uint64)
            take(digest, a, b, extra)


ballast = cp.full(128 * (1 << 20) // 8, 7, dtype=cp.uint64)
status = sections.run({s.__name__: s for s in (arrays, libraries, streams, graph)}, args.sections, pool=args.pool)
if int(ballast.sum()) != 7 * ballast.size:
    print("FAILED: the memory beside it has changed")
    status = 1
sys.exit(status)
