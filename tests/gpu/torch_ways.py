"""PyTorch in the ways that programs use it: training a transformer, CUDA graphs, cuDNN, experts by grouped GEMM, fused
AdamW, several streams, a DataLoader with pinned memory. One process, a section each; run once per allocator.

    torch_ways.py [SECTION...]
"""

import os
import sys

from model import DEVICE, deterministic, sha256, synchronize

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sections

ON_GPU = DEVICE == "cuda"
MIB = 1 << 20


def take(digest, *tensors):
    synchronize()
    digest.update(sha256(tensors).encode())


def seeded(seed):
    torch.manual_seed(seed)
    return torch.Generator(device=DEVICE).manual_seed(seed)


def randn(*shape, generator, dtype=torch.float32, std=1.0):
    return torch.empty(*shape, device=DEVICE, dtype=dtype).normal_(0, std, generator=generator)


def transformer(digest):
    """Forward, backward and a step, with dropout; flash attention forward without gradients."""
    generator = seeded(1)
    width = 1024 if ON_GPU else 64
    layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Embedding(8192, width), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(width, 8192))
    model = model.to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    ids = torch.arange(4 * 128, device=DEVICE).view(4, 128) * 31 % 8192
    for _ in range(3):
        with sdpa_kernel(SDPBackend.MATH):
            loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten().flip(0))
            loss.backward()
        optimizer.step()
        take(digest, loss, model[0].weight.grad[:64])
        optimizer.zero_grad(set_to_none=True)
    take(digest, *model.parameters())
    q, k, v = (randn(2, 8, 512, 64, generator=generator, dtype=torch.bfloat16) for _ in range(3))
    with torch.no_grad(), sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        take(digest, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    model.eval()
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        take(digest, model(ids[:, :64]))


def graphs(digest):
    """Captured training steps and inference: replayed with other inputs, with eager work in between."""
    if not ON_GPU:
        raise sections.Unsupported("CUDA graphs need a GPU")
    generator = seeded(2)
    net = nn.Sequential(nn.Linear(2048, 4096), nn.GELU(), nn.Dropout(0.1), nn.Linear(4096, 2048)).to(DEVICE)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True, capturable=True)
    x, y = randn(256, 2048, generator=generator), randn(256, 2048, generator=generator)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = step()
    held = []
    for i in range(5):
        x.copy_(randn(256, 2048, generator=generator))
        graph.replay()
        take(digest, loss)
        # Eager allocations, some kept, some given back, while the graph's addresses must stay what they are.
        held.append(randn((8 + i) * MIB // 4, generator=generator))
        if i % 2:
            held.pop(0)
            torch.cuda.empty_cache()
    take(digest, *net.parameters(), *held)
    # Two graphs that share a pool, and one whose result is used by the other.
    pool = torch.cuda.graph_pool_handle()
    a = randn(1024, 2048, generator=generator)
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.no_grad():
        with torch.cuda.graph(first, pool=pool):
            b = net[0](a).relu()
        with torch.cuda.graph(second, pool=pool):
            c = torch.sort(b, dim=1).values.sum(0) + b.amax(0)
        for i in range(3):
            a.copy_(randn(1024, 2048, generator=generator))
            first.replay()
            second.replay()
            take(digest, b, c)
    del first, second, graph, b, c, loss
    # Callables that torch graphs by itself, forward and backward.
    block = nn.Sequential(nn.Linear(1024, 1024), nn.SiLU(), nn.Linear(1024, 1024)).to(DEVICE)
    sample = randn(128, 1024, generator=generator).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(block, (sample,))
    for _ in range(3):
        z = randn(128, 1024, generator=generator).requires_grad_()
        graphed(z).square().sum().backward()
        take(digest, z.grad, *(p.grad for p in block.parameters()))


class Residual(nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.a = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(channels, out, 1, stride, bias=False)
        self.na, self.nb = nn.BatchNorm2d(out), nn.BatchNorm2d(out)

    def forward(self, x):
        return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + self.skip(x))


def convolutions(digest):
    """A small residual network, trained with cuDNN in two layouts, deterministic algorithms only."""
    torch.backends.cudnn.deterministic = True
    for layout, dtype in ((torch.contiguous_format, None), (torch.channels_last, torch.bfloat16)):
        generator = seeded(3)
        sizes = ((64, 128, 2), (128, 256, 2), (256, 512, 2)) if ON_GPU else ((16, 16, 2),)
        width = sizes[0][0]
        net = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2),
                            *(Residual(*s) for s in sizes), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1][1], 100))
        net = net.to(DEVICE, memory_format=layout)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        for _ in range(3):
            x = randn(32 if ON_GPU else 2, 3, 128, 128, generator=generator).to(memory_format=layout)
            with torch.autocast(DEVICE, dtype=dtype, enabled=dtype is not None):
                loss = F.cross_entropy(net(x), torch.arange(len(x), device=DEVICE) % 100)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            take(digest, loss)
        take(digest, *net.parameters(), *net.buffers())


def experts(digest):
    """A mixture of experts: routing, grouped GEMM over a table of pointers in device memory, backward."""
    generator = seeded(4)
    count, width, hidden, tokens = (8, 1024, 2048, 2048) if ON_GPU else (4, 64, 128, 64)
    up = randn(count, hidden, width, generator=generator, dtype=torch.bfloat16, std=0.02).requires_grad_()
    down = randn(count, width, hidden, generator=generator, dtype=torch.bfloat16, std=0.02).requires_grad_()
    x = randn(tokens, width, generator=generator, dtype=torch.bfloat16)
    # Sixteen tokens at a time, so that every group has a length that the gradient's kernel takes.
    expert = torch.randint(count, (tokens // 16,), device=DEVICE, generator=generator).repeat_interleave(16)
    expert = expert.view(-1, 16).t().reshape(-1)
    order = torch.argsort(expert, stable=True)
    ends = torch.bincount(expert, minlength=count).cumsum(0).to(torch.int32)

    def grouped(rows, weights):
        return torch._grouped_mm(rows, weights.transpose(-2, -1), offs=ends)

    def looped(rows, weights):
        starts = [0, *ends.tolist()]
        return torch.cat([rows[a:b] @ w.T for a, b, w in zip(starts, starts[1:], weights)])

    product = looped
    if hasattr(torch, "_grouped_mm"):
        try:
            with torch.no_grad():
                grouped(x[order], up.detach())
            product = grouped
        except RuntimeError as e:
            print(f"no grouped GEMM here, a loop instead: {e}")
    digest.update(product.__name__.encode())
    print(f"experts: {product.__name__}")
    for _ in range(2):
        y = product(F.silu(product(x[order], up)), down)
        y = torch.zeros_like(y).index_copy(0, order, y)
        y.float().square().mean().backward()
        take(digest, y, up.grad, down.grad)
        with torch.no_grad():
            for w in (up, down):
                w -= 100 * w.grad
                w.grad = None
    # Batched factorisation: pointer tables again.
    m = randn(64, 64, 64, generator=generator) + 64 * torch.eye(64, device=DEVICE)
    take(digest, *torch.linalg.lu_factor(m), torch.linalg.solve(m, m.transpose(1, 2).contiguous()))


def adamw(digest):
    """Fused and foreach AdamW over many tensors, gradient clipping."""
    for options in (dict(fused=True), dict(foreach=True)):
        generator = seeded(5)
        parameters = [nn.Parameter(randn(*shape, generator=generator))
                      for shape in [(1024, 1024)] * 12 + [(513, 77)] * 20 + [(4096, 2048)] + [(7,)] * 20]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, **options)
        for _ in range(3):
            for p in parameters:
                p.grad = randn(*p.shape, generator=generator)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        take(digest, *parameters, *(s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")))


def streams(digest):
    """Side streams, record_stream, pinned copies in both directions, events; sorts, scans and indexing of integers."""
    generator = seeded(6)
    lanes = [torch.cuda.Stream() for _ in range(4)] if ON_GPU else [None] * 4
    pinned = torch.empty(4, 2 * MIB, dtype=torch.int64, pin_memory=ON_GPU)
    source = torch.arange(2 * MIB, dtype=torch.int64, device=DEVICE) * 2654435761 % 1000003
    synchronize()
    for i, lane in enumerate(lanes):
        with torch.cuda.stream(lane):
            x = source * (i + 1)
            y = torch.sort(x % 65537).values.cumsum(0)
            del x
            pinned[i].copy_(y, non_blocking=True)
            if ON_GPU:
                y.record_stream(torch.cuda.current_stream())
            del y
    synchronize()
    take(digest, pinned)
    back = [pinned[i].to(DEVICE, non_blocking=True) for i in range(4)]
    total = torch.stack(back).sum(0)
    take(digest, total, torch.unique(total % 5003), torch.topk(total, 1000).values,
         source[torch.randint(len(source), (MIB,), device=DEVICE, generator=generator)],
         torch.zeros(1009, dtype=torch.int64, device=DEVICE).index_add(0, source % 1009, source),
         torch.zeros(1009, dtype=torch.int64, device=DEVICE).scatter_add(0, total % 1009, total))
    table = nn.Embedding(20000, 256, device=DEVICE)
    with torch.no_grad():
        table.weight.normal_(0, 1, generator=generator)
    table(source[:50000] % 20000).sum(1).square().sum().backward()
    take(digest, table.weight.grad)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        return torch.arange(256 * 1024, dtype=torch.float32).add_(i).sin_(), i


def loader(digest):
    """Worker processes (forked after CUDA has started) and a thread that pins what they bring."""
    seeded(7)
    feed = torch.utils.data.DataLoader(Numbers(), batch_size=8, num_workers=2, pin_memory=ON_GPU, prefetch_factor=2)
    weight = torch.full((256 * 1024,), 0.5, device=DEVICE, requires_grad=True)
    for _ in range(2):
        for batch, index in feed:
            batch, index = batch.to(DEVICE, non_blocking=True), index.to(DEVICE, non_blocking=True)
            ((batch * weight).double().sum(1) - index).square().mean().backward()
            with torch.no_grad():
                weight -= 1e-9 * weight.grad
                weight.grad = None
            take(digest, batch)
        take(digest, weight)


deterministic()
# Everything else comes when little VRAM is left.
ballast = torch.arange((192 if ON_GPU else 1) * MIB // 8, dtype=torch.int64, device=DEVICE) * 7919
before = sha256([ballast])
status = sections.run(
    {s.__name__: s for s in (graphs, transformer, convolutions, experts, adamw, streams, loader)}, sys.argv[1:],
    allocator=torch.cuda.get_allocator_backend() if ON_GPU else "none",
    configuration=os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
)
if sha256([ballast]) != before:
    print("FAILED: the memory beside it has changed")
    status = 1
sys.exit(status)
