"""A run as one HTML page that loads nothing: which tokens there are, and where each came from.

After ``outputs = llm.generate(...)``, ``report.save(outputs, "run.json")`` keeps the run, ``omnidecode report run.json``
draws it; ``report.render(outputs)`` is the page at once, ``report.display(outputs)`` shows it in a notebook.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from . import _page, _tables
from ._core import __version__
from .errors import RequestError
from .outputs import Note, RequestOutput, Usage

__all__ = ["Answer", "Bench", "Reply", "Run", "Token", "display", "framed", "load", "render", "save"]

SOURCES = ("target", "draft", "canvas")


@dataclass(slots=True)
class Token:
    """A committed token. ``source`` and what follows it as in :class:`Origin`. ``branch`` counts the branches of an answer from 1 in order of appearance; 0 is the answer itself."""

    index: int
    id: int
    text: str
    source: str
    forward: int
    depth: int = 0
    branch: int = 0
    confidence: float | None = None
    logprob: float | None = None


@dataclass(slots=True)
class Alternative:
    """A text that was found beside an answer."""

    text: str
    score: float


@dataclass(slots=True)
class Answer:
    """One of the answers to a prompt. ``tokens`` is ``None`` where the run does not tell where they came from."""

    text: str
    tokens: list[Token] | None
    length: int
    usage: Usage
    finish_reason: str | None
    score: float | None
    alternatives: list[Alternative]
    notes: list[Note]


@dataclass(slots=True)
class Reply:
    """One prompt with its answers."""

    prompt: str | None
    strategy: str
    guarantee: str
    answers: list[Answer]


@dataclass(slots=True)
class Bench:
    """What ``omnidecode bench --json`` printed: a heading and its rows."""

    heading: str
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class Run:
    """Everything of a page: replies, or one benchmark, or tables."""

    replies: list[Reply]
    bench: Bench | None = None
    model: str | None = None
    seconds: float | None = None
    tables: _tables.Tables | None = None


Outputs = RequestOutput | Iterable[RequestOutput]


def save(outputs: Outputs, path: str | os.PathLike[str], *, seconds: float | None = None, model: str = "") -> None:
    """Write a run as JSON for ``omnidecode report``. ``seconds``: how long all of it took; ``model``: its name."""
    run = {"omnidecode": __version__, "model": model or None, "seconds": seconds, "outputs": _plain(outputs)}
    Path(path).write_text(json.dumps(run), encoding="utf-8")


def load(text: str) -> Run:
    """Read a run: what :func:`save` wrote, or what ``omnidecode generate``, ``chat`` or ``bench`` printed with
    ``--json``, or a page of tables, as the verbs ``calibrate`` and ``neurons`` print them. Raises :class:`RequestError` that says where it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        try:  # one answer a line, as `chat` prints them
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise RequestError(f"run: expected JSON, found {error}") from None
    return _run(value)


def render(outputs: Outputs | Run, *, seconds: float | None = None, model: str = "") -> str:
    """The page, complete: a string of HTML. ``seconds`` and ``model`` as in :func:`save`."""
    if not isinstance(outputs, Run):
        outputs = _run({"outputs": _plain(outputs), "seconds": seconds, "model": model or None})
    return _page.page(outputs, __version__)


def framed(outputs: Outputs, height: int = 640) -> str:
    """The page in a frame of its own, for a notebook: its style and its script reach nothing else. ``height`` in CSS
    pixels."""
    page = html.escape(render(outputs))
    return (
        f'<iframe title="omnidecode report" sandbox="allow-scripts" srcdoc="{page}" '
        f'style="width:100%;height:{height:d}px;border:1px solid #8888;border-radius:8px"></iframe>'
    )


def display(outputs: Outputs, height: int = 640) -> None:
    """Show the page in a notebook. Raises :class:`RequestError` outside of one."""
    try:
        from IPython.display import display as show
    except ImportError:
        raise RequestError("display: expected a notebook, found no IPython; write render(outputs) to a file") from None
    bundle = {"text/html": framed(outputs, height), "text/plain": "omnidecode report"}
    show(bundle, raw=True)  # type: ignore[no-untyped-call, unused-ignore]


def _plain(outputs: Outputs) -> list[dict[str, Any]]:
    return [o.to_dict() for o in ([outputs] if isinstance(outputs, RequestOutput) else outputs)]


# Reading what others wrote: every field is looked at, and what is wrong is named.


def _run(value: Any) -> Run:
    if isinstance(value, list):
        value = {"outputs": value}
    elif isinstance(value, Mapping) and "token_ids" not in value and "prompt_token_ids" in value:
        value = {"outputs": [value]}
    if not isinstance(value, Mapping) or not ("outputs" in value or "rows" in value or "tables" in value):
        raise RequestError(
            "run: expected what `omnidecode generate --json`, `omnidecode bench --json` or `report.save` writes, "
            f"found {_kind(value)}"
        )
    seconds = _field(value, "seconds", (int, float), "run", None)
    if "tables" in value:
        return Run([], None, _field(value, "model", str, "run", None), seconds, _tables.read(value))
    if "rows" in value:
        return Run([], _bench(value), _field(value, "model", str, "run", None), seconds)
    replies = [_reply(output, where) for output, where in _each(value, "outputs", "run")]
    if not replies:
        raise RequestError("run: expected at least one output, found none")
    return Run(replies, None, _field(value, "model", str, "run", None), seconds)


def _reply(value: Any, where: str) -> Reply:
    outputs = _each(value, "outputs", where)
    beside = [(_field(answer, "beside", int, here, None), answer, here) for answer, here in outputs]
    answers = [_answer(answer, here) for of, answer, here in beside if of is None]
    for of, other, here in beside:
        if of is not None:
            if not 0 <= of < len(answers):
                raise RequestError(f"{here}.beside: expected the index of an answer, found {of}")
            score = _field(other, "score", (int, float), here)
            answers[of].alternatives.append(Alternative(_field(other, "text", str, here), score))
    return Reply(
        prompt=_field(value, "prompt", str, where, None),
        strategy=_field(value, "strategy", str, where),
        guarantee=_field(value, "guarantee", str, where),
        answers=answers,
    )


def _answer(value: Any, where: str) -> Answer:
    ids = _items(value, "token_ids", int, where)
    origins = _items(value, "origins", Mapping, where, [])
    logprobs = _items(value, "logprobs", Mapping, where, [])
    for name, found in (("origins", origins), ("logprobs", logprobs)):
        if found and len(found) != len(ids):
            raise RequestError(f"{where}.{name}: expected one for each of {len(ids)} tokens, found {len(found)}")
    usage = _field(value, "usage", Mapping, where, {})
    branches = {0: 0}
    tokens = []
    for at, origin in enumerate(origins):  # none in an older run: its text is known, its pieces are not
        here = f"{where}.origins[{at}]"
        entry = logprobs[at].get(str(ids[at]), logprobs[at].get(ids[at], {})) if logprobs else {}
        source = _field(origin, "source", str, here)
        if source not in SOURCES:
            raise RequestError(f"{here}.source: expected one of {', '.join(SOURCES)}, found {source!r}")
        tokens.append(
            Token(
                index=at,
                id=ids[at],
                text=_field(origin, "text", str, here),
                source=source,
                forward=_field(origin, "forward", int, here),
                depth=_field(origin, "depth", int, here, 0),
                branch=branches.setdefault(_field(origin, "branch", int, here, 0), len(branches)),
                confidence=_field(origin, "confidence", (int, float), here, None),
                logprob=_field(entry, "logprob", (int, float), f"{where}.logprobs[{at}]", None),
            )
        )
    return Answer(
        text=_field(value, "text", str, where),
        tokens=tokens or None,
        length=len(ids),
        usage=Usage(**{f.name: _field(usage, f.name, (int, float), f"{where}.usage", 0) for f in fields(Usage)}),
        finish_reason=_field(value, "finish_reason", str, where, None),
        score=_field(value, "score", (int, float), where, None),
        alternatives=[],
        notes=[
            Note(_field(note, "label", str, here), _field(note, "place", int, here), _weights(note, here))
            for note, here in _each(value, "notes", where)
        ],
    )


def _each(value: Any, name: str, where: str) -> list[tuple[Any, str]]:
    return [(item, f"{where}.{name}[{at}]") for at, item in enumerate(_items(value, name, Mapping, where, []))]


def _weights(note: Any, where: str) -> list[tuple[int, float, str]]:
    found = []
    for at, entry in enumerate(_items(note, "tokens", (list, tuple), where)):
        if [type(part) for part in entry] not in ([int, float, str], [int, int, str]):
            raise RequestError(f"{where}.tokens[{at}]: expected [id, weight, text], found {_kind(entry)}")
        found.append((entry[0], float(entry[1]), entry[2]))
    return found


def _bench(value: Mapping[str, Any]) -> Bench:
    for row, where in _each(value, "rows", "run"):
        for name in ("strategy", "guarantee"):
            _field(row, name, str, where)
        for name in ("tokens_per_second", "tokens_per_forward", "ratio"):
            _field(row, name, (int, float), where)
        _field(row, "identical", bool, where, None)
    rounds = _field(value, "rounds", int, "run")
    heading = (
        f"{_field(value, 'prompts', int, 'run')} prompts, at most {_field(value, 'max_tokens', int, 'run')} tokens each, "
        f"temperature {_field(value, 'temperature', (int, float), 'run'):g}, "
        + (f"median of {rounds} rounds" if rounds > 1 else "one round")
    )
    return Bench(heading, value["rows"])


_MISSING = object()


def _field(value: Any, name: Any, kind: Any, where: str, default: Any = _MISSING) -> Any:
    if not isinstance(value, Mapping):
        raise RequestError(f"{where}: expected an object, found {_kind(value)}")
    found = value.get(name, default)
    if found is default:
        if default is _MISSING:
            raise RequestError(f"{where}: expected a field {name!r}, found none")
        return default
    if found is None and default is not _MISSING:
        return default
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise RequestError(f"{where}.{name}: expected {names}, found {_kind(found)}")
    return found


def _items(value: Any, name: str, kind: Any, where: str, default: Any = _MISSING) -> list[Any]:
    found: list[Any] = _field(value, name, (list, tuple), where, default)
    for at, item in enumerate(found):
        _field({at: item}, at, kind, f"{where}.{name}")
    return found


def _kind(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{type(value).__name__} {shown[:50]}..."
