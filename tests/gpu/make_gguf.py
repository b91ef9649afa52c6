#!/usr/bin/env python3
"""Writes a model file for llama.cpp: the shape of a real model, random weights, a small tokenizer.

    make_gguf.py OUT [--shape 7b|1b|tiny] [--type f16|q4_k]

One block of random values is written again and again, each tensor beginning at another place in it, so the time is that of
writing the file. The layout follows the GGUF specification, version 3 (the format's own documentation in ggml).
"""

import argparse
import struct
import time

import numpy

# embedding, feed-forward, layers, heads, heads of keys and values
SHAPES = {
    "7b": (4096, 11008, 32, 32, 32),
    "1b": (2048, 5632, 22, 32, 4),
    "tiny": (256, 512, 2, 4, 4),
}
VOCABULARY, CONTEXT, ALIGN, SIGMA = 32000, 8192, 32, 0.02
# GGUF's types of values and of tensors
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
TENSOR_F32, TENSOR_F16, TENSOR_Q4_K = 0, 1, 12
BLOCK = 48 << 20


def text(s):
    data = s.encode()
    return struct.pack("<Q", len(data)) + data


def value(key, kind, v):
    packed = {U32: lambda: struct.pack("<I", v), F32: lambda: struct.pack("<f", v), BOOL: lambda: struct.pack("<?", v),
              STRING: lambda: text(v)}[kind]()
    return text(key) + struct.pack("<I", kind) + packed


def array(key, kind, items):
    data = b"".join(map(text, items)) if kind == STRING else numpy.asarray(items, "<f4" if kind == F32 else "<i4").tobytes()
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(items)) + data


def tokenizer():
    """A SentencePiece vocabulary: specials, all bytes, letters, and made-up words up to the size."""
    normal, unknown, control, byte = 1, 2, 3, 6
    tokens = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    tokens += [(f"<0x{b:02X}>", byte) for b in range(256)]
    tokens += [(c, normal) for c in ["▁"] + [chr(c) for c in range(0x21, 0x7F)]]
    tokens += [(f"▁w{i}", normal) for i in range(VOCABULARY - len(tokens))]
    assert len({t for t, _ in tokens}) == VOCABULARY
    return [
        value("tokenizer.ggml.model", STRING, "llama"),
        array("tokenizer.ggml.tokens", STRING, [t for t, _ in tokens]),
        array("tokenizer.ggml.scores", F32, [0.0 if kind != normal else -float(i) for i, (_, kind) in enumerate(tokens)]),
        array("tokenizer.ggml.token_type", I32, [kind for _, kind in tokens]),
        value("tokenizer.ggml.bos_token_id", U32, 1),
        value("tokenizer.ggml.eos_token_id", U32, 2),
        value("tokenizer.ggml.unknown_token_id", U32, 0),
        value("tokenizer.ggml.add_bos_token", BOOL, True),
        value("tokenizer.ggml.add_eos_token", BOOL, False),
        value("tokenizer.chat_template", STRING, "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"),
    ]


def tensors(shape, kind):
    """Name, dimensions (the contiguous one first), type."""
    embedding, feed, layers, heads, kv_heads = shape
    kv = embedding // heads * kv_heads
    yield "token_embd.weight", (embedding, VOCABULARY), kind
    for i in range(layers):
        for name, dimensions in (
            ("attn_q", (embedding, embedding)), ("attn_k", (embedding, kv)), ("attn_v", (embedding, kv)),
            ("attn_output", (embedding, embedding)), ("ffn_gate", (embedding, feed)), ("ffn_up", (embedding, feed)),
            ("ffn_down", (feed, embedding)),
        ):
            yield f"blk.{i}.{name}.weight", dimensions, kind
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", (embedding,), TENSOR_F32
    yield "output_norm.weight", (embedding,), TENSOR_F32
    yield "output.weight", (embedding, VOCABULARY), kind


def size(dimensions, kind):
    n = 1
    for d in dimensions:
        n *= d
    return {TENSOR_F32: n * 4, TENSOR_F16: n * 2, TENSOR_Q4_K: n // 256 * 144}[kind]


def random_block(kind):
    """Bytes of weights of mean 0 and deviation SIGMA."""
    random = numpy.random.default_rng(1)
    if kind == TENSOR_F16:
        return (random.standard_normal(BLOCK // 2, numpy.float32) * SIGMA).astype("<f2").tobytes()
    # 256 weights in 144 bytes: half d, half dmin, eight 6-bit scales and minimums in 12 bytes, 4 bits a weight; a weight
    # is d * scale * q - dmin * minimum. All scales and minimums are 32; q is even from 0 to 15: mean 7.5, deviation 4.61.
    d = SIGMA / (32 * 4.61)
    blocks = numpy.empty((BLOCK // 144, 144), numpy.uint8)
    blocks[:, :4] = numpy.frombuffer(struct.pack("<ee", d, 7.5 * d), numpy.uint8)
    blocks[:, 4:12] = 32 | 32 >> 4 << 6
    blocks[:, 12:16] = 0
    blocks[:, 16:] = random.integers(0, 256, (len(blocks), 128), numpy.uint8)
    return blocks.tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--type", choices=["f16", "q4_k"], default="f16")
    args = parser.parse_args()
    begin = time.monotonic()
    shape, kind = SHAPES[args.shape], TENSOR_F16 if args.type == "f16" else TENSOR_Q4_K
    embedding, feed, layers, heads, kv_heads = shape
    values = [
        value("general.architecture", STRING, "llama"),
        value("general.name", STRING, f"random {args.shape}"),
        value("general.file_type", U32, 1 if kind == TENSOR_F16 else 14),
        value("general.quantization_version", U32, 2),
        value("general.alignment", U32, ALIGN),
        value("llama.vocab_size", U32, VOCABULARY),
        value("llama.context_length", U32, CONTEXT),
        value("llama.embedding_length", U32, embedding),
        value("llama.block_count", U32, layers),
        value("llama.feed_forward_length", U32, feed),
        value("llama.rope.dimension_count", U32, embedding // heads),
        value("llama.rope.freq_base", F32, 10000.0),
        value("llama.attention.head_count", U32, heads),
        value("llama.attention.head_count_kv", U32, kv_heads),
        value("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        *tokenizer(),
    ]
    all_ = list(tensors(shape, kind))
    infos, offset = [], 0
    for name, dimensions, k in all_:
        infos.append(text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, k, offset))
        offset += -(-size(dimensions, k) // ALIGN) * ALIGN
    block = memoryview(random_block(kind))
    ones = numpy.ones(max(embedding, feed), "<f4").tobytes()
    unit = 2 if kind == TENSOR_F16 else 144
    with open(args.out, "wb", buffering=0) as out:

        def write(data):
            data = memoryview(data)
            while data:
                data = data[out.write(data):]

        head = struct.pack("<4sIQQ", b"GGUF", 3, len(all_), len(values)) + b"".join(values) + b"".join(infos)
        write(head + bytes(-len(head) % ALIGN))
        for i, (name, dimensions, k) in enumerate(all_):
            left = bytes_ = size(dimensions, k)
            if k == TENSOR_F32:
                write(ones[:left])
                left = 0
            at = i * 7919 * unit % (len(block) // unit * unit)
            while left:
                piece = block[at : at + left]
                write(piece)
                left -= len(piece)
                at = 0
            write(bytes(-bytes_ % ALIGN))
        total = out.tell()
    seconds = time.monotonic() - begin
    print(f"{args.out}: {total / 1e9:.2f} GB, {args.shape} {args.type}, {seconds:.1f} s ({total / seconds / 1e9:.1f} GB/s)")


if __name__ == "__main__":
    main()
