"""Reports that are tables: what ``zero_tuning``, ``neurons`` and benchmarks write as ``{"title", "heading", "tables"}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import RequestError

__all__ = ["Table", "Tables", "html", "markdown", "read"]

Cell = str | int | float | bool | None


@dataclass(slots=True)
class Table:
    """A title, and rows with the same names."""

    title: str
    names: list[str]
    rows: list[list[Cell]]


@dataclass(slots=True)
class Tables:
    """A page of tables."""

    title: str
    heading: str
    tables: list[Table]


def read(value: Mapping[str, Any]) -> Tables:
    """Look at every part, and say what is wrong."""
    tables = []
    given = value["tables"]
    if not isinstance(given, (list, tuple)):
        raise RequestError(f"run.tables: expected a list, found {type(given).__name__}")
    for at, entry in enumerate(given):
        where = f"run.tables[{at}]"
        rows = entry.get("rows") if isinstance(entry, Mapping) else None
        if not isinstance(rows, (list, tuple)) or not isinstance(entry.get("title", ""), str):
            raise RequestError(f"{where}: expected an object with a title and rows, found {type(entry).__name__}")
        names: list[str] = []
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
                raise RequestError(f"{where}.rows[{number}]: expected an object, found {type(row).__name__}")
            for name, cell in row.items():
                if cell is not None and not isinstance(cell, (str, int, float)):
                    raise RequestError(
                        f"{where}.rows[{number}]: expected numbers and texts, found {type(cell).__name__}"
                    )
                if name not in names:
                    names.append(name)
        tables.append(Table(entry.get("title", ""), names, [[row.get(name) for name in names] for row in rows]))
    words = [value.get(name) or "" for name in ("title", "heading")]
    if not all(isinstance(word, str) for word in words):
        raise RequestError("run: expected a title and a heading that are texts")
    return Tables(words[0] or "Tables", words[1], tables)


def shown(cell: Cell) -> str:
    """A cell's text."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}" if isinstance(cell, float) else cell


def html(page: Tables, text: Callable[[object], str], table: Callable[[str, str, list[str]], str]) -> str:
    """The tables as HTML; ``text`` escapes, ``table`` frames rows."""
    parts = []
    for one in page.tables:
        numeric = [all(isinstance(row[at], (int, float)) for row in one.rows) for at in range(len(one.names))]
        kinds = ["number" if number else "word" for number in numeric]
        head = "".join(
            f'<th scope="col" class="{kind}">{text(name)}</th>' for name, kind in zip(one.names, kinds, strict=True)
        )
        rows = [
            "<tr>"
            + "".join(f'<td class="{kind}">{text(shown(cell))}</td>' for cell, kind in zip(row, kinds, strict=True))
            + "</tr>"
            for row in one.rows
        ]
        parts.append(f"<section><h2>{text(one.title)}</h2>{table(one.title or 'Table', head, rows)}</section>")
    return "\n".join(parts)


def markdown(page: Tables) -> str:
    """The tables as Markdown, for documents."""
    parts = []
    for one in page.tables:
        lines = [one.names, ["---"] * len(one.names), *([shown(cell) for cell in row] for row in one.rows)]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append(f"**{one.title}**\n\n{body}\n" if one.title else f"{body}\n")
    return "\n".join(parts)
