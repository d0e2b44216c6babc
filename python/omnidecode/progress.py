"""A progress bar on a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType

__all__ = ["Progress"]


class Progress:
    """``with Progress("prompts") as progress: progress(done, total)``; drawn on standard error."""

    def __init__(self, noun: str, *, width: int = 30) -> None:
        self._noun, self._width = noun, width
        self._live = sys.stderr.isatty()
        self._start = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Draw the bar at ``done`` of ``total``."""
        if not self._live:
            return
        full = self._width * done // max(total, 1)
        rate = done / max(time.perf_counter() - self._start, 1e-9)
        bar = "█" * full + "·" * (self._width - full)
        sys.stderr.write(f"\r{bar} {done}/{total} {self._noun}, {rate:.1f}/s ")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        self(0, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
