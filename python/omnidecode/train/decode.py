"""Naive decoding with dense forwards, to say in a card what a model reached. The engine's loops are another, faster story."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnidecode.train.alphabet import BOS, EOS, MASK, PAD
from omnidecode.train.model import Llama


@dataclass(frozen=True)
class Rule:
    """Which masked positions a forward commits: the best `count` by `order`, or also all at least `threshold` sure."""

    order: str = "confidence"  # or "random", "left"
    count: int = 1
    threshold: float | None = None

    def __str__(self) -> str:
        if self.threshold is not None:
            return f"threshold {self.threshold}"
        return f"{self.order}, {self.count} a step"


@torch.no_grad()
def denoise(model: Llama, prompts: Tensor, canvas: int, block: int, rule: Rule, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Fills `canvas` positions behind prompts [batch, P], block by block (sheet 00-diffusion, 3a and 3c); greedy tokens.

    A finished block that holds `<eos>` ends the text. Returns canvases [batch, canvas] and each row's number of forwards.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, start = prompts.shape
    text = torch.cat((prompts, torch.full((batch, canvas), MASK)), 1)
    at = torch.zeros(batch, dtype=torch.long)  # block that a row is in
    forwards = torch.zeros(batch, dtype=torch.long)
    column = torch.arange(start + canvas)
    active = torch.arange(batch)
    while len(active):
        rows = text[active]
        low = (start + at[active] * block)[:, None]
        end = int(low.max()) + block if model.shape.attention == "block" else start + canvas
        logits = model(rows[:, :end])
        logits[..., MASK] = -torch.inf
        sure, token = logits.softmax(-1).max(-1)
        forwards[active] += 1
        here = column[:end]
        open_ = (rows[:, :end] == MASK) & (here >= low) & (here < low + block)
        if rule.order == "random":
            score = torch.rand(sure.shape, generator=generator)
        elif rule.order == "left":
            score = -here.float().expand_as(sure)
        else:
            score = sure
        best = score.masked_fill(~open_, -torch.inf).topk(min(rule.count, block), 1).indices
        commit = torch.zeros_like(open_).scatter_(1, best, True)
        if rule.threshold is not None:
            commit |= sure >= rule.threshold
        rows[:, :end] = torch.where(commit & open_, token, rows[:, :end])
        text[active] = rows
        going = []
        for r in active.tolist():
            window = text[r, start + at[r] * block :][:block]
            if (window == MASK).any():
                going.append(r)
                continue
            at[r] += 1
            if (window == EOS).any():
                text[r][text[r] == MASK] = EOS
            elif at[r] * block < canvas:
                going.append(r)
        active = torch.tensor(going, dtype=torch.long)
    return text[:, start:], forwards


@torch.no_grad()
def continue_text(
    model: Llama, prompts: list[list[int]], limit: int, temperature: float = 0.0, seed: int = 0
) -> list[list[int]]:
    """Up to `limit` tokens behind each prompt, ended by `<eos>` (not returned). Greedy, or sampled at `temperature`."""
    generator = torch.Generator().manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    real = ids != PAD
    positions = (real.cumsum(1) - 1).clamp(min=0)
    mask = (torch.ones(width, width, dtype=torch.bool).tril() & real[:, None, :]) | torch.eye(width, dtype=torch.bool)
    states, past = model.states(model.embed(ids), positions, mask[:, None])
    place = positions[:, -1:]
    out, done = [], torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(limit):
        logits = model.head(states[:, -1])
        logits[:, [PAD, BOS, MASK]] = -torch.inf
        if temperature > 0:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            token = logits.argmax(-1, keepdim=True)
        out.append(token)
        done |= token[:, 0] == EOS
        if done.all():
            break
        place = place + 1
        real = torch.cat((real, torch.ones(len(prompts), 1, dtype=torch.bool)), 1)
        states, past = model.states(model.embed(token), place, real[:, None, None], past)
    return [row[: row.index(EOS)] if EOS in row else row for row in torch.cat(out, 1).tolist()]


def share(hits: list[bool]) -> float:
    """Per cent, one decimal."""
    return round(100 * sum(hits) / len(hits), 1)
