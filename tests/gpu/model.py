"""A decoder transformer in plain PyTorch with random weights, and what the torch checks share."""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = os.environ.get("GREENBOOST_CHECK_DEVICE", "cuda")  # `cpu` to try the programs without a GPU


def deterministic():
    """Everything that PyTorch offers so that two runs agree to the bit."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Otherwise every torch.empty is filled with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def result(**fields):
    """The last line, which the runner reads."""
    print("RESULT " + json.dumps(fields), flush=True)
    sys.stdout.flush()
    sys.stderr.flush()


class Decoder:
    """Pre-norm blocks with gated feed-forward, greedy decoding with a KV cache of a fixed length.

    What is used all the time (cache, embedding, workspaces) is allocated first, the weights after it: with a VRAM limit
    the weights spill, and every spilled byte is read exactly once per token. All weights are multiples of 2 MiB for the
    default sizes, so PyTorch's allocator adds nothing to them.
    """

    def __init__(self, hidden=5120, feed=14336, layers=39, heads=40, vocab=32768, length=64, dtype=torch.bfloat16):
        self.hidden, self.heads, self.vocab = hidden, heads, vocab
        generator = torch.Generator(device=DEVICE)
        generator.manual_seed(1234)

        def weight(*shape, std=0.02):
            return torch.empty(*shape, device=DEVICE, dtype=dtype).normal_(0, std, generator=generator)

        cache = (layers, 1, heads, length, hidden // heads)
        self.keys = torch.zeros(cache, device=DEVICE, dtype=dtype)
        self.values = torch.zeros(cache, device=DEVICE, dtype=dtype)
        self.embedding = weight(vocab, hidden, std=1.0)
        self.warm(dtype)
        self.layers = [
            dict(
                qkv=weight(3 * hidden, hidden),
                out=weight(hidden, hidden, std=0.02 / layers**0.5),
                gate=weight(feed, hidden),
                up=weight(feed, hidden),
                down=weight(hidden, feed, std=0.02 / layers**0.5),
            )
            for _ in range(layers)
        ]
        self.head = weight(vocab, hidden)

    def warm(self, dtype):
        """Has cuBLAS allocate its workspace before the weights come."""
        for rows in (1, 16):
            x = torch.zeros(rows, 256, device=DEVICE, dtype=dtype)
            F.linear(x, torch.zeros(512, 256, device=DEVICE, dtype=dtype))
        # Room for activations: blocks that stay in PyTorch's cache.
        [torch.empty(mib << 20, device=DEVICE, dtype=torch.uint8) for mib in [1] * 16 + [4, 16]]
        synchronize()

    def weights(self):
        return [w for layer in self.layers for w in layer.values()] + [self.head]

    def weight_bytes(self):
        return sum(w.numel() * w.element_size() for w in self.weights())

    def weight_sums(self):
        """One wrapping 64-bit sum per tensor: every bit of every weight counts."""
        return [int(w.view(-1).view(torch.int64).sum()) for w in [self.embedding, *self.weights()]]

    def step(self, tokens, position):
        """Logits of the last of `tokens` (1 x n, on the device), which begin at `position`."""
        x = F.embedding(tokens, self.embedding)
        n, heads, size = tokens.shape[1], self.heads, self.hidden // self.heads
        for i, w in enumerate(self.layers):
            h = F.rms_norm(x, (self.hidden,))
            q, k, v = F.linear(h, w["qkv"]).view(1, n, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
            self.keys[i, :, :, position : position + n] = k
            self.values[i, :, :, position : position + n] = v
            keys, values = self.keys[i, :, :, : position + n], self.values[i, :, :, : position + n]
            a = F.scaled_dot_product_attention(q, keys, values, is_causal=n > 1)
            x = x + F.linear(a.transpose(1, 2).reshape(1, n, self.hidden), w["out"])
            h = F.rms_norm(x, (self.hidden,))
            x = x + F.linear(F.silu(F.linear(h, w["gate"])) * F.linear(h, w["up"]), w["down"])
        return F.linear(F.rms_norm(x[:, -1], (self.hidden,)), self.head)

    @torch.no_grad()
    def generate(self, prompt, count, each=None):
        """Greedy tokens and the logits they were chosen from. `each` is called after every token."""
        tokens = torch.tensor([prompt], device=DEVICE)
        position, ids, logits = 0, [], []
        # Math and flash are deterministic; cuDNN may choose by what it measures.
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            for _ in range(count):
                row = self.step(tokens, position)
                position += tokens.shape[1]
                tokens = row.argmax(-1, keepdim=True)
                ids.append(tokens.item())
                logits.append(row)
                if each:
                    each()
        return ids, logits


def sha256(tensors):
    """Of the bytes of all tensors, in order."""

    def one(tensor):
        return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()).digest()

    with ThreadPoolExecutor(8) as pool:
        return hashlib.sha256(b"".join(pool.map(one, tensors))).hexdigest()
