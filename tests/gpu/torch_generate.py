"""Greedy generation by a random-weight transformer; prints token ids, a hash of all logits and one of the weights."""

import argparse
import time

import torch

from model import DEVICE, Decoder, deterministic, result, sha256, synchronize

parser = argparse.ArgumentParser()
parser.add_argument("--layers", type=int, default=39)
parser.add_argument("--tokens", type=int, default=16)
parser.add_argument("--small", action="store_true", help="a tiny model, to try this program")
args = parser.parse_args()

deterministic()
t = time.perf_counter()
sizes = dict(hidden=256, feed=512, heads=4, vocab=1024) if args.small else {}
model = Decoder(layers=args.layers, **sizes)
synchronize()
built = time.perf_counter() - t
before = model.weight_sums()
prompt = [(i * 7919 + 13) % model.vocab for i in range(12)]
t = time.perf_counter()
ids, logits = model.generate(prompt, args.tokens)
synchronize()
took = time.perf_counter() - t
again, _ = model.generate(prompt, 4)
after = model.weight_sums()
print(f"{model.weight_bytes() / 1e9:.1f} GB of weights built in {built:.1f} s, {args.tokens} tokens in {took:.2f} s")
result(
    ok=before == after and again == ids[:4],
    tokens=ids,
    logits=sha256(logits),
    weights=hash(tuple(before)),
    gb=round(model.weight_bytes() / 1e9, 2),
    seconds=round(took, 3),
    ms_per_token=round(took / args.tokens * 1e3, 2),
    finite=all(bool(torch.isfinite(x).all()) for x in logits),
    peak_gib=round(torch.cuda.max_memory_reserved() / 2**30, 2) if DEVICE == "cuda" else 0,
)
