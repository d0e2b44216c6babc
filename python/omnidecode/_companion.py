"""Companions: what rides along any strategy of a request and bends the model or its law.

Each is one of three forms::

    companions=["zero-tuning"]                            # of the registry, or registered in Python
    companions=[{"name": "zero-tuning", "scale": 2.0}]    # with parameters
    companions=[forbid]                                   # a logits processor in Python

A logits processor, ``forbid(token_ids, logits)``, gets all token ids so far and an ``array.array('f')`` of the vocabulary's
length, which it changes in place, or answers with what takes its place. It is called for each row whose logits are used, on
draft trees too; ``"exact"`` then means: as plain decoding with the same companions.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from . import _core
from ._installed import installed
from .errors import RequestError

__all__ = ["COMPANION_ENTRY_POINTS", "LogitsProcessor", "Ride", "companion", "companions", "resolve_companion"]

COMPANION_ENTRY_POINTS = "omnidecode.companions"

#: ``processor(token_ids, logits)``, with further parameters by keyword.
LogitsProcessor: TypeAlias = Callable[..., Any]
#: What the engine takes: a callable, or a name of its registry with parameters as JSON.
Ride: TypeAlias = LogitsProcessor | tuple[str, str]
_P = TypeVar("_P", bound=LogitsProcessor)

_BUILT_IN: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in json.loads(_core.companions())}
_PYTHON: dict[str, LogitsProcessor] = {}


def companions() -> list[dict[str, Any]]:
    """What is known of the engine's companions: ``name``, ``bends`` ("law" or "model"), ``summary``, ``source`` and
    ``parameters``."""
    return list(_BUILT_IN.values())


def companion(name: str) -> Callable[[_P], _P]:
    """Register a logits processor under a name, for ``companions=[name]`` and ``--companion``. Keyword-only arguments with
    defaults are its parameters: ``{"name": name, "weight": 2.0}``."""
    if name in _BUILT_IN:
        raise RequestError(f"companion: {name!r} is the engine's own; choose another name")

    def register(function: _P) -> _P:
        if not callable(function):
            raise RequestError(f"companion: expected a function of (token_ids, logits), found {function!r}")
        _PYTHON[name] = function
        return function

    return register


def resolve_companion(given: str | Mapping[str, Any] | LogitsProcessor) -> Ride:
    """What the engine takes, from a callable, a name, or a name with parameters."""
    if callable(given):
        return given
    parameters: dict[str, Any] = {}
    if isinstance(given, Mapping):
        parameters = dict(given)
        given = parameters.pop("name", None)
    if not isinstance(given, str):
        raise RequestError(f"companions: expected names, dictionaries with a 'name', or callables; found {given!r}")
    if given in _BUILT_IN:
        try:
            return given, json.dumps(parameters)
        except TypeError as error:
            raise RequestError(f"companion {given}: expected parameters that JSON can say, found {error}") from None
    if given not in _PYTHON:
        for entry in installed(COMPANION_ENTRY_POINTS, given):
            _PYTHON.setdefault(given, entry.load())
    if given not in _PYTHON:
        known = ", ".join(sorted({*_BUILT_IN, *_PYTHON}))
        raise RequestError(f"companions: expected one of {known}; found {given!r}")
    function = _PYTHON[given]
    keywords = {
        p.name for p in inspect.signature(function).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in parameters:
        if name not in keywords:
            raise RequestError(f"companion {given} has no parameter {name!r}; it has {', '.join(keywords) or 'none'}")
    return functools.partial(function, **parameters) if parameters else function
