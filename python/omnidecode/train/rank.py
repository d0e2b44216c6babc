"""Lists put in order, as FIRST is trained (arXiv:2406.15657, sheet 01): `>A41B07C93=` is answered by `CAB`, largest first, and
with `<` smallest first.

Beside the next-token loss of the whole list, `rank-first` has the weighted RankNet loss of the letters' logits at the place of
the first of them, which is all that the strategy `first` reads. `rank-list` is the same model without it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from omnidecode.train import alphabet
from omnidecode.train.recipe import Recipe, Row, Task, questions

LETTERS = "ABCDEF"


class Order(Task):
    prompt, canvas, block = 2 + 3 * len(LETTERS) + 1, 8, 8

    def sample(self, random: random.Random) -> tuple[str, str]:
        """Two-digit numbers that differ, each behind its letter."""
        numbers = random.sample(range(100), len(LETTERS))
        text = random.choice("<>") + "".join(f"{c}{n:02}" for c, n in zip(LETTERS, numbers)) + "="
        return text, order(text)

    def judge(self, question: str, answer: str) -> bool:
        return answer == order(question)


def order(question: str) -> str:
    """The letters of a question in their order."""
    numbers = {question[at]: int(question[at + 1 : at + 3]) for at in range(1, len(question) - 1, 3)}
    return "".join(sorted(numbers, key=lambda c: numbers[c], reverse=question[0] == ">"))


def agreement(first: str, second: str) -> float:
    """Kendall's tau of two orders of the same letters: 1 if they are equal, -1 if one is the other backwards."""
    pairs = [(a, b) for i, a in enumerate(first) for b in first[i + 1 :]]
    return sum(1 if second.index(a) < second.index(b) else -1 for a, b in pairs) / len(pairs)


@dataclass(frozen=True)
class Ranking(Recipe):
    #: Of the ranking loss, beside the next-token loss: lambda of the sheet.
    strength: float = 10.0

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        import torch

        from omnidecode.train import objectives

        items = questions(self.task, f"{seed}:{step}", self.batch, held=False)
        texts = [[alphabet.BOS, *alphabet.encode(q + a), alphabet.EOS] for q, a in items]
        ids, prompts = torch.tensor(texts), torch.full((len(texts),), self.task.prompt)
        labels = torch.tensor(alphabet.encode(LETTERS))
        ranks = torch.tensor([[a.index(c) + 1 for c in LETTERS] for _, a in items])
        return objectives.listwise(model, ids, prompts, labels, ranks, self.strength), ids.numel()

    def evaluate(self, model: Any, count: int, items: Any = None) -> list[Row]:
        """Kendall's tau between the right order and that of the letters' first logits; and the share of lists that are
        written right, letter after letter."""
        import torch

        from omnidecode.train import evaluate

        items = items or questions(self.task, "held-out", count, held=True)
        ids = torch.tensor([[alphabet.BOS, *alphabet.encode(q)] for q, _ in items])
        with torch.no_grad():
            scores = model(ids)[:, -1, alphabet.encode(LETTERS)]
        orders = ["".join(LETTERS[i] for i in row) for row in scores.argsort(-1, descending=True).tolist()]
        tau = sum(agreement(a, o) for (_, a), o in zip(items, orders)) / len(items)
        written = evaluate.causal(model, self.task, items)[0]["accuracy"]
        return [dict(read="first logits", tau=round(tau, 3)), dict(read="written list", accuracy=written)]


TASK = Order()
SHAPE = dict(attention="causal", layers=3, hidden=64, intermediate=192, heads=2)
RECIPES = {
    "rank-first": Ranking("rank-first", TASK, SHAPE, steps=600, batch=64, learning_rate=4e-3),
    "rank-list": Ranking("rank-list", TASK, SHAPE, steps=600, batch=64, learning_rate=4e-3, strength=0.0),
}
