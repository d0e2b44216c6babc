"""Unmaskers of one's own: which guesses of a diffusion model to commit is written in Python, the loop is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from . import _core
from ._strategy import Strategy, register
from .errors import RequestError, StrategyError

__all__ = ["Choice", "Unmasker", "denoise", "unmasker"]

#: Places to commit with the model's own choice, or tokens by place; ``None`` in place of a token makes it undecided again.
Choice: TypeAlias = Iterable[int] | Mapping[int, int | None]


class Unmasker:
    """Decides after each forward of a diffusion model; the base of unmaskers that :func:`unmasker` registers.

    One object works for one request. Keyword-only arguments of ``__init__`` with defaults are the strategy's parameters.
    """

    #: Places that are decided before those behind them are; a block-causal model has its own.
    block: int = 32
    #: What is read of each undecided place, as keyword arguments of ``Plan``.
    read: ClassVar[Mapping[str, Any]] = {"logprob": True}

    def unmask(self, view: _core.View, masked: list[int], canvas: _core.Canvas) -> Choice:
        """Which places to commit: ``view[place].choice`` is the model's guess, ``view[place].logprob`` its logarithmic
        probability. ``masked``: the block's undecided places, ascending. At least one must be decided or changed."""
        raise NotImplementedError


async def denoise(seq: _core.Sequence, unmasker: Unmasker) -> None:
    """The loop of every unmasker: all places are run with every forward, but those of a block-causal model that are stored."""
    if seq.finished:
        return
    card = seq.card
    causal = card["block"]
    size = causal or unmasker.block
    if not isinstance(size, int) or size < 1:
        raise RequestError(f"block: expected a positive number of places, found {size!r}")
    prompt, end = len(seq), len(seq) + seq.room
    first = prompt // size * size if causal else prompt
    step = 0
    with seq.canvas(first if causal else 0, end) as canvas:
        for start in range(first, end, size):
            block = (start, min(start + size, end))
            while masked := canvas.masked(block):
                step += 1
                window = block if causal else None
                view = await canvas.look(window, refresh=not causal, about=masked, noise=step, **unmasker.read)
                _commit(canvas, view, unmasker, masked)
            if not canvas.settle(block[1]):
                return
            if causal and block[1] < end:
                await canvas.look(block, refresh=True, choice=False)


def _commit(canvas: _core.Canvas, view: _core.View, unmasker: Unmasker, masked: list[int]) -> None:
    chosen = unmasker.unmask(view, masked, canvas)
    tokens = dict(chosen) if isinstance(chosen, Mapping) else {place: view[place].choice for place in chosen}
    if not tokens:
        raise StrategyError("unmask: expected at least one place to commit, found none: the loop would not end")
    guessed = set(masked) if unmasker.read.get("logprob") else set()
    for place, token in tokens.items():
        if token is None:
            canvas.remask(place)
        else:
            seen = view[place] if place in guessed else None
            sure = math.exp(seen.logprob) if seen is not None and seen.choice == token else 1.0
            canvas.commit(place, token, sure)


def unmasker(
    name: str, *, source: str = "user", needs: Sequence[str] = ()
) -> Callable[[type[Unmasker]], type[Strategy]]:
    """Register an :class:`Unmasker` as the strategy ``name``; the decorated class becomes its :class:`Strategy` class."""

    def add(cls: type[Unmasker]) -> type[Strategy]:
        if not (isinstance(cls, type) and issubclass(cls, Unmasker)):
            raise RequestError(f"unmasker: expected a class derived from omnidecode.Unmasker, found {cls!r}")

        async def decode(seq: _core.Sequence, **parameters: Any) -> None:
            await denoise(seq, cls(**parameters))

        decode.__doc__, decode.__module__ = cls.__doc__, cls.__module__
        return register(name, decode, like=cls, source=source, needs=["mask", *needs])

    return add
