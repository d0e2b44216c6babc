"""Running totals: `3+4-2+3;5-1;` is answered by `3>7>5>8;5>4;`, written under the question character by character.

Totals stay from 0 to 9. (Totals modulo ten were tried: neither operand alone tells anything of their sum, and no model of
this size, not even a causal one, left the plateau in a million tokens.)

A line is a chain: each total needs the one before it, so a chain takes as many steps as it has totals. Lines do not depend on
each other, and the signs between totals can be copied. So there is something to decode in parallel, and decoding blindly in
parallel goes wrong: the text-like task on which loops, caches, blocks and early ends are measured.

The question is filled up with `.` to 62 characters and ended by `=`, so that prompt and canvas have 64 tokens; the answer ends
in `<eos>`, repeated to the end of the canvas. The long form has 126 characters: prompt and canvas of 128 tokens.
"""

from __future__ import annotations

import random
import re

from omnidecode.train.recipe import Recipe, Task


class Chains(Task):
    """Questions of 20 to `room` characters, filled up to `room`."""

    block = 16

    def __init__(self, room: int):
        self.room = room
        self.prompt = self.canvas = room + 2

    def sample(self, random: random.Random) -> tuple[str, str]:
        """Lines of 2 to 10 numbers."""
        room = random.randint(20, self.room)
        lines: list[str] = []
        while True:
            total = random.randint(0, 9)
            line = str(total)
            for _ in range(random.randint(1, 9)):
                sign = "+" if total == 0 else "-" if total == 9 else random.choice("+-")
                number = random.randint(1, 9 - total if sign == "+" else total)
                total = total + number if sign == "+" else total - number
                line += f"{sign}{number}"
            line += ";"
            if lines and sum(map(len, lines)) + len(line) > room:
                question = "".join(lines)
                return question.ljust(self.room, ".") + "=", solve(question)
            lines.append(line)

    def judge(self, question: str, answer: str) -> bool:
        return answer == solve(question.rstrip("=."))


def solve(question: str) -> str:
    """The answer to lines `d(+d|-d)*;`."""
    out = []
    for line in question.split(";")[:-1]:
        total, totals = 0, []
        for term in re.findall(r"[+-]?\d", line):
            total += int(term)
            totals.append(str(total))
        out.append(">".join(totals) + ";")
    return "".join(out)


TASK, LONG = Chains(62), Chains(126)
RECIPES = {
    "chains-diffusion": Recipe("chains-diffusion", TASK, dict(attention="full"), steps=1500, batch=16),
    "chains-block": Recipe("chains-block", TASK, dict(attention="block", block_size=16), steps=600, batch=12),
    "chains-ar": Recipe("chains-ar", TASK, dict(attention="causal"), steps=600, batch=16, learning_rate=4e-3),
    "chains-long-ar": Recipe("chains-long-ar", LONG, dict(attention="causal"), steps=500, batch=8, learning_rate=3e-3),
    "chains-long-diffusion": Recipe("chains-long-diffusion", LONG, dict(attention="full"), steps=1500, batch=8),
}
