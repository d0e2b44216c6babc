"""What the recipes of drafters share: a frozen target, text that it wrote, and how well a drafter guesses it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omnidecode.train.recipe import Recipe, Row, Task


class Text(Task):
    """Not a task with a judge: texts that a target wrote (`train.write`)."""

    prompt = canvas = block = 0


@lru_cache(maxsize=2)
def read_texts(path: Path) -> list[dict[str, Any]]:
    """Rows `{ids, prompt}` with at least two written tokens. Raises `ValueError` if there are fewer than 20."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [r for r in rows if len(r["ids"]) >= r["prompt"] + 2]
    if len(rows) < 20:
        raise ValueError(f"{path}: expected at least 20 texts with two written tokens or more, found {len(rows)}")
    return rows


@lru_cache(maxsize=1)
def read_target(path: Path) -> Any:
    from omnidecode.train import target

    return target.load(path)


@dataclass(frozen=True)
class Drafter(Recipe):
    """A recipe over `text` (JSON lines) that `target` wrote. Every twentieth text is held out."""

    task: Task = Text()
    target: Path | None = None
    text: Path | None = None
    #: Longest text, in tokens; longer ones are cut at the right.
    window: int = 256

    def model_of_target(self) -> Any:
        if self.target is None or self.text is None:
            raise ValueError(
                f"{self.name} needs --target (a GGUF file or a folder) and --text (what it wrote: `omnidecode.train.write`)"
            )
        return read_target(self.target)

    def texts(self, held: bool) -> list[dict[str, Any]]:
        self.model_of_target()
        return [r for i, r in enumerate(read_texts(self.text)) if (i % 20 == 19) == held]

    def draw(self, seed: int, step: int) -> list[dict[str, Any]]:
        """The texts of a step, a function of (seed, step) alone."""
        return random.Random(f"{seed}:{step}").sample(self.texts(held=False), self.batch)

    def evaluate(self, model: Any, count: int, items: Any = None) -> list[Row]:
        """On held-out text: expected acceptance at temperature 1, sum over v of min(p, q); and how often the first choices agree."""
        import torch

        total = agree = accept = 0.0
        with torch.no_grad():
            for row in self.texts(held=True)[:count]:
                p, q = (logits.softmax(-1) for logits in self.judged(model, row))
                total += len(p)
                accept += torch.minimum(p, q).sum().item()
                agree += (p.argmax(-1) == q.argmax(-1)).sum().item()
        return [dict(tokens=int(total), acceptance=round(accept / total, 3), agreement=round(agree / total, 3))]

    def judged(self, model: Any, row: dict[str, Any]) -> tuple[Any, Any]:
        """Target's and drafter's logits of one text, [written tokens, vocabulary] each: row j speaks of written token j."""
        raise NotImplementedError
