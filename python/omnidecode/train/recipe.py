"""What a recipe is: a task (questions without end, and a judge), the shape of a model, an objective, a budget."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnidecode.train import alphabet

#: A row of a card's table: column name -> value.
Row = dict[str, Any]


class Task:
    """Questions with answers, made by a generator; needs no torch."""

    #: Tokens of a prompt including `<bos>` where all are equally long, else 0.
    prompt: int
    #: Tokens of the answer's room; the answer is followed by `<eos>` to its end.
    canvas: int
    #: Block length of semi-autoregressive decoding in the card's table.
    block: int

    def sample(self, random: random.Random) -> tuple[str, str]:
        """One question and one right answer."""

        raise NotImplementedError

    def judge(self, question: str, answer: str) -> bool:
        """Whether `answer` is right: a rule, which needs no solution at hand."""
        raise NotImplementedError

    def read(self, path: Path) -> list[tuple[str, str]]:
        """Questions of a JSON-lines file with `input` and `output`, in the form that `sample` gives."""
        raise ValueError(f"{type(self).__name__} reads no question files")


def held_out(question: str) -> bool:
    """One question in 32 by checksum: never trained on, and what the card's figures are measured with."""
    return zlib.crc32(question.encode()) % 32 == 0


def questions(task: Task, seed: str, count: int, held: bool) -> list[tuple[str, str]]:
    """`count` questions of one side of the split, the same for the same seed."""
    source = random.Random(seed)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        question, answer = task.sample(source)
        if held_out(question) == held:
            found.append((question, answer))
    return found


@dataclass(frozen=True)
class Recipe:
    """A model that learns to answer the questions of a task. `run` of the training loop calls the methods."""

    name: str
    task: Task
    #: `attention`, and any other field of `model.Shape`.
    shape: dict[str, Any] = field(default_factory=dict)
    steps: int = 2000
    #: Texts of a step.
    batch: int = 32
    learning_rate: float = 2e-3

    def build(self) -> Any:
        """A new model with random weights from torch's global seed."""
        from omnidecode.train.model import Llama, Shape

        return Llama(Shape(**self.shape))

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        """Loss of step `step`, and the tokens it ran. A pure function of the weights and (seed, step): resuming is exact."""
        import torch

        from omnidecode.train import objectives

        items = questions(self.task, f"{seed}:{step}", self.batch, held=False)
        noise = torch.Generator().manual_seed(seed * 1_000_003 + step)
        if model.shape.attention == "causal":
            prompts = [[alphabet.BOS, *alphabet.encode(q)] for q, _ in items]
            texts = [p + alphabet.encode(a) + [alphabet.EOS] for p, (_, a) in zip(prompts, items)]
            width = max(map(len, texts))
            ids = torch.tensor([t + [alphabet.PAD] * (width - len(t)) for t in texts])
            return objectives.causal(model, ids, torch.tensor([len(p) for p in prompts])), ids.numel()
        ids = torch.tensor([canvas_text(self.task, q, a) for q, a in items])
        objective = objectives.block_diffusion if model.shape.attention == "block" else objectives.diffusion
        return objective(model, ids, self.task.prompt, noise), ids.numel()

    def export(self, model: Any, folder: Path, facts: dict[str, Any]) -> None:
        """Writes the checkpoint that the engine loads."""
        from omnidecode.train import checkpoint

        checkpoint.export(folder, model, facts)

    def load(self, folder: Path) -> Any:
        """The exported model in torch."""
        from omnidecode.train import checkpoint

        return checkpoint.load(folder)

    def evaluate(self, model: Any, count: int, items: list[tuple[str, str]] | None = None) -> list[Row]:
        """The card's table over `count` held-out questions (or over `items`)."""
        from omnidecode.train import evaluate

        items = items or questions(self.task, "held-out", count, held=True)
        if model.shape.attention == "causal":
            return evaluate.causal(model, self.task, items)
        return evaluate.diffusion(model, self.task, items)


def canvas_text(task: Task, question: str, answer: str) -> list[int]:
    """Prompt and full canvas: `<bos>` question answer `<eos>`... Raises `ValueError` where the lengths do not fit the task."""
    prompt, text = [alphabet.BOS, *alphabet.encode(question)], alphabet.encode(answer)
    if len(prompt) != task.prompt or len(text) > task.canvas:
        raise ValueError(
            f"expected a prompt of {task.prompt} tokens and at most {task.canvas} of answer, found {len(prompt)} and {len(text)}"
        )
    return prompt + text + [alphabet.EOS] * (task.canvas - len(text))
