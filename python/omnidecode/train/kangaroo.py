"""The adapter of Kangaroo (arXiv:2404.18911, sheet 50): attention without a feed-forward part, behind the first layers.

Draft distribution: softmax(W RMS(x + Attention(RMS(x)))), x the states that leave layer `exit_layer`, W the target's head,
frozen and shared. Taught by the target's own law at the same place (soft cross-entropy).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnidecode.train.drafter import Drafter
from omnidecode.train.lessons import Lesson, lessons


@dataclass(frozen=True)
class Kangaroo(Drafter):
    exit_layer: int = 10

    def build(self) -> Any:
        adapter = self.structure()
        self.fit(adapter)
        return adapter

    def structure(self) -> Any:
        """The adapter, its weights random."""
        shape = self.model_of_target().shape
        if not 0 < self.exit_layer < shape.layers:
            raise ValueError(f"exit_layer: expected 1 to {shape.layers - 1}, found {self.exit_layer}")
        return _adapter(shape)

    def fit(self, adapter: Any) -> None:
        """The best linear map to the target's final states, by least squares: from there on it is trained.

        Norms are the target's own of these places. Each place attends mostly to itself (keys are queries) and passes its state
        on whole, so that the output product is the map. It aims at the final state times a length that drowns the state which is
        added to it.
        """
        import torch

        target, layer = self.model_of_target(), adapter.layers[0]
        attention, width = layer.self_attn, target.shape.hidden
        with torch.no_grad():
            adapter.norm.weight.copy_(target.model.norm.weight)
            layer.input_layernorm.weight.copy_(target.model.layers[self.exit_layer].input_layernorm.weight)
            attention.q_proj.weight.mul_(2)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.v_proj.weight.copy_(torch.eye(width))
            attention.o_proj.weight.copy_(torch.eye(width))
            square, cross = torch.zeros(width, width), torch.zeros(width, width)
            for lesson in self.lessons(held=False):
                states = lesson.entering.float()
                mixed = adapter.attend(states[None])[0, lesson.rows]
                states = states[lesson.rows]
                length = 8 * states.square().mean(-1, keepdim=True).sqrt()
                square += mixed.T @ mixed
                cross += mixed.T @ (length * lesson.final.float() / target.model.norm.weight - states)
            ridge = 1e-3 * square.diagonal().mean() * torch.eye(width)
            attention.o_proj.weight.copy_(torch.linalg.solve(square + ridge, cross).T)

    def all_lessons(self) -> list[Lesson]:
        return lessons(self.target, self.text, self.window, self.exit_layer)

    def states(self, model: Any, lesson: Lesson, rows: Any) -> Any:
        return model(lesson.entering.float()[None])[0, rows]

    def table(self, model: Any) -> Any:
        return self.model_of_target().model.embed_tokens.weight

    def export(self, model: Any, folder: Any, facts: dict[str, Any]) -> None:
        from omnidecode.train import checkpoint

        folder.mkdir(parents=True, exist_ok=True)
        import torch

        tensors = {n: p.to(torch.float16) for n, p in model.named_parameters()}
        checkpoint.write_safetensors(folder / "model.safetensors", tensors)
        shape = self.model_of_target().shape
        config = dict(
            model_type="kangaroo",
            exit_layer=self.exit_layer,
            hidden_size=shape.hidden,
            num_hidden_layers=1,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            head_dim=shape.hidden // shape.heads,
            rms_norm_eps=shape.norm_eps,
            rope_theta=shape.rope_theta,
            vocab_size=shape.vocabulary,
            target_layers=shape.layers,
            torch_dtype="float16",
        )
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        facts = facts | dict(target=str(self.target and self.target.name))
        (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> Any:
        from omnidecode.train import checkpoint

        model = self.structure()
        tensors = checkpoint.read_safetensors(folder / "model.safetensors")
        model.load_state_dict({n: t.float() for n, t in tensors.items()})
        return model


def _adapter(shape: Any) -> Any:
    """The trained part for a target of `shape`; all query heads have their own keys."""
    from dataclasses import replace

    import torch
    from torch import nn

    from omnidecode.train.model import Attention, place_rotary

    own = replace(shape, kv_heads=0)

    class Adapter(nn.Module):
        """States [batch, rows, hidden] that leave the exit layer -> states that enter the head."""

        def __init__(self) -> None:
            super().__init__()
            layer = nn.Module()
            layer.input_layernorm, layer.self_attn = nn.RMSNorm(own.hidden, own.norm_eps), Attention(own)
            self.layers, self.norm = nn.ModuleList([layer]), nn.RMSNorm(own.hidden, own.norm_eps)
            place_rotary(self, own)

        def forward(self, x: Any) -> Any:
            return self.norm(x + self.attend(x))

        def attend(self, x: Any) -> Any:
            rows, layer = x.shape[1], self.layers[0]
            mask = torch.ones(rows, rows, dtype=torch.bool).tril()
            return layer.self_attn(layer.input_layernorm(x), (self.cos[:rows], self.sin[:rows]), mask, None)[0]

    return Adapter()


RECIPES = {"kangaroo": Kangaroo("kangaroo", steps=800, batch=4, learning_rate=1e-3)}
