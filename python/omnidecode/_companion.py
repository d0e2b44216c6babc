"""Companions: what rides along any strategy of a request and bends the model's law.

A companion in Python is a logits processor, ``companion(token_ids, logits)``: it gets all token ids so far and an
``array.array('f')`` of the vocabulary's length, which it changes in place, or answers with what takes its place. It is
called for each row whose logits are used, on draft trees too; ``"exact"`` then means: as plain decoding with the same
companions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, TypeVar

from .errors import RequestError

__all__ = ["COMPANION_ENTRY_POINTS", "LogitsProcessor", "companion", "resolve_companion"]

COMPANION_ENTRY_POINTS = "omnidecode.companions"

#: ``processor(token_ids, logits)``, with further parameters by keyword.
LogitsProcessor = Callable[..., Any]
_P = TypeVar("_P", bound=LogitsProcessor)

_COMPANIONS: dict[str, LogitsProcessor] = {}


def companion(name: str) -> Callable[[_P], _P]:
    """Register a logits processor under a name, for ``companions=[name]`` and ``--companion``. Keyword-only arguments with
    defaults are its parameters: ``{"name": name, "weight": 2.0}``."""

    def register(function: _P) -> _P:
        if not callable(function):
            raise RequestError(f"companion: expected a function of (token_ids, logits), found {function!r}")
        _COMPANIONS[name] = function
        return function

    return register


def resolve_companion(given: str | Mapping[str, Any] | LogitsProcessor) -> LogitsProcessor:
    """A logits processor from a callable, a registered name, or a name with parameters."""
    if callable(given):
        return given
    parameters: dict[str, Any] = {}
    if isinstance(given, Mapping):
        parameters = dict(given)
        given = parameters.pop("name", None)
    if not isinstance(given, str):
        raise RequestError(f"companions: expected names, dictionaries with a 'name', or callables; found {given!r}")
    function = _COMPANIONS.get(given)
    if function is None:
        for entry in metadata.entry_points(group=COMPANION_ENTRY_POINTS, name=given):
            function = _COMPANIONS.setdefault(given, entry.load())
    if function is None:
        raise RequestError(f"companions: expected one of {', '.join(sorted(_COMPANIONS)) or 'none'}; found {given!r}")
    known = {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in parameters:
        if name not in known:
            raise RequestError(f"companion {given} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
    return functools.partial(function, **parameters) if parameters else function
