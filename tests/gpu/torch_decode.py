"""Decoding, timed.

`serve`: a small launch-bound model; for every line on stdin it decodes once and prints the seconds. Two of these, one of
them under greenboost, are asked in turn by the runner.
`zero-copy`: a large model, about half of it spilled; the time of a step against the DMA rate of the same run.
"""

import argparse
import statistics
import sys
import time

import torch

from model import DEVICE, Decoder, deterministic, result, synchronize

parser = argparse.ArgumentParser()
parser.add_argument("mode", choices=["serve", "zero-copy"])
parser.add_argument("--layers", type=int, default=39)
parser.add_argument("--tokens", type=int, default=200)
parser.add_argument("--ballast", type=float, default=0, metavar="GIB", help="held besides, never touched again")
args = parser.parse_args()
deterministic()

if args.mode == "serve":
    model = Decoder(hidden=512, feed=1536, layers=24, heads=8, vocab=4096, length=args.tokens + 8)
    prompt = [1, 2, 3, 4]
    ballast = torch.zeros(int(args.ballast * (1 << 30)), device=DEVICE, dtype=torch.uint8)
    first, _ = model.generate(prompt, args.tokens)
    print(f"READY {hash(tuple(first))}", flush=True)
    for _ in sys.stdin:
        synchronize()
        t = time.perf_counter()
        ids, _ = model.generate(prompt, args.tokens)
        synchronize()
        print(f"TIME {time.perf_counter() - t:.6f} {hash(tuple(ids))}", flush=True)
    sys.exit(0)

target = torch.empty(256 << 20, device=DEVICE, dtype=torch.uint8)  # the first one: in VRAM
source = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
source.fill_(7)


def dma():
    """GB/s of copies of 1 GiB from pinned memory."""
    rates = []
    for _ in range(4):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        for piece in source.split(256 << 20):
            target.copy_(piece, non_blocking=True)
        b.record()
        b.synchronize()
        rates.append((1 << 30) / a.elapsed_time(b) / 1e6)
    return max(rates)


before = dma()
model = Decoder(layers=args.layers)
synchronize()
times, last = [], time.perf_counter()


def each():
    global last
    synchronize()
    t = time.perf_counter()
    times.append(t - last)
    last = t


last = time.perf_counter()
ids, _ = model.generate([11, 22, 33, 44], args.tokens, each)
after = dma()
steps = times[3:]  # the first reads the prompt, the next ones warm up
step = statistics.median(steps)

# Each weight read once by a reduction, alone: how many of the bytes come over the link, and how fast?
slow_bytes = slow_time = fast_bytes = fast_time = 0.0
for w in model.weights():
    flat = w.view(-1).view(torch.int64)
    flat.sum()
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    flat.sum()
    b.record()
    b.synchronize()
    n, t = flat.numel() * 8, a.elapsed_time(b) / 1e3
    if n / t < 60e9:
        slow_bytes, slow_time = slow_bytes + n, slow_time + t
    else:
        fast_bytes, fast_time = fast_bytes + n, fast_time + t
print(f"step {step * 1e3:.1f} ms ({min(steps) * 1e3:.1f} to {max(steps) * 1e3:.1f}), DMA {before:.1f} and {after:.1f} GB/s")
result(
    ok=True,
    step_s=step,
    step_min=min(steps),
    step_max=max(steps),
    dma_before=round(before, 2),
    dma_after=round(after, 2),
    weight_bytes=model.weight_bytes(),
    slow_bytes=int(slow_bytes),
    slow_gbs=round(slow_bytes / slow_time / 1e9, 2) if slow_time else 0,
    fast_gbs=round(fast_bytes / fast_time / 1e9, 1) if fast_time else 0,
    tokens=ids[:8],
)
