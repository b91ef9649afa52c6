"""Models of the transformers library with random weights: a Llama trained and asked for tokens with two kinds of cache, and
a Mixtral, whose experts are chosen token by token.

    transformers_ways.py [SECTION...]
"""

import sys

from model import DEVICE, deterministic, sha256, synchronize

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import sections

ON_GPU = DEVICE == "cuda"
MIB = 1 << 20
SIZES = dict(hidden_size=1024, intermediate_size=2816, num_attention_heads=16, num_key_value_heads=8, vocab_size=8192,
             max_position_embeddings=512) if ON_GPU else dict(
             hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
             max_position_embeddings=512)


def take(digest, *tensors):
    synchronize()
    digest.update(sha256(tensors).encode())


def made(kind, config):
    torch.manual_seed(11)
    return kind(config).to(DEVICE)


def trained(digest, model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.arange(4 * 64, device=DEVICE).view(4, 64) * 131 % model.config.vocab_size
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        take(digest, loss)
    take(digest, *model.parameters())
    return ids


def llama(digest):
    model = made(LlamaForCausalLM, LlamaConfig(num_hidden_layers=6, attn_implementation="eager", **SIZES))
    ids = trained(digest, model, 3)
    model.eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    for cache in ("dynamic", "static"):
        tokens = model.generate(ids[:, :16], attention_mask=torch.ones_like(ids[:, :16]), max_new_tokens=24, do_sample=False,
                                cache_implementation=cache, disable_compile=True)
        print(f"{cache}: {tokens[0, 16:24].tolist()}")
        take(digest, tokens)
    half = model.to(torch.bfloat16)
    with torch.no_grad():
        take(digest, half(input_ids=ids).logits)


def mixtral(digest):
    model = made(MixtralForCausalLM, MixtralConfig(num_hidden_layers=2, num_local_experts=8, num_experts_per_tok=2,
                                                   attn_implementation="eager", **SIZES))
    ids = trained(digest, model, 2)
    # In bfloat16 the experts are one grouped GEMM over a table of pointers.
    half = model.to(torch.bfloat16)
    with torch.no_grad():
        take(digest, half(input_ids=ids).logits, half(input_ids=ids[:, :33]).logits)


deterministic()
ballast = torch.ones((192 if ON_GPU else 1) * MIB // 8, dtype=torch.int64, device=DEVICE)
status = sections.run({s.__name__: s for s in (llama, mixtral)}, sys.argv[1:])
if int(ballast.sum()) != ballast.numel():
    print("FAILED: the memory beside it has changed")
    status = 1
sys.exit(status)
