"""A small JAX program: random bits, element-wise work, scan, sort, gather and a matrix product; exact throughout."""

import argparse
import hashlib
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--log2", type=int, default=28, help="elements of the large arrays")
args = parser.parse_args()
n = 1 << args.log2
t = time.perf_counter()
digest = hashlib.sha256()


def take(name, array):
    data = np.asarray(array)
    digest.update(data.tobytes())
    print(f"{name}: {hashlib.sha256(data.tobytes()).hexdigest()[:16]}, {data.nbytes >> 20} MiB")


@jax.jit
def make(k):
    x = jnp.arange(n, dtype=jnp.uint32) * jnp.uint32(2654435761) + k
    x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA6B)
    return x ^ (x >> 13)


@jax.jit
def blend(a, b, c):
    return (a ^ b) * jnp.uint32(3) + (c >> 7)


arrays = [make(jnp.uint32(k * 1000003)) for k in range(4)]
total = blend(arrays[0], arrays[1], arrays[3])
take("element-wise", total[:: 1 << 6])
take("reductions", jnp.stack([a.sum(dtype=jnp.uint32) for a in arrays] + [a.max() for a in arrays]))
take("random bits", jax.random.bits(jax.random.key(5), (1 << 20,), dtype=jnp.uint32))
take("sort", jnp.sort(total[: min(n, 1 << 22)]))
take("scan", jnp.cumsum(arrays[2][: n >> 6], dtype=jnp.uint32))
take("gather", arrays[3][arrays[1][: n >> 6] % jnp.uint32(n)])
size = 4096 if n >= 1 << 24 else 512
m = (jnp.arange(size * size, dtype=jnp.uint32) % 5).astype(jnp.float32).reshape(size, size) - 2
take("matrix product", jnp.dot(m, m.T, precision=jax.lax.Precision.HIGHEST))
grad = jax.jit(jax.grad(lambda w: ((w @ m) ** 2).sum() / 2))(jnp.ones((8, size), jnp.float32))
take("gradient", grad)
device = jax.devices()[0]
try:
    stats = device.memory_stats() or {}
except Exception:  # not on every platform
    stats = {}
print(
    "RESULT "
    + json.dumps(
        {
            "ok": device.platform in ("gpu", "cuda") or args.log2 < 24,
            "digest": digest.hexdigest(),
            "platform": device.platform,
            "seconds": round(time.perf_counter() - t, 2),
            "peak_gib": round(stats.get("peak_bytes_in_use", 0) / 2**30, 2),
            "pool_gib": round(stats.get("pool_bytes", stats.get("bytes_limit", 0)) / 2**30, 2),
        }
    ),
    flush=True,
)
