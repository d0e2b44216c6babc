"""GGUF, as much of it as drafters need: read a Llama-type target (F32, F16, Q8_0, Q4_1), write a draft (Q8_0, norms in F32)."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from omnidecode.train.checkpoint import replacing

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
#: Our name of a tensor of layer i, without `model.layers.i.` and `.weight`.
LAYER = {
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


def write_llama(path: Path, model: Any) -> None:
    """Writes a `model.Llama` with a tied head. Widths must be multiples of 32. No tokenizer is written."""
    shape = model.shape
    facts: dict[str, Any] = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.vocab_size": shape.vocabulary,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.intermediate,
        "llama.rope.dimension_count": shape.hidden // shape.heads,
        "llama.rope.freq_base": float(shape.rope_theta),
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads or shape.heads,
        "llama.attention.layer_norm_rms_epsilon": float(shape.norm_eps),
    }
    theirs = {ours: name for name, ours in LAYER.items()}
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                values = interleave(values, shape.hidden // shape.heads, back=False)
            name = f"blk.{layer}.{theirs[part]}.weight"
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        tensors[name] = values
    head, body, infos = b"", [], b""
    for key, value in facts.items():
        kind, form = {str: (_STRING, ""), int: (4, "<I"), float: (6, "<f")}[type(value)]
        head += _text(key) + struct.pack("<I", kind)
        head += _text(value) if kind == _STRING else struct.pack(form, value)
    at = 0
    for name, values in tensors.items():
        kind, raw = (8, _q8_0(values)) if values.ndim > 1 else (0, values.tobytes())
        infos += _text(name) + struct.pack(f"<I{values.ndim}QIQ", values.ndim, *values.shape[::-1], kind, at)
        raw += b"\0" * (-len(raw) % 32)
        body.append(raw)
        at += len(raw)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(facts)) + head + infos
    with replacing(path) as file:
        file.write(head + b"\0" * (-len(head) % 32) + b"".join(body))


def interleave(values: np.ndarray, width: int, back: bool) -> np.ndarray:
    """Rows [heads * width, inputs] of a query or key product: the file keeps rotary pairs side by side, we half a head apart."""
    pairs = (-1, width // 2, 2, values.shape[1]) if back else (-1, 2, width // 2, values.shape[1])
    return values.reshape(pairs).swapaxes(1, 2).reshape(values.shape)


def _q8_0(values: np.ndarray) -> bytes:
    """Blocks of 32: the scale in half precision, then 32 signed bytes."""
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    wide = scale.astype(np.float32)
    codes = np.rint(np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide > 0)).clip(-127, 127).astype(np.int8)
    return np.concatenate((scale.view(np.int8), codes), 1).tobytes()


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
