"""Tiny random checkpoints in the layouts of published diffusion models, and what transformers computes with them.

`python tests/golden/diffusion.py [FOLDER]` writes, for llada, llada-moe, dream and sdar, the folder with `config.json` (the
fields of the published files, small numbers), `model.safetensors` (their tensor names; float32, as products with bfloat16
round) and `golden.safetensors`: `input_ids` [24] and `logits` [24, vocabulary] under the model's own attention, unshifted,
float32. And `static.json`, a prompt and the canvas of 16 that the static loop makes of it: one token a forward, greedy, by
dense forwards.

The arithmetic is that of the models' autoregressive relatives (Llama, Qwen3-MoE, Qwen2, Qwen3) under a mask given by hand.
Needs torch and transformers 5; the tests that read the files need neither.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

VOCAB, MASK, EOS = 160, 158, 157
BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    initializer_range=0.25,
    attn_implementation="eager",
)
SPECIAL = dict(mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS)


def build(name: str) -> tuple[Any, dict[str, Any], int, int]:
    """The relative, the published configuration, the block of its attention (0: all see all), the shift of its logits."""
    if name == "llada":
        config = transformers.LlamaConfig(**BASE, num_key_value_heads=4, rms_norm_eps=1e-5, rope_theta=5e5)
        published = dict(
            activation_type="silu",
            alibi=False,
            architectures=["LLaDAModelLM"],
            attention_layer_norm=False,
            bias_for_layer_norm=False,
            block_group_size=1,
            block_type="llama",
            d_model=32,
            embedding_size=VOCAB,
            include_bias=False,
            include_qkv_bias=False,
            input_emb_norm=False,
            layer_norm_type="rms",
            layer_norm_with_affine=True,
            max_sequence_length=128,
            mlp_hidden_size=64,
            mlp_ratio=4,
            model_type="llada",
            multi_query_attention=None,
            n_heads=4,
            n_kv_heads=4,
            n_layers=2,
            rms_norm_eps=1e-5,
            rope=True,
            rope_full_precision=True,
            rope_theta=5e5,
            scale_logits=False,
            vocab_size=VOCAB,
            weight_tying=False,
            **SPECIAL,
        )
        return transformers.LlamaForCausalLM(config), published, 0, 0
    if name == "llada-moe":
        config = transformers.Qwen3MoeConfig(
            **BASE,
            num_key_value_heads=4,
            head_dim=8,
            rms_norm_eps=1e-5,
            rope_theta=5e4,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=False,
            mlp_only_layers=[0],
        )
        published = dict(
            architectures=["LLaDAMoEModelLM"],
            attention_bias=False,
            dense_intermediate_size=64,
            expert_intermediate_size=24,
            hidden_act="silu",
            hidden_size=32,
            max_position_embeddings=128,
            model_type="llada",
            moe_layer_freq=[0, 1],
            num_attention_heads=4,
            num_experts=4,
            num_experts_per_tok=2,
            num_hidden_layers=2,
            num_key_value_heads=4,
            qk_layernorm=True,
            rms_norm_eps=1e-5,
            rope_scaling=None,
            rope_theta=5e4,
            router_aux_loss_coef=0.01,
            shared_expert_intermediate_size=None,
            tie_word_embeddings=False,
            vocab_size=VOCAB,
            **SPECIAL,
        )
        return transformers.Qwen3MoeForCausalLM(config), published, 0, 0
    if name == "dream":
        config = transformers.Qwen2Config(**BASE, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6)
        published = dict(
            architectures=["DreamModel"],
            hidden_act="silu",
            hidden_size=32,
            intermediate_size=64,
            max_position_embeddings=128,
            max_window_layers=28,
            model_type="Dream",
            num_attention_heads=4,
            num_hidden_layers=2,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=1e6,
            sliding_window=None,
            tie_word_embeddings=False,
            use_mrope=False,
            use_sliding_window=False,
            vocab_size=VOCAB,
            **SPECIAL,
        )
        return transformers.Qwen2ForCausalLM(config), published, 0, 1
    config = transformers.Qwen3Config(**BASE, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6, rope_theta=1e6)
    published = dict(
        architectures=["SDARForCausalLM"],
        attention_bias=False,
        block_size=4,
        head_dim=8,
        hidden_act="silu",
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=128,
        max_window_layers=28,
        model_type="sdar",
        num_attention_heads=4,
        num_hidden_layers=2,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_scaling=None,
        rope_theta=1e6,
        sliding_window=None,
        tie_word_embeddings=False,
        use_sliding_window=False,
        vocab_size=VOCAB,
        **SPECIAL,
    )
    return transformers.Qwen3ForCausalLM(config), published, 4, 0


def published_name(model: str, name: str) -> str:
    """The tensor's name in the published file."""
    if model != "llada":
        return name
    top = {
        "model.embed_tokens.weight": "model.transformer.wte.weight",
        "model.norm.weight": "model.transformer.ln_f.weight",
        "lm_head.weight": "model.transformer.ff_out.weight",
    }
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ff_norm",
        "self_attn.q_proj": "q_proj",
        "self_attn.k_proj": "k_proj",
        "self_attn.v_proj": "v_proj",
        "self_attn.o_proj": "attn_out",
        "mlp.gate_proj": "ff_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "ff_out",
    }
    if name in top:
        return top[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"model.transformer.blocks.{layer}.{parts[part]}.weight"


def tensors(model: str, relative: Any) -> dict[str, torch.Tensor]:
    """Weights under their published names; stacked experts taken apart."""
    found = {}
    for name, tensor in relative.state_dict().items():
        if ".experts." not in name:
            found[published_name(model, name)] = tensor.contiguous()
            continue
        stem, kind = name.rsplit(".", 1)
        for expert, whole in enumerate(tensor):
            parts = dict(zip(("gate_proj", "up_proj"), whole.chunk(2))) if kind == "gate_up_proj" else {kind: whole}
            for part, weight in parts.items():
                found[f"{stem}.{expert}.{part}.weight"] = weight.contiguous()
    return found


@torch.no_grad()
def forward(relative: Any, ids: list[int], block: int) -> torch.Tensor:
    place = torch.arange(len(ids)) // (block or len(ids))
    mask = torch.where(place[:, None] >= place[None, :], 0.0, torch.finfo(torch.float32).min)
    return relative(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0]


def static(relative: Any, prompt: list[int], length: int, block: int, shift: int) -> tuple[list[int], float]:
    """One token a forward, the surest first, block by block (8 places where all see all); the smallest lead by which a
    choice was made, so that rounding cannot change one."""
    text, lead = prompt + [MASK] * length, 1.0
    for start in range(len(prompt), len(text), block or 8):
        end = start + (block or 8)
        for _ in range(start, end):
            logits = forward(relative, text if not block else text[:end], block)
            if shift:
                logits = torch.cat((logits[:1], logits[:-1]))
            logits[:, MASK] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            open_ = [p for p in range(start, end) if text[p] == MASK]
            order = sorted(open_, key=lambda p: -sure[p])
            if len(order) > 1:
                lead = min(lead, float(sure[order[0]] - sure[order[1]]))
            top = logits[order[0]].topk(2).values
            lead = min(lead, float(top[0] - top[1]))
            text[order[0]] = int(token[order[0]])
    return text[len(prompt) :], lead


def main(folder: Path) -> None:
    for name in ("llada", "llada-moe", "dream", "sdar"):
        for seed in range(100):
            torch.manual_seed(seed)
            relative, published, block, shift = build(name)
            for key, parameter in relative.named_parameters():
                if "norm" in key:  # weights that do something
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
                elif key.endswith("bias"):
                    torch.nn.init.normal_(parameter, 0, 0.3)
            relative = relative.eval()
            ids = torch.randint(0, VOCAB, (24,)).tolist()
            prompt = torch.randint(0, MASK - 1, (8,)).tolist()
            canvas, lead = static(relative, prompt, 16, block, shift)
            if lead > 1e-3 and EOS not in canvas and len(set(canvas)) > 8:
                break
        else:
            sys.exit(f"{name}: no seed whose choices are clear")
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors(name, relative), path / "model.safetensors", {"format": "pt"})
        golden = dict(input_ids=torch.tensor(ids, dtype=torch.int32), logits=forward(relative, ids, block).contiguous())
        save_file(golden, path / "golden.safetensors")
        (path / "static.json").write_text(json.dumps(dict(prompt=prompt, canvas=canvas)) + "\n", encoding="utf-8")
        text = json.dumps(dict(published, torch_dtype="float32"), indent=2)
        (path / "config.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}: seed {seed}, choices lead by {lead:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
