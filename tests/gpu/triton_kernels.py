"""Two kernels for torch_compiled.py: element-wise on integers, and a matrix product of small integers (exact)."""

import torch
import triton
import triton.language as tl


@triton.jit
def blend_kernel(a, b, out, n, k, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(a + at, mask=at < n)
    y = tl.load(b + at, mask=at < n)
    tl.store(out + at, (x ^ y) * k + x, mask=at < n)


def blend(a, b, k):
    out = torch.empty_like(a)
    blend_kernel[(triton.cdiv(a.numel(), 1024),)](a, b, out, a.numel(), k, BLOCK=1024)
    return out


@triton.jit
def product_kernel(x, y, z, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        a = tl.load(x + rows[:, None] * K + (k + inner)[None, :])
        b = tl.load(y + (k + inner)[:, None] * N + columns[None, :])
        total = tl.dot(a, b, total)
    tl.store(z + rows[:, None] * N + columns[None, :], total)


def product(x, y):
    """Float32 product of float16 matrices whose sides are multiples of 64."""
    (m, k), (_, n) = x.shape, y.shape
    z = torch.empty(m, n, device=x.device, dtype=torch.float32)
    product_kernel[(m // 64, n // 64)](x, y, z, n, k, BM=64, BN=64, BK=32)
    return z
