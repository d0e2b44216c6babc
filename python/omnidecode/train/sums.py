"""Running sums of digits: `2+7-8...=` is answered by `2,9,1`, a total a step; the last one is the answer.

Totals stay from 0 to 9. A step is right or wrong whatever comes after it, so a rule can judge beginnings too; the model is
small and trained briefly, so that it errs: what search with a judge is measured on, where several texts have one answer (votes).

The question is filled up with `.`, so that a total stands at one distance from its term. (Without that, and with totals up to 19
and up to 99, 600 steps left no text right as a whole.)
"""

from __future__ import annotations

import random
import re

from omnidecode.train.recipe import Recipe, Task

#: Largest total; room of the question.
MOST, ROOM = 9, 18


class Sums(Task):
    prompt, canvas, block = 0, 24, 24

    def sample(self, random: random.Random) -> tuple[str, str]:
        """A digit, then four to eight digits to add or subtract."""
        total = random.randint(0, MOST)
        text = str(total)
        for _ in range(random.randint(4, 8)):
            sign = "+" if total == 0 else "-" if total == MOST else random.choice("+-")
            number = random.randint(1, MOST - total if sign == "+" else total)
            total = total + number if sign == "+" else total - number
            text += f"{sign}{number}"
        return text.ljust(ROOM, ".") + "=", ",".join(totals(text))

    def judge(self, question: str, answer: str) -> bool:
        return answer == ",".join(totals(question))


def totals(question: str) -> list[str]:
    """The running totals of `n(+n|-n)*`."""
    out, total = [], 0
    for term in re.findall(r"[+-]?\d+", question):
        total += int(term)
        out.append(str(total))
    return out


def rate(question: str, answer: str, finished: bool) -> float:
    """1 while every whole step is right, and at the end all are there; else 0. A judge of texts on the way."""
    steps = answer.split(",")
    if finished:
        return float(steps == totals(question))
    whole = steps[:-1]  # what stands behind the last comma is not a step yet
    return float(whole == totals(question)[: len(whole)])


TASK = Sums()
RECIPES = {
    "sums-ar": Recipe(
        "sums-ar",
        TASK,
        dict(attention="causal", layers=4, hidden=64, intermediate=192, heads=2),
        steps=400,
        batch=64,
        learning_rate=4e-3,
    ),
}
