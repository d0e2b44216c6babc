"""Tables of a card: accuracy of an answer as a whole, against the number of forwards."""

from __future__ import annotations

import torch

from omnidecode.train import alphabet
from omnidecode.train.decode import Rule, continue_text, denoise, share
from omnidecode.train.model import Llama
from omnidecode.train.recipe import Row, Task

RULES = [
    *(Rule(count=n) for n in (1, 2, 4, 8)),
    *(Rule(threshold=t) for t in (0.9, 0.7, 0.5)),
    Rule("random"),
    Rule("left"),
]


def diffusion(model: Llama, task: Task, items: list[tuple[str, str]], rules: list[Rule] = RULES) -> list[Row]:
    """One row a rule and block length: accuracy in per cent, mean forwards, mean committed tokens (first `<eos>` included) a forward."""
    prompts = torch.tensor([[alphabet.BOS, *alphabet.encode(q)] for q, _ in items])
    sizes = {model.shape.block_size} if model.shape.attention == "block" else dict.fromkeys((task.canvas, task.block))
    table = []
    for block in sizes:
        for rule in rules:
            parts = [denoise(model, p, task.canvas, block, rule) for p in prompts.split(64)]
            canvas, forwards = (torch.cat(part) for part in zip(*parts))
            answers = [alphabet.decode(row) for row in canvas.tolist()]
            tokens = sum(min(len(a) + 1, task.canvas) for a in answers)
            table.append(
                dict(
                    decoding=str(rule),
                    block=block,
                    accuracy=share([task.judge(q, a) for (q, _), a in zip(items, answers)]),
                    forwards=round(forwards.float().mean().item(), 2),
                    tokens_per_forward=round(tokens / int(forwards.sum()), 2),
                )
            )
    return table


def causal(model: Llama, task: Task, items: list[tuple[str, str]], draws: int = 0) -> list[Row]:
    """Greedy accuracy; with `draws`, also of samples at temperature 1, one by one and the best of all."""
    prompts = [[alphabet.BOS, *alphabet.encode(q)] for q, _ in items]

    def run(temperature: float, seed: int) -> list[bool]:
        hits = []
        for at in range(0, len(items), 64):
            out = continue_text(model, prompts[at : at + 64], task.canvas, temperature, seed + at)
            hits += [task.judge(q, alphabet.decode(o)) for (q, _), o in zip(items[at:], out)]
        return hits

    table = [dict(decoding="greedy", accuracy=share(run(0.0, 0)))]
    if draws:
        samples = [run(1.0, 10_000 * (s + 1)) for s in range(draws)]
        table.append(dict(decoding="sampled, temperature 1", accuracy=share([h for s in samples for h in s])))
        for n in (4, 16):
            if n <= draws:
                table.append(dict(decoding=f"any of {n} samples", accuracy=share([any(h) for h in zip(*samples[:n])])))
    return table
