"""Numba: kernels, shared memory, streams, pinned and mapped arrays, atomics. Exact throughout."""

import sys

import numpy as np

# Names that NumPy gave up and some versions of Numba still ask for.
for old, new in (("row_stack", "vstack"), ("in1d", "isin"), ("trapz", "trapezoid")):
    if not hasattr(np, old) and hasattr(np, new):
        setattr(np, old, getattr(np, new))

from numba import cuda

import sections

N = 1 << (22 if len(sys.argv) < 2 else int(sys.argv[1]))


@cuda.jit
def blend(a, b, out):
    i = cuda.grid(1)
    while i < out.size:
        out[i] = (a[i] ^ b[i]) * 3 + a[i]
        i += cuda.gridsize(1)


@cuda.jit
def reverse(a, out):
    tile = cuda.shared.array(256, np.int64)
    base = cuda.blockIdx.x * 256
    tile[cuda.threadIdx.x] = a[base + cuda.threadIdx.x]
    cuda.syncthreads()
    out[base + cuda.threadIdx.x] = tile[255 - cuda.threadIdx.x]


@cuda.jit
def count(a, out):
    i = cuda.grid(1)
    while i < a.size:
        cuda.atomic.add(out, a[i] % out.size, 1)
        i += cuda.gridsize(1)


def take(digest, *arrays):
    for array in arrays:
        digest.update(array.copy_to_host().tobytes() if hasattr(array, "copy_to_host") else array.tobytes())


def kernels(digest):
    host = np.arange(N, dtype=np.int64) * 48271 % 1000003
    held = []
    for k in range(5):
        a, b = cuda.to_device(host + k), cuda.to_device(host * k)
        out = cuda.device_array(N, np.int64)
        blend[64, 128](a, b, out)
        expected = ((host + k) ^ (host * k)) * 3 + host + k
        if not np.array_equal(out.copy_to_host(), expected):
            raise RuntimeError("a kernel computed something else")
        turned = cuda.device_array(N, np.int64)
        reverse[N // 256, 256](out, turned)
        bins = cuda.to_device(np.zeros(1009, np.int64))
        count[64, 128](turned, bins)
        take(digest, turned, bins)
        held.append(out)
    take(digest, *held)


def streams(digest):
    lanes = [cuda.stream() for _ in range(3)]
    pinned = [cuda.pinned_array(N, np.int64) for _ in lanes]
    for i, (lane, p) in enumerate(zip(lanes, pinned)):
        p[:] = np.arange(N) + i
        a = cuda.to_device(p, stream=lane)
        out = cuda.device_array(N, np.int64, stream=lane)
        blend[64, 128, lane](a, a, out)
        out.copy_to_host(p, stream=lane)
    for lane in lanes:
        lane.synchronize()
    take(digest, *pinned)
    mapped = cuda.mapped_array(N, np.int64)
    mapped[:] = np.arange(N)
    a = cuda.to_device(np.arange(N)[::-1].copy())
    blend[64, 128](a, mapped, mapped)
    cuda.synchronize()
    take(digest, np.array(mapped))


def fitting(section):
    """Numba and NumPy are not always of versions that go together."""

    def run(digest):
        try:
            section(digest)
        except AttributeError as e:
            if "module 'numpy'" not in str(e):
                raise
            raise sections.Unsupported(f"this Numba does not fit this NumPy: {e}") from e

    return run


ballast = cuda.to_device(np.full(N * 2, 7, np.int64))
status = sections.run({s.__name__: fitting(s) for s in (kernels, streams)}, [])
if not (ballast.copy_to_host() == 7).all():
    print("FAILED: the memory beside it has changed")
    status = 1
sys.exit(status)
