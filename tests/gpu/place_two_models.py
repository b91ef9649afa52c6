"""Two models used in turn, in blocks of steps, as a text encoder and a denoiser are: milliseconds of each step.

A step reads all weights of one model once, for a few rows. After each block a digest of the results of all steps so far.
"""

import argparse
import hashlib
import statistics
import time

import torch
import torch.nn.functional as F

from model import DEVICE, deterministic, result, synchronize

parser = argparse.ArgumentParser()
parser.add_argument("--gb", type=float, default=10, help="of each model")
parser.add_argument("--layers", type=int, default=24)
parser.add_argument("--hidden", type=int, default=8192)
parser.add_argument("--rows", type=int, default=16)
parser.add_argument("--block", type=int, default=20, help="steps")
parser.add_argument("--blocks", type=int, default=10)
args = parser.parse_args()
deterministic()

hidden, grain = args.hidden, 1 << 20
feed = max(1, round(args.gb * 1e9 / args.layers / 4 / grain)) * grain // hidden


def tensor(seed, *shape, std):
    generator = torch.Generator(device=DEVICE)
    generator.manual_seed(seed)
    return torch.empty(*shape, device=DEVICE, dtype=torch.bfloat16).normal_(0, std, generator=generator)


class Model:
    def __init__(self, seed):
        self.weights = [(tensor(seed + 2 * i, feed, hidden, std=hidden**-0.5),
                         tensor(seed + 2 * i + 1, hidden, feed, std=0.1 * feed**-0.5)) for i in range(args.layers)]

    @torch.no_grad()
    def step(self, x):
        for up, down in self.weights:
            x = x + F.linear(F.silu(F.linear(F.rms_norm(x, (hidden,)), up)), down)
        return F.rms_norm(x, (hidden,))


# Workspaces and activations first.
x = tensor(7, args.rows, hidden, std=1)
F.linear(F.linear(x, torch.zeros(512, hidden, device=DEVICE, dtype=x.dtype)), torch.zeros(hidden, 512, device=DEVICE, dtype=x.dtype))
[torch.empty(mib << 20, device=DEVICE, dtype=torch.uint8) for mib in [1] * 16 + [4, 16]]
synchronize()
models = [Model(1000), Model(2000)]
synchronize()
print("loaded", flush=True)

blocks, digest, digests, states = [], hashlib.sha256(), [], []
for b in range(args.blocks):
    times = []
    for _ in range(args.block):
        t = time.perf_counter()
        x = models[b % 2].step(x)
        synchronize()
        times.append((time.perf_counter() - t) * 1e3)
        states.append(x)  # small; looked at after the block, so that a step is nothing but the model
    for s in states:
        digest.update(s.cpu().view(torch.uint8).numpy().tobytes())
    states.clear()
    digests.append(digest.hexdigest()[:16])
    blocks.append([round(t, 3) for t in times])
    print(f"block {b}, model {b % 2}: " + " ".join(f"{t:.2f}" for t in times), flush=True)
result(
    ok=bool(torch.isfinite(x.float()).all()),
    blocks=blocks,
    median_ms=round(statistics.median(t for block in blocks for t in block), 3),
    digests=digests,
    bytes=sum(w.numel() * 2 for m in models for pair in m.weights for w in pair),
)
