"""torch.compile, with and without CUDA graphs, and kernels written for Triton. Needs a C compiler on the GPU machine."""

import shutil
import sys

from model import DEVICE, deterministic, sha256, synchronize

import torch
import torch.nn.functional as F
from torch import nn

import sections

MIB = 1 << 20
ON_GPU = DEVICE == "cuda"


def take(digest, *tensors):
    synchronize()
    digest.update(sha256(tensors).encode())


def compiler():
    if not any(shutil.which(c) for c in ("cc", "gcc", "clang")):
        raise sections.Unsupported("no C compiler here")


def randn(*shape, generator):
    return torch.empty(*shape, device=DEVICE).normal_(0, 1, generator=generator)


def triton_kernels(digest):
    compiler()
    if not ON_GPU:
        raise sections.Unsupported("Triton needs a GPU")
    import triton_kernels as kernels

    n = 12 * MIB + 77
    a = torch.arange(n, dtype=torch.int64, device=DEVICE)
    for _ in range(3):
        b = kernels.blend(a, a * 3, 5)
        if not torch.equal(b, (a ^ (a * 3)) * 5 + a):
            raise RuntimeError("a Triton kernel computed something else")
        take(digest, b)
    x = (torch.arange(1024 * 1536, device=DEVICE) % 13 - 6).to(torch.float16).view(1024, 1536)
    y = (torch.arange(1536 * 2048, device=DEVICE) % 11 - 5).to(torch.float16).view(1536, 2048)
    z = kernels.product(x, y)
    if not torch.equal(z, (x.double() @ y.double()).float()):
        raise RuntimeError("a Triton matrix product is wrong")
    take(digest, z)


def compiled(digest, mode=None):
    compiler()
    generator = torch.Generator(device=DEVICE).manual_seed(8)
    torch.manual_seed(8)
    net = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.LayerNorm(4096), nn.Linear(4096, 1024)).to(DEVICE)

    def loss_of(x, y):
        h = net(x)
        return F.mse_loss(torch.softmax(h, -1) * 10 + h.sin(), y)

    fast = torch.compile(loss_of, mode=mode, dynamic=False)
    x, y = randn(512, 1024, generator=generator), randn(512, 1024, generator=generator)
    for _ in range(6):
        if mode:
            torch.compiler.cudagraph_mark_step_begin()
        loss = fast(x, y)
        loss.backward()
        take(digest, loss, *(p.grad for p in net.parameters()))
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    take(digest, *net.parameters())


def compiled_graphs(digest):
    if not ON_GPU:
        raise sections.Unsupported("CUDA graphs need a GPU")
    if torch.cuda.get_allocator_backend() == "cudaMallocAsync":
        raise sections.Unsupported("cudaMallocAsync does not support checkPoolLiveAllocations")
    compiled(digest, "reduce-overhead")


if __name__ == "__main__":
    deterministic()
    ballast = torch.ones((192 if ON_GPU else 1) * MIB // 8, dtype=torch.int64, device=DEVICE)
    status = sections.run({"triton": triton_kernels, "compiled": compiled, "compiled_graphs": compiled_graphs}, sys.argv[1:])
    if int(ballast.sum()) != ballast.numel():
        print("FAILED: the memory beside it has changed")
        status = 1
    sys.exit(status)
