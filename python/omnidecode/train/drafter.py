"""What the recipes of drafters share: a frozen target, lessons from text that it wrote, how well a drafter guesses it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omnidecode.train.lessons import Lesson, lessons
from omnidecode.train.recipe import Recipe, Row, Task

#: Tokens that stand for all that are not taught in a step.
OTHERS = 2048


class Text(Task):
    """Not a task with a judge: texts that a target wrote (`train.write`)."""

    prompt = canvas = block = 0


@lru_cache(maxsize=1)
def read_target(path: Path) -> Any:
    from omnidecode.train import target

    return target.load(path)


@dataclass(frozen=True)
class Drafter(Recipe):
    """A recipe over `text` (JSON lines) that `target` wrote. Every twentieth text is held out.

    Loss: soft cross-entropy with the target's own law at the same place (sheet 00-drafter-training, `ce_soft`).
    """

    task: Task = Text()
    target: Path | None = None
    text: Path | None = None
    #: Longest text, in tokens; longer ones are cut at the right.
    window: int = 384
    #: Most places of a text that a step asks about, drawn anew each time: the head costs more than the rest.
    places: int = 64

    def model_of_target(self) -> Any:
        if self.target is None or self.text is None:
            raise ValueError(
                f"{self.name} needs --target (a GGUF file or a folder) and --text (what it wrote: `omnidecode.train.write`)"
            )
        return read_target(self.target)

    def all_lessons(self) -> list[Lesson]:
        """Those of all texts; `Kangaroo` wants states as well."""
        return lessons(self.target, self.text, self.window, 0)

    def lessons(self, held: bool) -> list[Lesson]:
        """Those of one side of the split."""
        self.model_of_target()
        return [lesson for i, lesson in enumerate(self.all_lessons()) if (i % 20 == 19) == held]

    def states(self, model: Any, lesson: Lesson, rows: Any) -> Any:
        """What enters the head at rows (numbers within the text) of a lesson, [rows, width]."""
        raise NotImplementedError

    def table(self, model: Any) -> Any:
        """The head: [vocabulary, width]."""
        raise NotImplementedError

    def guesses(self, model: Any, lesson: Lesson, rows: Any) -> Any:
        """The drafter's logits [rows, vocabulary]."""
        return self.states(model, lesson, rows) @ self.table(model).T

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        """Of `batch` texts, a function of (seed, step) alone; and the places it asked about.

        The head would cost more than all the rest. So it is run for the tokens that are taught in this step, and the sum over
        the others is estimated from `OTHERS` of them.
        """
        import torch

        source = random.Random(f"{seed}:{step}")
        states, choices, shares = [], [], []
        for lesson in source.sample(self.lessons(held=False), self.batch):
            written = len(lesson.choices)
            asked = torch.tensor(sorted(source.sample(range(written), min(written, self.places))))
            states.append(self.states(model, lesson, asked + lesson.rows.start))
            choices.append(lesson.choices[asked])
            shares.append(lesson.shares[asked])
        table = self.table(model)
        taught, at = torch.cat(choices).long().unique(return_inverse=True)
        other = torch.ones(len(table), dtype=torch.bool)
        other[taught] = False
        others = other.nonzero()[:, 0]
        drawn = others[torch.tensor(source.sample(range(len(others)), min(OTHERS, len(others))), dtype=torch.long)]
        logits = torch.cat(states) @ table[torch.cat((taught, drawn))].T
        if len(drawn):  # each stands for several
            logits[:, len(taught) :] += math.log(len(others) / len(drawn))
        said = logits.log_softmax(-1).gather(-1, at)
        return -(torch.cat(shares).float() * said).sum() / len(at), len(at)

    def evaluate(self, model: Any, count: int, items: Any = None) -> list[Row]:
        """On held-out text: expected acceptance at temperature 1, the sum of min(p, q) over the target's likeliest choices;
        and how often the first choices agree."""
        import torch

        total = agree = accept = 0.0
        with torch.no_grad():
            for lesson in self.lessons(held=True)[:count]:
                rows = torch.arange(lesson.rows.start, lesson.rows.stop)
                guess = self.guesses(model, lesson, rows).softmax(-1)
                choices = lesson.choices.long()
                total += len(rows)
                accept += torch.minimum(lesson.shares.float(), guess.gather(-1, choices)).sum().item()
                agree += (choices[:, 0] == guess.argmax(-1)).sum().item()
        return [dict(tokens=int(total), acceptance=round(accept / total, 3), agreement=round(agree / total, 3))]
