"""Drafters of one's own: what to propose is written in Python, verification is the engine's, so that the answer is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

from . import _core
from ._strategy import Strategy, register
from .errors import RequestError

__all__ = ["Draft", "Drafter", "drafter", "speculate"]

#: Tokens that may follow one after the other, or a tree of them.
Draft: TypeAlias = Sequence[int] | _core.Tree


class Drafter:
    """Proposes what may follow; the base of drafters that :func:`drafter` registers.

    One object works for one request. What shall outlive it (a table that learns from all requests) belongs to the class or
    the module. Keyword-only arguments of ``__init__`` with defaults are the strategy's parameters.
    """

    #: How many of the largest logits ``learn`` finds at each row of the draft, in ``seen[row].top``.
    top: ClassVar[int] = 0
    #: Whether drafts that are a list are cut to the length that pays, by the measured cost of rows and what was accepted.
    adaptive: ClassVar[bool] = True

    def draft(self, token_ids: list[int], room: int) -> Draft:
        """Up to ``room`` tokens that may follow ``token_ids`` (prompt and answer so far), or a :class:`Tree` of them.

        Nothing, ``[]``, is a draft too: then the forward is that of plain decoding.
        """
        raise NotImplementedError

    def learn(self, tree: _core.Tree, seen: _core.Outcome) -> None:
        """Look at every verified row: ``seen.root`` follows the last committed token, ``seen[node]`` the tree's nodes."""


class _Pace:
    """How long a chain pays, by what share of its tokens was accepted."""

    def __init__(self) -> None:
        self._kept, self._judged, self._idle = 1.0, 2.0, 0

    def cut(self, seq: _core.Sequence, draft: Sequence[int]) -> Sequence[int]:
        """The beginning of the draft that pays; now and then one token to see whether it does again."""
        rate = self._kept / self._judged
        length = seq.worth([rate**depth for depth in range(1, len(draft) + 1)])
        self._idle = 0 if length else self._idle + 1
        return draft[: length or self._idle % 8 == 7]

    def saw(self, proposed: int, kept: int) -> None:
        """What was accepted, recent steps counting most. A rejected token hides those behind it."""
        self._kept = 0.9 * self._kept + kept
        self._judged = 0.9 * self._judged + min(kept + 1, proposed)


async def speculate(seq: _core.Sequence, drafter: Drafter) -> None:
    """The loop of every drafter: draft, verify in one forward, keep what the model itself would have chosen."""
    pace = _Pace()
    while not seq.finished:
        room = seq.room - 1
        draft = drafter.draft(seq.tokens, room) if room > 0 else []
        if isinstance(draft, _core.Tree):
            tree = draft
        else:
            tree = _core.Tree()
            node = None
            for token in pace.cut(seq, draft[:room]) if drafter.adaptive else draft[:room]:
                node = tree.add(token, node)
        seen = await seq.forward(_core.Plan.tree(tree, top=drafter.top))
        path, following = tree.match(seen)
        if draft is not tree:
            pace.saw(len(tree), len(path))
        drafter.learn(tree, seen)
        seq.accept(path)
        seq.push(following)


def drafter(name: str, *, source: str = "user", needs: Sequence[str] = ()) -> Callable[[type[Drafter]], type[Strategy]]:
    """Register a :class:`Drafter` as the strategy ``name``; the decorated class becomes its :class:`Strategy` class.

    The strategy is exact: whatever is drafted, the answer is that of plain decoding with the same seed, greedy and sampled.
    """

    def add(cls: type[Drafter]) -> type[Strategy]:
        if not (isinstance(cls, type) and issubclass(cls, Drafter)):
            raise RequestError(f"drafter: expected a class derived from omnidecode.Drafter, found {cls!r}")

        async def decode(seq: _core.Sequence, **parameters: Any) -> None:
            await speculate(seq, cls(**parameters))

        decode.__doc__, decode.__module__ = cls.__doc__, cls.__module__
        return register(name, decode, like=cls, guarantee="exact", source=source, needs=needs)

    return add
