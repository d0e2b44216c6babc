"""Countdown with three numbers: `65,34,56,25=` asks for 25 from 65, 34 and 56; `65-34=31,56-31=25` is one answer.

Every number is used once; steps stay whole and not negative. Several answers are right, so a rule judges. A small model finds
one in some samples only: what search with a judge is measured on.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnidecode.train.recipe import Recipe, Row, Task

STEP = re.compile(r"(\d{1,4})([-+*/])(\d{1,4})=(\d{1,4})")


class Countdown(Task):
    prompt, canvas, block = 0, 24, 24

    def sample(self, random: random.Random) -> tuple[str, str]:
        """Three numbers of 1 to 99, a target of 10 to 99 that is none of them."""
        while True:
            numbers = [random.randint(1, 99) for _ in range(3)]
            pool, steps = numbers[:], []
            while len(pool) > 1:
                random.shuffle(pool)
                x, y = pool.pop(), pool.pop()
                sign = random.choice("+-*/" if y and x % y == 0 else "+-*")
                if sign == "-" and x < y:
                    x, y = y, x
                result = apply(x, sign, y)
                assert result is not None, "the sign was chosen so that there is one"
                pool.append(result)
                steps.append(f"{x}{sign}{y}={pool[-1]}")
            target = pool[0]
            if 10 <= target <= 99 and target not in numbers and all(STEP.fullmatch(s) for s in steps):
                return ",".join(map(str, [*numbers, target])) + "=", ",".join(steps)

    def judge(self, question: str, answer: str) -> bool:
        *pool, target = map(int, question.rstrip("=").split(","))
        for step in answer.split(","):
            found = STEP.fullmatch(step)
            if not found:
                return False
            x, y, z = int(found[1]), int(found[3]), int(found[4])
            for used in (x, y):
                if used not in pool:
                    return False
                pool.remove(used)
            if apply(x, found[2], y) != z:
                return False
            pool.append(z)
        return pool == [target]

    def read(self, path: Path) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(x["input"] + "=", x["output"]) for x in lines]


def apply(x: int, sign: str, y: int) -> int | None:
    """The result of one step, `None` where it is not whole or negative."""
    if sign == "/":
        return x // y if y and x % y == 0 else None
    z = x + y if sign == "+" else x - y if sign == "-" else x * y
    return z if z >= 0 else None


@dataclass(frozen=True)
class Search(Recipe):
    """Measured greedily and by samples: what best-of-N can find."""

    def evaluate(self, model: Any, count: int, items: list[tuple[str, str]] | None = None) -> list[Row]:
        from omnidecode.train import evaluate
        from omnidecode.train.recipe import questions

        return evaluate.causal(model, self.task, items or questions(self.task, "held-out", count, held=True), draws=16)


TASK = Countdown()
RECIPES = {
    "countdown-ar": Search("countdown-ar", TASK, dict(attention="causal"), steps=1500, batch=96, learning_rate=3e-3),
}
