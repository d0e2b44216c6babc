"""Time of diffusion steps outside the network, on a checkpoint of about 110 million random parameters in LLaDA's layout.

`python benches/diffusion/overhead.py [--threads N] [--layers N]`: writes the checkpoint to a temporary folder (bfloat16, 220 MB), runs
each loop on it and prints, as JSON and in words on stderr, forwards, milliseconds a forward, and the share of the
engine's time that is not spent inside the network, from the engine's own counters. The numbers that come out mean nothing, and the loops end where their
canvas does, so every run makes the same forwards on every machine.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from omnidecode import LLM, SamplingParams
from omnidecode.train import alphabet

WIDTH, MLP, HEADS, VOCAB = 768, 2048, 12, 16384
STRATEGIES = [
    {"name": "llada"},
    {"name": "llada", "cache": "prefix"},
    {"name": "llada", "cache": "dual"},
    {"name": "llada", "cache": "dual", "unmasker": "credit", "threshold": 2.0},
    {"name": "llada", "cache": "dual", "unmasker": "entropy", "entropy_bound": 0.0},
    {"name": "freedave", "cache": "dual"},
]


def write(folder: Path, layers: int) -> int:
    """The checkpoint; returns its number of parameters."""
    shapes: dict[str, list[int]] = {
        "model.transformer.wte.weight": [VOCAB, WIDTH],
        "model.transformer.ln_f.weight": [WIDTH],
        "model.transformer.ff_out.weight": [VOCAB, WIDTH],
    }
    parts = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), [WIDTH, WIDTH])
    parts |= dict(ff_proj=[MLP, WIDTH], up_proj=[MLP, WIDTH], ff_out=[WIDTH, MLP], attn_norm=[WIDTH], ff_norm=[WIDTH])
    for layer in range(layers):
        shapes |= {f"model.transformer.blocks.{layer}.{part}.weight": shape for part, shape in parts.items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[at, at + size])
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    bits = random.Random(0)
    # A high byte of 0x3c or 0xbc is a number of either sign from 2^-7 to 2^-5, whatever the low byte.
    signs = bytes(0xBC if b & 1 else 0x3C for b in range(256))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            count = math.prod(shape)
            data = bytearray(b"\x80\x3f" * count)  # ones, for norms
            if "norm" not in name and "ln_f" not in name:
                data[0::2] = bits.randbytes(count)
                data[1::2] = bits.randbytes(count).translate(signs)
            file.write(data)
    config = dict(
        model_type="llada",
        architectures=["LLaDAModelLM"],
        d_model=WIDTH,
        n_layers=layers,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        mlp_hidden_size=MLP,
        vocab_size=VOCAB,
        embedding_size=VOCAB,
        max_sequence_length=1024,
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        activation_type="silu",
        include_bias=False,
        weight_tying=False,
        mask_token_id=alphabet.MASK,
        eos_token_id=alphabet.EOS,
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    alphabet.write_tokenizer(folder)
    return at // 2


def measure(threads: int | None, layers: int = 12, prompt: int = 64, canvas: int = 64) -> dict[str, Any]:
    """Parameters of the checkpoint; for each strategy its forwards, milliseconds a forward and the share outside."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        parameters = write(Path(folder), layers)
        question = [alphabet.BOS, *(8 + i % 90 for i in range(prompt - 1))]
        short, sampling = (SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, seed=0) for n in (8, canvas))
        with LLM(folder, threads=threads, context=prompt + canvas) as llm:
            for strategy in STRATEGIES:
                llm.generate(question, short, strategy=strategy)  # touch every weight once
                before = llm.stats()
                llm.generate(question, sampling, strategy=strategy)
                after = llm.stats()
                spent = {k: after[k] - before[k] for k in ("forwards", "network_seconds", "turn_seconds")}
                row = dict(
                    strategy=strategy,
                    forwards=spent["forwards"],
                    milliseconds_a_forward=1e3 * spent["turn_seconds"] / spent["forwards"],
                    overhead=1 - spent["network_seconds"] / spent["turn_seconds"],
                )
                rows.append(row)
                print(
                    f"{json.dumps(strategy):75} {row['forwards']:4} forwards, "
                    f"{row['milliseconds_a_forward']:8.2f} ms each, {100 * row['overhead']:.2f} % outside",
                    file=sys.stderr,
                    flush=True,
                )
    return dict(parameters=parameters, prompt=prompt, canvas=canvas, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--canvas", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64)
    given = parser.parse_args()
    print(json.dumps(measure(given.threads, given.layers, given.prompt, given.canvas)))


if __name__ == "__main__":
    main()
