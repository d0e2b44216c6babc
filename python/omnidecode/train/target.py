"""A target to train a drafter for: a Llama-type model from a GGUF file (dequantized) or from a folder of ours, frozen."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from omnidecode.train import checkpoint
from omnidecode.train.model import Llama, Shape, place_rotary

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
#: Our name of a tensor of layer i, without `model.layers.i.` and `.weight`.
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load(path: Path, context: int = 1024) -> Llama:
    """The model at `path`, evaluating, without gradients. Raises `ValueError` for what is not a Llama with a tied head."""
    model = _from_gguf(path, context) if path.suffix == ".gguf" else checkpoint.load(path)
    return model.eval().requires_grad_(False)


def _from_gguf(path: Path, context: int) -> Llama:
    facts, tensors = read_gguf(path)
    if facts.get("general.architecture") != "llama" or "output.weight" in tensors:
        raise ValueError(
            f"{path}: expected a GGUF of architecture llama with a tied head, found {facts.get('general.architecture')!r}"
        )
    shape = Shape(
        hidden=facts["llama.embedding_length"],
        intermediate=facts["llama.feed_forward_length"],
        layers=facts["llama.block_count"],
        heads=facts["llama.attention.head_count"],
        kv_heads=facts["llama.attention.head_count_kv"] % facts["llama.attention.head_count"],
        context=min(context, facts["llama.context_length"]),
        vocabulary=len(tensors["token_embd.weight"]),
        rope_theta=facts["llama.rope.freq_base"],
        norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
    )
    weights = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    for name, values in tensors.items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):  # the file keeps rotary pairs side by side, we keep them half a head apart
                width = shape.hidden // shape.heads
                values = values.reshape(-1, width // 2, 2, shape.hidden).swapaxes(1, 2).reshape(values.shape)
            weights[f"model.layers.{layer}.{_LAYER[part]}.weight"] = values
    with torch.device("meta"):
        model = Llama(shape)
    model.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(w)) for n, w in weights.items()}, assign=True)
    place_rotary(model, shape)
    return model


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata (arrays left out) and all tensors as float32, rows first. Raises `ValueError` for formats it does not know."""
    with open(path, "rb") as file:
        magic, version, count, pairs = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path}: expected GGUF of version 2 or 3, found {magic!r} version {version}")
        facts = {}
        for _ in range(pairs):
            key = _string(file)
            value = _value(file, *_unpack(file, "<I"))
            if value is not None:
                facts[key] = value
        entries = []
        for _ in range(count):
            name = _string(file)
            (dims,) = _unpack(file, "<I")
            shape = _unpack(file, f"<{dims}Q")[::-1]
            entries.append((name, shape, *_unpack(file, "<IQ")))
        alignment = facts.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
        data = np.memmap(path, np.uint8, "r", start)
    return facts, {n: _dequantize(data[at:], kind, shape, n) for n, shape, kind, at in entries}


def _dequantize(data: np.ndarray, kind: int, shape: tuple[int, ...], name: str) -> np.ndarray:
    count = math.prod(shape)
    if kind in (0, 1):  # F32, F16
        plain = np.float32 if kind == 0 else np.float16
        return data[: count * plain().itemsize].view(plain).astype(np.float32).reshape(shape)
    if kind == 8:  # Q8_0: scale, 32 signed bytes
        blocks = data[: count // 32 * 34].reshape(-1, 34)
        return (_half(blocks, 0) * blocks[:, 2:].view(np.int8)).reshape(shape)
    if kind == 3:  # Q4_1: scale, least value, 16 bytes; low nibbles are the first half
        blocks = data[: count // 32 * 20].reshape(-1, 20)
        nibbles = np.concatenate((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), 1)
        return (_half(blocks, 0) * nibbles + _half(blocks, 2)).reshape(shape)
    raise ValueError(f"tensor {name} has GGUF type {kind}: expected F32, F16, Q8_0 or Q4_1")


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    return file.read(*_unpack(file, "<Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, length = _unpack(file, "<IQ")
        for _ in range(length):
            _value(file, inner)
        return None
    return _unpack(file, _SCALARS[kind])[0]
