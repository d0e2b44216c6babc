"""Random weights in a Llama shape as a GGUF file, to time steps on: ``python shape.py OUT.gguf q8_0|q4_k|bf16``.

The default shape is that of a 1.5B model (28 layers of 1536, 12 heads over 2, 8960 inside, 151,936 tokens, tied head).
The numbers mean nothing; scales are small so that nothing overflows. No tokenizer is written.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

KINDS = {"q8_0": 8, "q4_k": 12, "bf16": 30}
ROWS = 4096  # rows that are made at a time


def blocks(kind: str, rows: int, width: int, draw: np.random.Generator) -> bytes:
    """``rows`` rows of ``width`` random weights of about 1 / sqrt(width)."""
    small = np.float16(1 / np.sqrt(width))
    if kind == "bf16":
        values = draw.standard_normal((rows, width), np.float32) * np.float32(small)
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if kind == "q8_0":
        raw = draw.integers(0, 256, (rows * width // 32, 34), np.uint8)
        raw[:, :2] = np.frombuffer(np.float16(small / 73).tobytes(), np.uint8)
        return raw.tobytes()
    raw = draw.integers(0, 256, (rows * width // 256, 144), np.uint8)
    raw[:, :4] = np.frombuffer(np.array([small / 150, small / 20], np.float16).tobytes(), np.uint8)
    return raw.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", choices=KINDS)
    for name, value in dict(layers=28, hidden=1536, heads=12, kv_heads=2, intermediate=8960, vocab=151936).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    width, narrow = args.hidden, args.hidden // args.heads * args.kv_heads
    facts: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "llama.vocab_size": args.vocab,
        "llama.context_length": 4096,
        "llama.embedding_length": width,
        "llama.block_count": args.layers,
        "llama.feed_forward_length": args.intermediate,
        "llama.rope.dimension_count": width // args.heads,
        "llama.rope.freq_base": 1e6,
        "llama.attention.head_count": args.heads,
        "llama.attention.head_count_kv": args.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
    }
    shapes = {"token_embd": (args.vocab, width), "output_norm": (width,)}
    for layer in range(args.layers):
        part = {
            "attn_norm": (width,),
            "ffn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (narrow, width),
            "attn_v": (narrow, width),
            "attn_output": (width, width),
            "ffn_gate": (args.intermediate, width),
            "ffn_up": (args.intermediate, width),
            "ffn_down": (width, args.intermediate),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in part.items()}
    bytes_of: dict[str, Callable[[int], int]] = {
        "bf16": lambda n: 2 * n,
        "q8_0": lambda n: n // 32 * 34,
        "q4_k": lambda n: n // 256 * 144,
    }
    head, infos, at = b"", b"", 0
    for key, value in facts.items():
        kind, raw = {
            str: lambda v: (8, text(v)),
            int: lambda v: (4, struct.pack("<I", v)),
            float: lambda v: (6, struct.pack("<f", v)),
        }[type(value)](value)
        head += text(key) + struct.pack("<I", kind) + raw
    for name, shape in shapes.items():
        kind = KINDS[args.kind] if len(shape) > 1 else 0
        infos += text(f"{name}.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, at)
        size = bytes_of[args.kind](shape[0] * shape[1]) if len(shape) > 1 else 4 * shape[0]
        at += -(-size // 32) * 32
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(facts)) + head + infos
    with open(args.out, "wb") as file:
        file.write(head + b"\0" * (-len(head) % 32))
        for raw in tensors(shapes, args.kind):
            file.write(raw)


def tensors(shapes: dict[str, tuple[int, ...]], kind: str) -> Iterator[bytes]:
    draw = np.random.default_rng(0)
    for shape in shapes.values():
        if len(shape) == 1:
            yield np.ones(shape, np.float32).tobytes()
            continue
        size = 0
        for first in range(0, shape[0], ROWS):
            raw = blocks(kind, min(ROWS, shape[0] - first), shape[1], draw)
            size += len(raw)
            yield raw
        yield b"\0" * (-size % 32)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


if __name__ == "__main__":
    main()
