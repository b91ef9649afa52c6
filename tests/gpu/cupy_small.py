"""A small CuPy program: element-wise work, a kernel of its own, scan, sort, unique and a matrix product.

All of it is exact (integers, or small integers in float32), so the order of additions cannot change a bit.
"""

import argparse
import hashlib
import json
import time

import cupy as cp

parser = argparse.ArgumentParser()
parser.add_argument("--log2", type=int, default=27, help="elements of the large arrays")
args = parser.parse_args()
n = 1 << args.log2
t = time.perf_counter()
digest = hashlib.sha256()


def take(name, array):
    data = cp.asnumpy(array)
    digest.update(data.tobytes())
    print(f"{name}: {hashlib.sha256(data.tobytes()).hexdigest()[:16]}, {array.nbytes >> 20} MiB")


mix = cp.RawKernel(
    r"""extern "C" __global__ void mix(unsigned long long* p, unsigned long long n) {
        unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
        for (; i < n; i += (unsigned long long)gridDim.x * blockDim.x) {
            unsigned long long x = p[i] + 0x9E3779B97F4A7C15ull;
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
            p[i] = x ^ (x >> 27);
        }
    }""",
    "mix",
)

arrays = []
for k in range(4):
    a = cp.arange(n, dtype=cp.uint64)
    a += cp.uint64(k * 1000003)
    mix((1024,), (256,), (a, cp.uint64(n)))
    arrays.append(a)
total = arrays[0] ^ arrays[3]
total += arrays[1] * cp.uint64(3)
total -= arrays[2] >> cp.uint64(7)
take("element-wise", total[:: 1 << 6])
take("scan", cp.cumsum(total)[-(1 << 20) :])
take("reductions", cp.stack([a.sum() for a in arrays] + [a.max() for a in arrays]))
part = total[: n >> 3].copy()
part.sort()
take("sort", part[:: 1 << 4])
take("unique", cp.unique(arrays[3][: n >> 4] & cp.uint64(0xFFFFF)))
size = 4096
m = (cp.arange(size * size, dtype=cp.int64) * 7919 % 5 - 2).astype(cp.float32).reshape(size, size)
take("matrix product", m @ m.T)
take("gather", arrays[0][(arrays[1][: n >> 5] % cp.uint64(n)).astype(cp.int64)])
cp.cuda.Device().synchronize()
print(
    "RESULT "
    + json.dumps(
        {
            "ok": True,
            "digest": digest.hexdigest(),
            "seconds": round(time.perf_counter() - t, 2),
            "pool_gib": round(cp.get_default_memory_pool().total_bytes() / 2**30, 2),
        }
    ),
    flush=True,
)
