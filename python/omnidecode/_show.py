"""A canvas as it is decided: drawn over itself on a terminal, one line a forward elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import groupby
from typing import TextIO
from unicodedata import category, east_asian_width

from .outputs import Mark

__all__ = ["Show"]

#: What stands at an undecided place.
UNDECIDED = "·"
#: Where confidence begins to be called high, fair.
HIGH, FAIR = 0.9, 0.5
_PLAIN, _FRESH, _DIM = "\x1b[0m", "\x1b[7m", "\x1b[2m"
_SURE = ((HIGH, "\x1b[32m"), (FAIR, "\x1b[33m"), (float("-inf"), "\x1b[31m"))


class Show:
    """Follows the marks of one request; ``mask`` is the model's mask token.

    On a terminal the places decided by the last forward are inverse, and colour tells how sure the strategy was: green
    from 0.9, yellow from 0.5, red below. Elsewhere a line a forward gives the places decided with their confidences.
    """

    def __init__(self, out: TextIO, mask: int) -> None:
        self._out, self._mask = out, mask
        self._live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._cells: dict[int, Mark] = {}
        self._drawn = 0

    def update(self, marks: Sequence[Mark]) -> None:
        """Take in what changed."""
        for forward, group in groupby(marks, key=lambda mark: mark.forward):
            fresh = list(group)
            opened = all(mark.place not in self._cells for mark in fresh) and all(map(self._masked, fresh))
            self._cells.update((mark.place, mark) for mark in fresh)
            if self._live:
                self._draw(forward)
            elif not opened:
                self._line(forward, fresh)

    def _masked(self, mark: Mark) -> bool:
        return mark.token_id == self._mask

    def _piece(self, mark: Mark) -> str:
        """What a place shows: nothing that moves the cursor."""
        if self._masked(mark):
            return UNDECIDED
        return "".join(
            "␤" if c == "\n" else "\N{REPLACEMENT CHARACTER}" if category(c) in _MOVING else c for c in mark.text
        )

    def _ordered(self) -> list[Mark]:
        return [self._cells[place] for place in sorted(self._cells)]

    def _line(self, forward: int, fresh: Sequence[Mark]) -> None:
        first = min(self._cells)
        told = [
            f"{mark.place - first}:{'masked again' if self._masked(mark) else format(mark.confidence, '.2f')}"
            for mark in sorted(fresh, key=lambda mark: mark.place)
        ]
        text = "".join(map(self._piece, self._ordered()))
        self._out.write(f"forward {forward}  {text}  {' '.join(told)}\n")
        self._out.flush()

    def _draw(self, forward: int) -> None:
        size = shutil.get_terminal_size()
        cells = self._ordered()
        decided = sum(not self._masked(mark) for mark in cells)
        lines, width = [f"forward {forward}, {decided} of {len(cells)} decided"], size.columns + 1
        for mark in cells:
            piece = self._piece(mark)
            wide = sum(1 + (east_asian_width(c) in "WF") - (category(c) in ("Mn", "Me")) for c in piece)
            if width + wide > size.columns:
                lines.append("")
                width = 0
            width += wide
            lines[-1] += self._style(mark, forward) + piece + _PLAIN
        lines = lines[:1] + lines[1:][-max(size.lines - 2, 1) :]
        up = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        self._out.write(up + "\x1b[J" + "\n".join(lines) + "\n")
        self._drawn = len(lines)
        self._out.flush()

    def _style(self, mark: Mark, forward: int) -> str:
        if self._masked(mark):
            return _DIM
        colour = next(colour for least, colour in _SURE if mark.confidence >= least)
        return colour + (_FRESH if mark.forward == forward else "")


#: Categories of characters that are no mark on paper.
_MOVING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
