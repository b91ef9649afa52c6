"""One AdamW step, fused, and another one, foreach, of a model whose training state is several times its weights."""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import DEVICE, deterministic, result, sha256, synchronize

parser = argparse.ArgumentParser()
parser.add_argument("--layers", type=int, default=10)
parser.add_argument("--hidden", type=int, default=4096)
parser.add_argument("--feed", type=int, default=11264)
parser.add_argument("--heads", type=int, default=32)
args = parser.parse_args()
H, VOCAB, TOKENS = args.hidden, 4096, 64


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(H, 3 * H, bias=False), nn.Linear(H, H, bias=False)
        self.gate, self.up = nn.Linear(H, args.feed, bias=False), nn.Linear(H, args.feed, bias=False)
        self.down = nn.Linear(args.feed, H, bias=False)

    def forward(self, x):
        b, n, _ = x.shape
        qkv = self.qkv(F.layer_norm(x, (H,))).view(b, n, 3, args.heads, H // args.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, n, H))
        h = F.layer_norm(x, (H,))
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


deterministic()
generator = torch.Generator(device=DEVICE)
generator.manual_seed(99)
t = time.perf_counter()
with torch.device("meta"):
    model = nn.Sequential(*(Block() for _ in range(args.layers)), nn.Linear(H, VOCAB, bias=False)).to(torch.bfloat16)
model = model.to_empty(device=DEVICE)
with torch.no_grad():
    for p in model.parameters():
        p.normal_(0, 0.02, generator=generator)
x = torch.empty(1, TOKENS, H, device=DEVICE, dtype=torch.bfloat16).normal_(0, 1, generator=generator)
target = torch.arange(TOKENS, device=DEVICE) * 31 % VOCAB
count = sum(p.numel() for p in model.parameters())


def train(optimizer):
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(x)[0].float(), target)
        loss.backward()
    optimizer.step()
    gradients = sha256([p.grad for p in list(model.parameters())[:3]])
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), gradients


figures = {}
for name, options in (("fused", dict(fused=DEVICE == "cuda")), ("foreach", dict(foreach=True))):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, **options)
    synchronize()
    t = time.perf_counter()
    loss, gradients = train(optimizer)
    synchronize()
    took = time.perf_counter() - t
    figures[name] = dict(loss=loss, gradients=gradients, parameters=sha256(model.parameters()))
    state = [v for s in optimizer.state.values() for k, v in sorted(s.items()) if k != "step"]
    figures[name]["state"] = sha256(state[:6])
    figures[name + "_s"] = round(took, 3)
    print(f"{name}: loss {loss:.6f}, {took:.2f} s")
    del optimizer, state
peak = torch.cuda.max_memory_reserved() / 2**30 if DEVICE == "cuda" else 0
print(f"{count / 1e9:.2f} G parameters, peak {peak:.1f} GiB")
result(ok=True, parameters=count, peak_gib=round(peak, 2), **figures)
