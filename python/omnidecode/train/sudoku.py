"""Sudoku 4x4: 16 digits with 0 for an empty cell and `=`; the answer is the 16 digits of the only solution.

The order of the answer matters: a cell that has one candidate left is easy, and filling it makes the next one easy. So a
masked diffusion model that commits what it is sure of does better than any fixed order.
"""

from __future__ import annotations

import itertools
import json
import random
from functools import cached_property
from pathlib import Path

from omnidecode.train.recipe import Recipe, Task

UNITS = [
    *([4 * r + c for c in range(4)] for r in range(4)),
    *([4 * r + c for r in range(4)] for c in range(4)),
    *([4 * (r + i) + c + j for i in (0, 1) for j in (0, 1)] for r in (0, 2) for c in (0, 2)),
]


class Sudoku(Task):
    prompt, canvas, block = 18, 16, 16

    @cached_property
    def solutions(self) -> list[str]:
        """All 288 grids."""
        rows = ["".join(p) for p in itertools.permutations("1234")]
        grids = ("".join(four) for four in itertools.product(rows, repeat=4))
        return [g for g in grids if _complete(g)]

    @cached_property
    def _cells(self) -> list[list[int]]:
        return [[1 << (4 * i + int(c) - 1) for i, c in enumerate(g)] for g in self.solutions]

    @cached_property
    def _grids(self) -> list[int]:
        return [sum(cells) for cells in self._cells]

    def sample(self, random: random.Random) -> tuple[str, str]:
        """A puzzle with one solution and 4 to 12 empty cells."""
        while True:
            at = random.randrange(len(self.solutions))
            keep = set(random.sample(range(16), 16 - random.randint(4, 12)))
            given = sum(self._cells[at][i] for i in keep)
            if sum((grid & given) == given for grid in self._grids) == 1:
                solution = self.solutions[at]
                return "".join(c if i in keep else "0" for i, c in enumerate(solution)) + "=", solution

    def judge(self, question: str, answer: str) -> bool:
        return len(answer) == 16 and _complete(answer) and all(q in ("0", a) for q, a in zip(question, answer))

    def read(self, path: Path) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(x["input"].replace("\n", "") + "=", x["output"].replace("\n", "")) for x in lines]


def _complete(grid: str) -> bool:
    return all({grid[i] for i in unit} == set("1234") for unit in UNITS)


TASK = Sudoku()
RECIPES = {
    "sudoku-diffusion": Recipe("sudoku-diffusion", TASK, dict(attention="full"), steps=1200, batch=58),
    "sudoku-ar": Recipe("sudoku-ar", TASK, dict(attention="causal"), steps=600, batch=58, learning_rate=4e-3),
}
