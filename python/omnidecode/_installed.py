"""What installed packages offer under our entry points."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def installed(group: str, name: str | None = None) -> Iterable[EntryPoint]:
    """Entry points of a group, or those of one name."""
    # Imported when it is needed: it costs as much as half of our own import.
    from importlib.metadata import entry_points

    return entry_points(group=group) if name is None else entry_points(group=group, name=name)
