"""Looking at every field of JSON that others wrote: what is wrong is named by where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import RequestError

__all__ = ["each", "field", "items", "kind"]

_MISSING = object()


def field(value: Any, name: Any, kinds: Any, where: str, default: Any = _MISSING) -> Any:
    """``value[name]``, of a type of ``kinds`` (no booleans for numbers); ``default`` where it is missing or null. Raises
    :class:`RequestError`."""
    if not isinstance(value, Mapping):
        raise RequestError(f"{where}: expected an object, found {kind(value)}")
    found = value.get(name, default)
    if found is default:
        if default is _MISSING:
            raise RequestError(f"{where}: expected a field {name!r}, found none")
        return default
    if found is None and default is not _MISSING:
        return default
    if not isinstance(found, kinds) or (isinstance(found, bool) and kinds is not bool):
        names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise RequestError(f"{where}.{name}: expected {names}, found {kind(found)}")
    return found


def items(value: Any, name: str, kinds: Any, where: str, default: Any = _MISSING) -> list[Any]:
    """A list of things of a type of ``kinds``."""
    found: list[Any] = field(value, name, (list, tuple), where, default)
    for at, item in enumerate(found):
        field({at: item}, at, kinds, f"{where}.{name}")
    return found


def each(value: Any, name: str, where: str) -> list[tuple[Any, str]]:
    """The objects of a list, none where it is missing, with where each stands."""
    return [(item, f"{where}.{name}[{at}]") for at, item in enumerate(items(value, name, Mapping, where, []))]


def kind(value: Any) -> str:
    """A value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{type(value).__name__} {shown[:50]}..."
