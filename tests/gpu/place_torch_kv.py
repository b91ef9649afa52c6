"""Decoding with weights that are read once a token and a cache that is read and rewritten at each one.

The weights come first and the cache after them, or the other way round: without placement what comes last lies outside
VRAM. Every value is made from its own seed, so the order changes no result. Milliseconds of each step; a digest of the
state after `--digest` steps.
"""

import argparse
import hashlib
import statistics
import time

import torch
import torch.nn.functional as F

from model import DEVICE, deterministic, result, synchronize

parser = argparse.ArgumentParser()
parser.add_argument("--order", choices=["weights", "cache"], default="weights", help="what comes first")
parser.add_argument("--weights", type=float, default=26, metavar="GB")
parser.add_argument("--cache", type=float, default=4, metavar="GB")
parser.add_argument("--layers", type=int, default=40)
parser.add_argument("--hidden", type=int, default=8192)
parser.add_argument("--steps", type=int, default=70)
parser.add_argument("--warm", type=int, default=10)
parser.add_argument("--digest", type=int, default=20)
args = parser.parse_args()
deterministic()

hidden, size = args.hidden, 128
heads = hidden // size
# Elements; 2 MiB each, so that PyTorch's allocator adds nothing.
grain = 1 << 20
feed = max(1, round(args.weights * 1e9 / args.layers / 4 / grain)) * grain // hidden
length = max(1, round(args.cache * 1e9 / args.layers / 4 / grain)) * grain // hidden


def tensor(seed, *shape, std):
    generator = torch.Generator(device=DEVICE)
    generator.manual_seed(seed)
    return torch.empty(*shape, device=DEVICE, dtype=torch.bfloat16).normal_(0, std, generator=generator)


def warm():
    """Has cuBLAS make its workspace, and PyTorch room for activations, before anything large comes."""
    for rows in (1, 2):
        x = torch.zeros(rows, 256, device=DEVICE, dtype=torch.bfloat16)
        F.linear(x, torch.zeros(512, 256, device=DEVICE, dtype=torch.bfloat16))
    [torch.empty(mib << 20, device=DEVICE, dtype=torch.uint8) for mib in [1] * 16 + [4, 16]]
    synchronize()


def weights():
    return [(tensor(3 * i, feed, hidden, std=hidden**-0.5), tensor(3 * i + 1, hidden, feed, std=0.1 * feed**-0.5))
            for i in range(args.layers)]


def cache():
    return [tensor(3 * i + 2, 2, heads, length, size, std=1) for i in range(args.layers)]


@torch.no_grad()
def step(x, position):
    for (up, down), (keys, values) in zip(model, memory):
        h = F.rms_norm(x, (hidden,))
        q = h.view(heads, size, 1)
        # The cache fades, and takes the new token in: read and rewritten throughout.
        keys.mul_(0.9375)
        values.mul_(0.9375)
        keys[:, position] = q[:, :, 0]
        values[:, position] = q[:, :, 0]
        scores = torch.softmax(keys @ q / size**0.5, 1)
        x = x + (scores.transpose(1, 2) @ values).view(1, hidden)
        x = x + F.linear(F.silu(F.linear(F.rms_norm(x, (hidden,)), up)), down)
    return x


warm()
begin = time.perf_counter()
if args.order == "weights":
    model = weights()
    memory = cache()
else:
    memory = cache()
    model = weights()
synchronize()
loaded = time.perf_counter() - begin

x, times, digest = tensor(999, 1, hidden, std=1), [], None
for i in range(args.steps):
    t = time.perf_counter()
    x = step(x, i % length)
    synchronize()
    times.append((time.perf_counter() - t) * 1e3)
    if i + 1 == args.digest:
        state = [x, *(m.view(-1).view(torch.int64).sum().view(1) for m in memory)]
        digest = hashlib.sha256(b"".join(s.cpu().view(torch.uint8).numpy().tobytes() for s in state)).hexdigest()[:16]
        synchronize()
after = times[args.warm:]
print("ms: " + " ".join(f"{t:.1f}" for t in times))
result(
    ok=bool(torch.isfinite(x.float()).all()),
    ms=round(statistics.median(after), 2),
    ms_min=round(min(after), 2),
    ms_max=round(max(after), 2),
    first_ms=[round(t, 1) for t in times[:args.warm]],
    # A median forgets steps in which something was moved; their mean does not.
    mean_ms=round(statistics.fmean(after), 2),
    digest=digest,
    loaded_s=round(loaded, 1),
    weight_bytes=sum(w.numel() * 2 for pair in model for w in pair),
    cache_bytes=sum(m.numel() * 2 for m in memory),
)
