"""Running totals: `3+4-2+3;5-1;` is answered by `3>7>5>8;5>4;`, written under the question character by character.

Totals stay from 0 to 9. (Totals modulo ten were tried: neither operand alone tells anything of their sum, and no model of
this size, not even a causal one, left the plateau in a million tokens.)

A line is a chain: each total needs the one before it, so a chain takes as many steps as it has totals. Lines do not depend on
each other, and the signs between totals can be copied. So there is something to decode in parallel, and decoding blindly in
parallel goes wrong: the text-like task on which loops, caches, blocks and early ends are measured.

The question is filled up with `.` to 62 characters and ended by `=`, so that prompt and canvas have 64 tokens; the answer ends
in `<eos>`, repeated to the end of the canvas.
"""

from __future__ import annotations

import random
import re

from omnidecode.train.recipe import Recipe, Task

ROOM = 62


class Chains(Task):
    prompt, canvas, block = ROOM + 2, ROOM + 2, 16

    def sample(self, random: random.Random) -> tuple[str, str]:
        """Lines of 2 to 10 numbers, in all 20 to 62 characters."""
        room = random.randint(20, ROOM)
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
                return question.ljust(ROOM, ".") + "=", solve(question)
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


TASK = Chains()
RECIPES = {
    "chains-diffusion": Recipe("chains-diffusion", TASK, dict(attention="full"), steps=1500, batch=16),
    "chains-block": Recipe("chains-block", TASK, dict(attention="block", block_size=16), steps=600, batch=12),
    "chains-ar": Recipe("chains-ar", TASK, dict(attention="causal"), steps=600, batch=16, learning_rate=4e-3),
}
