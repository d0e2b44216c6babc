"""A target to train a drafter for: a Llama-type model from a GGUF file (dequantized) or from a folder of ours, frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from omnidecode.train import checkpoint
from omnidecode.train.gguf import LAYER, interleave, read_gguf
from omnidecode.train.model import Llama, Shape, place_rotary


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
                values = interleave(values, shape.hidden // shape.heads, back=True)
            weights[f"model.layers.{layer}.{LAYER[part]}.weight"] = values
    with torch.device("meta"):
        model = Llama(shape)
    model.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(w)) for n, w in weights.items()}, assign=True)
    place_rotary(model, shape)
    return model
