"""Checkpoints: safetensors for the engine, a torch file to resume from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from omnidecode.train import alphabet
from omnidecode.train.model import Llama, Shape

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes `tensors` as one safetensors file: header length (u64, little endian), JSON header, raw data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, t in sorted(tensors.items()):
        size = t.numel() * t.element_size()
        header[name] = dict(dtype=_NAMES[t.dtype], shape=list(t.shape), data_offsets=[at, at + size])
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned to 8 bytes
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, t in sorted(tensors.items()):
            file.write(t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that `write_safetensors` wrote (F32, F16, BF16)."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            a, b = entry["data_offsets"]
            flat = torch.frombuffer(data[start + a : start + b], dtype=_DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def export(
    folder: Path, model: Llama, facts: dict[str, Any], dtype: torch.dtype = torch.float16, tokenizer: bool = True
) -> None:
    """Writes what the engine loads: `model.safetensors`, `config.json`, our tokenizer; and `training.json` with `facts`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", {n: p.to(dtype) for n, p in model.named_parameters()})
    config = model.shape.config() | dict(torch_dtype=str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if tokenizer:
        alphabet.write_tokenizer(folder)


def load(folder: Path) -> Llama:
    """The exported model, weights widened to float32. Raises `ValueError` for what `export` did not write."""
    model = Llama(Shape.of(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    model.load_state_dict({n: t.float() for n, t in read_safetensors(folder / "model.safetensors").items()})
    return model


def save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """What `--resume` needs. Random numbers are keyed by (seed, step), so no generator state is kept."""
    with replacing(path) as file:
        torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), facts=facts), file)


class replacing:
    """An open file that takes the place of `path` when it was written whole: an interrupted run leaves the old one."""

    def __init__(self, path: Path):
        self.path, self.draft = path, path.with_name(path.name + ".part")

    def __enter__(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.draft, "wb")
        return self.file

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        if failed:
            self.draft.unlink()
        else:
            os.replace(self.draft, self.path)
