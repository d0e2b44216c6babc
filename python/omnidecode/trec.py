"""Files of retrieval: TREC runs and judgements, BEIR collections; and what a ranking is worth."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .errors import RequestError

__all__ = ["Judgements", "Run", "mrr", "ndcg", "read_corpus", "read_judgements", "read_run", "recall", "write_run"]

#: For each query its documents with their scores, the best first.
Run: TypeAlias = dict[str, list[tuple[str, float]]]
#: For each query the grades of its documents.
Judgements: TypeAlias = dict[str, dict[str, int]]


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"expected a text file, found {error}") from None
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_run(path: str | os.PathLike[str]) -> Run:
    """A TREC run: ``query Q0 document rank score tag`` a line. Documents come by falling score, equal ones by rank, as
    trec_eval has no ranks."""
    found: dict[str, list[tuple[float, int, str]]] = {}
    for number, line in _lines(path):
        parts = line.split()
        try:
            query, _, document, rank, score, _ = parts
            entry = (-float(score), int(rank), document)
            if not math.isfinite(entry[0]):
                raise ValueError
        except ValueError:
            raise RequestError(
                f"{path}:{number}: expected 'query Q0 document rank score tag', found {line!r}"
            ) from None
        found.setdefault(query, []).append(entry)
    run: Run = {}
    for query, entries in found.items():
        run[query] = [(document, -score) for score, _, document in sorted(entries)]
        if len({document for document, _ in run[query]}) != len(entries):
            raise RequestError(f"{path}: expected each document once, found one twice for query {query}")
    return run


def write_run(path: str | os.PathLike[str], run: Mapping[str, Sequence[str]], tag: str = "omnidecode") -> None:
    """Write rankings as a TREC run. The scores are ranks turned round, so that sorting by them keeps the order."""
    lines = []
    for query, documents in run.items():
        for rank, document in enumerate(documents, 1):
            if any(len(word.split()) != 1 for word in (query, document, tag)):
                raise RequestError(f"run: expected names without spaces, found {query!r}, {document!r}, {tag!r}")
            lines.append(f"{query} Q0 {document} {rank} {len(documents) - rank + 1} {tag}\n")
    try:
        Path(path).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"expected a file that can be written, found {error}") from None


def read_judgements(path: str | os.PathLike[str]) -> Judgements:
    """TREC judgements, ``query 0 document grade``, or BEIR's ``query-id corpus-id score`` with a heading."""
    found: Judgements = {}
    for number, line in _lines(path):
        parts = line.split()
        if number == 1 and parts[0] == "query-id":
            continue
        try:
            query, document, grade = parts if len(parts) == 3 else (parts[0], parts[2], parts[3])
            found.setdefault(query, {})[document] = int(grade)
        except (ValueError, IndexError):
            raise RequestError(f"{path}:{number}: expected 'query 0 document grade', found {line!r}") from None
    return found


def read_corpus(path: str | os.PathLike[str]) -> dict[str, str]:
    """BEIR's ``corpus.jsonl`` or ``queries.jsonl``: texts by ``_id``, a title in front of its text."""
    found: dict[str, str] = {}
    for number, line in _lines(path):
        try:
            entry: Any = json.loads(line)
            text = " ".join(part for part in (entry.get("title", ""), entry["text"]) if part)
            found[str(entry["_id"])] = text
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RequestError(f"{path}:{number}: expected an object with '_id' and 'text'") from None
    return found


def ndcg(ranking: Iterable[str], grades: Mapping[str, int], k: int = 10) -> float:
    """nDCG@k with the grade as gain, as trec_eval's ndcg_cut; 0 where nothing is relevant."""

    def gain(found: Iterable[int]) -> float:
        return sum(grade / math.log2(place + 2) for place, grade in enumerate(found))

    ideal = gain(sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:k])
    found = gain(max(grades.get(document, 0), 0) for document in list(ranking)[:k])
    return found / ideal if ideal > 0 else 0.0


def recall(ranking: Iterable[str], grades: Mapping[str, int], k: int = 100) -> float:
    """Share of the relevant documents among the first k."""
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant & set(list(ranking)[:k])) / len(relevant) if relevant else 0.0


def mrr(ranking: Iterable[str], grades: Mapping[str, int]) -> float:
    """1 / rank of the first relevant document, 0 where there is none."""
    return next((1 / rank for rank, document in enumerate(ranking, 1) if grades.get(document, 0) > 0), 0.0)
