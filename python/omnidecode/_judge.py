"""Judges: who says how good the texts are that a search finds.

Each is one of two forms::

    judge=shortest        # a function of a list of candidates
    judge="shortest"      # registered under that name, here or by an installed package

A judge, ``shortest(candidates)``, gets a batch of :class:`~omnidecode.Candidate` (``prompt_token_ids``, ``prompt``,
``token_ids``, ``text``, ``finished``) and answers with one float for each, more is better; particle filtering and A* take
them for probabilities in [0, 1]. It runs on the engine's thread, where every request waits for it. An exception fails the
request that it judges, no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from . import _core
from ._installed import installed
from .errors import RequestError

__all__ = ["JUDGE_ENTRY_POINTS", "Judge", "judge", "resolve_judge"]

JUDGE_ENTRY_POINTS = "omnidecode.judges"

#: ``judge(candidates)``: one float a candidate.
Judge: TypeAlias = Callable[[Sequence[_core.Candidate]], Sequence[float]]
_J = TypeVar("_J", bound=Judge)

_NAMED: dict[str, Judge] = {}


def judge(name: str) -> Callable[[_J], _J]:
    """Register a judge under a name, for ``judge=name`` and ``--judge``."""

    def register(function: _J) -> _J:
        if not callable(function):
            raise RequestError(f"judge: expected a function of a list of candidates, found {function!r}")
        _NAMED[name] = function
        return function

    return register


def resolve_judge(given: Any) -> Judge | None:
    """The function, from any of its forms."""
    if given is None:
        return None
    if isinstance(given, str):
        if given not in _NAMED:
            for entry in installed(JUDGE_ENTRY_POINTS, given):
                _NAMED.setdefault(given, entry.load())
        if given not in _NAMED:
            known = ", ".join(sorted(_NAMED)) or "none that is registered"
            raise RequestError(f"judge: expected a function or one of {known}; found {given!r}")
        return _NAMED[given]
    if not callable(given):
        raise RequestError(f"judge: expected a function of a list of candidates, or a name; found {given!r}")
    found: Judge = given
    return found
