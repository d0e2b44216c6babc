"""Tables of tri-grams for ``aded`` (arXiv:2407.12021, sheet 16): what follows two tokens in a corpus, counted through the
model's tokenizer.

    found = trigrams.index(llm, ["texts/one.txt", "texts/answers.jsonl"], "table.bin")
    llm.generate(prompt, strategy={"name": "aded", "corpus": "table.bin"})

Text in the model's own manner serves best: what it wrote itself (``omnidecode.train.write``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _core
from .errors import RequestError

if TYPE_CHECKING:
    from .llm import LLM

__all__ = ["Index", "index"]

#: Characters of a text file that are read at a time, to the end of a line.
PIECE = 1 << 16


@dataclass(slots=True)
class Index:
    """What was counted: ``texts``, ``tokens``; and what was written: ``pairs`` of tokens, ``trigrams``, ``bytes``."""

    texts: int
    tokens: int
    pairs: int
    trigrams: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def index(llm: LLM, files: Iterable[str | PathLike[str]], output: str | PathLike[str], *, least: int = 1) -> Index:
    """Count files and write the table to ``output``, of which each pair keeps its 12 heaviest successors.

    A file is text (UTF-8, read piece by piece), or JSON lines (``.jsonl``): a text, or an object with ``ids`` (token ids, as
    ``omnidecode.train.write`` writes them) or ``text``. ``least``: tri-grams seen fewer times are left out, which makes
    a table of a large corpus several times smaller. Raises ``RequestError`` for files that are none of these.
    """
    if least < 1:
        raise RequestError(f"least: expected 1 or more, found {least}")
    counts, texts = _core.TrigramCounts(), 0
    vocabulary = int(llm.card["vocab"])
    for file in files:
        for ids in _texts(llm, Path(file), vocabulary):
            counts.add(ids)
            texts += 1
    tokens, pairs, trigrams = counts.write(Path(output), vocabulary, least)
    return Index(texts, tokens, pairs, trigrams, Path(output).stat().st_size)


def _texts(llm: LLM, path: Path, vocabulary: int) -> Iterator[list[int]]:
    try:
        with open(path, encoding="utf-8") as file:
            if path.suffix != ".jsonl":
                while piece := file.read(PIECE) + file.readline():
                    yield llm.tokenize(piece, add_special_tokens=False)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _line(llm, line, f"{path}:{number}", vocabulary)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"expected a file of text, found {error}") from None


def _line(llm: LLM, line: str, place: str, vocabulary: int) -> list[int]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    ids = entry.get("ids") if isinstance(entry, dict) else None
    if isinstance(ids, list):
        if all(type(id) is int and 0 <= id < vocabulary for id in ids):
            return ids
        raise RequestError(f"{place}: expected `ids` of a model with {vocabulary} tokens, found others")
    text = entry.get("text") if isinstance(entry, dict) else entry
    if isinstance(text, str):
        return llm.tokenize(text, add_special_tokens=False)
    raise RequestError(f"{place}: expected a JSON text, or an object with `ids` or `text`")
