"""A value model for the companion `rectification` (arXiv:2302.14003, sheet 51): its logits are Q(s, a) in [-1, 0], minus the
chance that a text goes wrong once token `a` stands behind `s`.

The model it is for writes texts, a rule says which went wrong, and SARSA carries the reward of the end, -1 or 0, back through
their tokens against a slowly following copy of the network. The network begins as the writer, with another head. Here: running
sums, which the writer knows but errs in when it is sampled.

What it reached on these sums: after 300 steps it foresees how many texts go wrong (54 of 54 %), but hardly which digit is the
right one, and where one token is nearly certain and half of the texts still go wrong, its cap hands half of the law to others: capped
texts went wrong nearly always. No checkpoint is kept. Caps want events that the writer has ways around.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omnidecode.train import alphabet, sums
from omnidecode.train.recipe import Recipe, Row, Task, questions


class Texts(Task):
    """Not a task of its own: texts that another model wrote for one."""

    prompt = canvas = block = 0


@lru_cache(maxsize=1)
def read_writer(folder: Path) -> Any:
    from omnidecode.train import checkpoint

    return checkpoint.load(folder).eval()


@dataclass(frozen=True)
class Value(Recipe):
    """Learns what becomes of the texts that `target` writes for the questions of `asks` at `temperature`."""

    task: Task = Texts()
    target: Path | None = None
    text: Path | None = None
    asks: Task = sums.TASK
    temperature: float = 1.0
    #: Share of the network that its following copy takes over in a step.
    polyak: float = 0.1
    #: Tokens that the writer gives less than this are taught -1: no text tells what becomes of them, and with caps of 1 they
    #: would take over what is taken from the others.
    rare: float = 1e-3

    def writer(self) -> Any:
        if self.target is None or self.text is not None:
            raise ValueError(f"{self.name} needs --target (a folder that `omnidecode.train` wrote) and takes no --text")
        return read_writer(self.target)

    def build(self) -> Any:
        """The writer with a head of its own that says 0 of everything."""
        from torch import nn

        from omnidecode.train.model import Llama

        writer = self.writer()
        network = Llama(replace(writer.shape, tied=False))
        network.model.load_state_dict(writer.model.state_dict())
        nn.init.zeros_(network.lm_head.weight)
        return critic(network)

    def write(self, items: list[tuple[str, str]], seed: int) -> tuple[Any, Any, Any]:
        """The writer's answers: ids [texts, length], prompt lengths [texts], rewards [texts]."""
        import torch

        from omnidecode.train.decode import continue_text

        prompts = [[alphabet.BOS, *alphabet.encode(q)] for q, _ in items]
        answers = continue_text(self.writer(), prompts, self.asks.canvas, self.temperature, seed)
        wrong = [not self.asks.judge(q, alphabet.decode(a)) for (q, _), a in zip(items, answers)]
        texts = [p + a + [alphabet.EOS] * (len(a) < self.asks.canvas) for p, a in zip(prompts, answers)]
        width = max(map(len, texts))
        ids = torch.tensor([t + [alphabet.PAD] * (width - len(t)) for t in texts])
        return ids, torch.tensor([len(p) for p in prompts]), -torch.tensor(wrong).float()

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        import torch

        from omnidecode.train import objectives

        items = questions(self.asks, f"{seed}:{step}", self.batch, held=False)
        ids, prompts, rewards = self.write(items, seed * 1_000_003 + step)
        model.follow(self.polyak)
        with torch.no_grad():
            ahead = model.copy(ids)
            unknown = (self.writer()(ids) / self.temperature).softmax(-1) < self.rare
        values = model(ids)
        loss = objectives.sarsa(values, ahead, ids, prompts, rewards)
        return loss + ((values + 1) ** 2)[unknown].mean(), ids.numel()

    def export(self, model: Any, folder: Path, facts: dict[str, Any]) -> None:
        size = sum(p.numel() for p in model.network.parameters())
        super().export(model.network, folder, facts | dict(parameters=size))

    def load(self, folder: Path) -> Any:
        return critic(super().load(folder))

    def evaluate(self, model: Any, count: int, items: Any = None) -> list[Row]:
        """Per cent of texts that go wrong under the writer's own law and under capped ones, with 95 % intervals; and what the
        value foresees of the writer's own at their first token."""
        items = items or questions(self.asks, "held-out", count, held=True)
        ids, prompts, rewards = self.write(items, 1)
        at = prompts[:, None] - 1
        values = model(ids).detach().gather(1, at[..., None].expand(-1, -1, model.shape.vocabulary))[:, 0]
        foreseen = -values.gather(1, ids.gather(1, prompts[:, None])).clamp(-1, 0).mean().item()
        table = [dict(law="its own", foreseen=round(100 * foreseen, 1)) | rate(-rewards)]
        for epsilon in (0.0, 0.1, 0.3):
            texts = rectified(self.writer(), model, items, self.asks.canvas, self.temperature, epsilon, 2)
            wrong = [float(not self.asks.judge(q, t)) for (q, _), t in zip(items, texts)]
            table.append(dict(law=f"capped, epsilon {epsilon}") | rate(wrong))
        return table


def critic(network: Any) -> Any:
    """`network` with a frozen copy that follows it; calling it calls the network."""
    from torch import nn

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.shape = network, network.shape
            self.copy = copy.deepcopy(network).requires_grad_(False)

        def follow(self, share: float) -> None:
            """One step of the copy towards the network."""
            for mine, theirs in zip(self.copy.parameters(), self.network.parameters()):
                mine.lerp_(theirs.detach(), share)

        def forward(self, ids: Any) -> Any:
            return self.network(ids)

    return Critic()


def cap(law: Any, values: Any, epsilon: float) -> Any:
    """The law min(s, c p) that sums to 1 with s = 1 + Q - epsilon; s itself, normalised over what has mass, where there is none.
    `law`, `values`: [texts, vocabulary]."""
    import torch

    caps = (1 + values - epsilon).clamp(1e-7, 1) * (law > 0)
    scale = torch.ones(len(law), 1)
    capped = law > caps
    for _ in range(law.shape[1]):
        free = (law * ~capped).sum(1, keepdim=True)
        scale = ((1 - (caps * capped).sum(1, keepdim=True)) / free.clamp(min=1e-9)).maximum(scale)
        more = capped | (scale * law > caps)
        if torch.equal(more, capped):
            break
        capped = more
    kept = torch.where(capped, caps, scale * law)
    kept = torch.where(caps.sum(1, keepdim=True) < 1, caps, kept)
    return kept / kept.sum(1, keepdim=True)


def rectified(
    writer: Any, model: Any, items: list[tuple[str, str]], limit: int, temperature: float, epsilon: float, seed: int
) -> list[str]:
    """Texts drawn from the capped law, by dense forwards; questions of one length."""
    import torch

    source = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[alphabet.BOS, *alphabet.encode(q)] for q, _ in items])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(limit):
            logits = writer(ids)[:, -1]
            logits[:, [alphabet.PAD, alphabet.BOS, alphabet.MASK]] = -torch.inf
            law = cap((logits / temperature).softmax(-1), model(ids)[:, -1], epsilon)
            ids = torch.cat((ids, torch.multinomial(law, 1, generator=source)), 1)
    return [alphabet.decode(row) for row in ids[:, start:].tolist()]


def rate(wrong: Any) -> Row:
    """Per cent, and Wilson's 95 % interval."""
    n, p, z = len(wrong), float(sum(wrong)) / len(wrong), 1.96
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((middle + side * half) / (1 + z * z / n) for side in (-1, 1))
    return dict(wrong=round(100 * p, 1), interval=f"{100 * low:.1f} to {100 * high:.1f}")


RECIPES = {
    "sums-value": Value(
        "sums-value",
        steps=300,
        batch=32,
        learning_rate=1e-3,
    ),
}
