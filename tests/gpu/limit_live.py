"""A loop over tensors that every step changes and sums up, run and stopped from outside.

Lines on stdin: `start` (runs steps until the next line comes), `stop` (answers `RAN` with what was run since `start`),
`steps N` (runs N and answers the same). Digests are of the sums of every 2 MiB, in order: a byte or a piece in the wrong
place changes them, and they depend on nothing but the number of the step.
"""

import argparse
import hashlib
import json
import os
import select
import sys
import time

import torch

from model import DEVICE, synchronize

parser = argparse.ArgumentParser()
parser.add_argument("--mib", type=int, default=12 << 10)
parser.add_argument("--piece", type=int, default=512, help="MiB of a tensor")
args = parser.parse_args()

WORDS = (2 << 20) // 8
tensors = []
for k in range(args.mib // args.piece):
    t = torch.arange(args.piece << 17, device=DEVICE, dtype=torch.int64)
    tensors.append(t.mul_(2654435761 + 2 * k).add_(k))
    del t
synchronize()
done, ran = 0, []


def step():
    global done
    begin = time.perf_counter()
    for t in tensors:
        t.mul_(6364136223846793005)
        t.add_(done + 1)
    sums = torch.stack([t.view(-1, WORDS).sum(1) for t in tensors])
    digest = hashlib.sha256(sums.cpu().numpy().tobytes()).hexdigest()[:12]
    done += 1
    ran.append((round((time.perf_counter() - begin) * 1e3, 2), digest))


def told():
    """Whether a line waits on stdin. Lines are read without a buffer of Python's, which select would not see."""
    return bool(select.select([0], [], [], 0)[0])


def line():
    text = b""
    while not text.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return None
        text += byte
    return text.decode().split()


print(f"READY {os.getpid()}", flush=True)
while (words := line()) is not None:
    if words[0] == "start":
        while not told():
            step()
        continue
    for _ in range(int(words[1]) if words[0] == "steps" else 0):
        step()
    print("RAN " + json.dumps(ran, separators=(",", ":")), flush=True)
    ran = []
sys.exit(0)
