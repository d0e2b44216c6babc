"""A small decoder in Llama layout (RMSNorm, rotary positions, SwiGLU, tied embedding unless said): parameter names are those of the file.

Who sees whom is an argument, so one class serves causal, fully bidirectional (LLaDA, arXiv:2502.09992) and block-causal
(BD3-LM, arXiv:2503.09573) models. No dropout, no bias, float32 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnidecode.train import alphabet

#: Keys and values of one layer, [batch, heads, rows, head width] each.
Cache = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `attention` is `causal`, `full` or `block` (then `block_size` positions see each other)."""

    attention: str = "causal"
    block_size: int = 0
    hidden: int = 128
    intermediate: int = 384
    layers: int = 5
    heads: int = 4
    kv_heads: int = 0  # 0: as many as heads
    context: int = 256
    vocabulary: int = len(alphabet.VOCABULARY)
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True  # the head is the embedding

    def config(self) -> dict[str, Any]:
        """`config.json` as the engine and transformers read it; the diffusion fields only where the model is one."""
        config = dict(
            architectures=["LlamaForCausalLM"],
            model_type="llama",
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            head_dim=self.hidden // self.heads,
            hidden_act="silu",
            rms_norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tied,
            attention_bias=False,
            mlp_bias=False,
            bos_token_id=alphabet.BOS,
            eos_token_id=alphabet.EOS,
            pad_token_id=alphabet.PAD,
        )
        if self.attention != "causal":
            config |= dict(mask_token_id=alphabet.MASK, logit_shift=0, attention=self.attention)
        if self.attention == "block":
            config |= dict(block_size=self.block_size)
        return config

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """The shape that `config()` described."""
        return cls(
            attention=config.get("attention", "causal"),
            block_size=config.get("block_size", 0),
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"] % config["num_attention_heads"],
            context=config["max_position_embeddings"],
            vocabulary=config["vocab_size"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
            tied=config["tie_word_embeddings"],
        )


def visible(attention: str, block_size: int, length: int) -> Tensor | None:
    """Boolean [length, length], true where row i sees row j; `None` when all see all. Blocks start at position 0."""
    if attention == "full":
        return None
    place = torch.arange(length) // (block_size if attention == "block" else 1)
    return place[:, None] >= place[None, :]


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        d, self.width = shape.hidden, shape.hidden // shape.heads
        kv = (shape.kv_heads or shape.heads) * self.width
        self.q_proj, self.k_proj = nn.Linear(d, d, bias=False), nn.Linear(d, kv, bias=False)
        self.v_proj, self.o_proj = nn.Linear(d, kv, bias=False), nn.Linear(d, d, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        parts = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        fused = F.linear(x, torch.cat(parts)).split([len(p) for p in parts], -1)  # one product instead of three
        q, k, v = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in fused)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        kept = k, v
        if k.shape[1] != q.shape[1]:  # grouped-query attention: each key serves several query heads
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in kept)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(2)), kept


class FeedForward(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        d, f = shape.hidden, shape.intermediate
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.Linear(d, f, bias=False),
            nn.Linear(d, f, bias=False),
            nn.Linear(f, d, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        y, kept = self.self_attn(self.input_layernorm(x), rotary, mask, past)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Decoder(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.norm_eps)


class Llama(nn.Module):
    """`forward(ids)`: logits of every row under the model's own mask. `states` is the general entry."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.model = shape, Decoder(shape)
        if not shape.tied:
            self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:  # smaller into the residual stream, so that it does not grow with depth at the start
                inward = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, 0, 0.02 if "embed" in name else shape.hidden**-0.5 * (0.5 if inward else 1))
        place_rotary(self, shape)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens(ids)

    def states(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        past: list[Cache] | None = None,
        taps: dict[int, Tensor | None] | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """States after the final norm of rows x [batch, rows, hidden], and the keys and values of all rows so far.

        `positions`: [rows], or [batch, rows]. `mask`: true where a row sees a key, [rows, past + rows], or with leading
        [batch, 1] dimensions; `None`: sees all. `past`: what an earlier call returned.
        `taps`: filled, for each layer number that is a key, with the states that enter that layer.
        """
        cos, sin = self.cos[positions], self.sin[positions]
        if positions.dim() == 2:
            cos, sin = cos[:, None], sin[:, None]  # one for all heads
        kept = []
        for i, layer in enumerate(self.model.layers):
            if taps and i in taps:
                taps[i] = x
            x, kv = layer(x, (cos, sin), mask, past[i] if past else None)
            kept.append(kv)
        return self.model.norm(x), kept

    def head(self, states: Tensor) -> Tensor:
        return F.linear(states, (self.model.embed_tokens if self.shape.tied else self.lm_head).weight)

    def forward(self, ids: Tensor, select: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocabulary] of ids [batch, length]; with `select` (flat row numbers) [selected, vocabulary]."""
        length = ids.shape[1]
        mask = visible(self.shape.attention, self.shape.block_size, length)
        states, _ = self.states(self.embed(ids), torch.arange(length), mask)
        return self.head(states if select is None else states.flatten(0, 1)[select])


def place_rotary(module: nn.Module, shape: Shape) -> None:
    """Gives `module` the tables `cos`, `sin` [context, head width] (not parameters: no file holds them)."""
    width, steps = shape.hidden // shape.heads, torch.arange(shape.context).float()
    angle = torch.outer(steps, shape.rope_theta ** (-torch.arange(0, width, 2).float() / width))
    angle = torch.cat((angle, angle), -1)
    module.register_buffer("cos", angle.cos(), False)
    module.register_buffer("sin", angle.sin(), False)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, half-split as in Llama. x [batch, heads, rows, head width]."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin
