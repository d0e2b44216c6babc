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

from . import _bench, _page, _tables
from ._bench import Bench, Sweep
from ._core import __version__
from ._reading import each, field, items, kind
from .errors import RequestError
from .outputs import Note, RequestOutput, Usage

__all__ = ["Answer", "Bench", "Reply", "Run", "Sweep", "Token", "display", "framed", "load", "render", "save"]

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
class Run:
    """Everything of a page: replies, or one benchmark, or tasks of diffusion, or tables."""

    replies: list[Reply]
    bench: Bench | None = None
    model: str | None = None
    seconds: float | None = None
    tables: _tables.Tables | None = None
    sweeps: list[Sweep] | None = None


Outputs = RequestOutput | Iterable[RequestOutput]


def save(outputs: Outputs, path: str | os.PathLike[str], *, seconds: float | None = None, model: str = "") -> None:
    """Write a run as JSON for ``omnidecode report``. ``seconds``: how long all of it took; ``model``: its name."""
    run = {"omnidecode": __version__, "model": model or None, "seconds": seconds, "outputs": _plain(outputs)}
    Path(path).write_text(json.dumps(run), encoding="utf-8")


def load(text: str) -> Run:
    """Read a run: what :func:`save` wrote, or what ``omnidecode generate``, ``chat``, ``bench`` or ``bench diffusion`` printed
    with ``--json``, or a page of tables, as the verbs ``calibrate`` and ``neurons`` print them. Raises :class:`RequestError`
    that says where it is none."""
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
    if not isinstance(value, Mapping) or not {"outputs", "rows", "tables", "diffusion"} & set(value):
        raise RequestError(
            "run: expected what `omnidecode generate --json`, `omnidecode bench --json` or `report.save` writes, "
            f"found {kind(value)}"
        )
    seconds = field(value, "seconds", (int, float), "run", None)
    if "tables" in value:
        return Run([], None, field(value, "model", str, "run", None), seconds, _tables.read(value))
    if "diffusion" in value:
        return Run([], seconds=seconds, sweeps=_bench.read_sweeps(value))
    if "rows" in value:
        return Run([], _bench.read_bench(value), field(value, "model", str, "run", None), seconds)
    replies = [_reply(output, where) for output, where in each(value, "outputs", "run")]
    if not replies:
        raise RequestError("run: expected at least one output, found none")
    return Run(replies, None, field(value, "model", str, "run", None), seconds)


def _reply(value: Any, where: str) -> Reply:
    outputs = each(value, "outputs", where)
    beside = [(field(answer, "beside", int, here, None), answer, here) for answer, here in outputs]
    answers = [_answer(answer, here) for of, answer, here in beside if of is None]
    for of, other, here in beside:
        if of is not None:
            if not 0 <= of < len(answers):
                raise RequestError(f"{here}.beside: expected the index of an answer, found {of}")
            score = field(other, "score", (int, float), here)
            answers[of].alternatives.append(Alternative(field(other, "text", str, here), score))
    return Reply(
        prompt=field(value, "prompt", str, where, None),
        strategy=field(value, "strategy", str, where),
        guarantee=field(value, "guarantee", str, where),
        answers=answers,
    )


def _answer(value: Any, where: str) -> Answer:
    ids = items(value, "token_ids", int, where)
    origins = items(value, "origins", Mapping, where, [])
    logprobs = items(value, "logprobs", Mapping, where, [])
    for name, found in (("origins", origins), ("logprobs", logprobs)):
        if found and len(found) != len(ids):
            raise RequestError(f"{where}.{name}: expected one for each of {len(ids)} tokens, found {len(found)}")
    usage = field(value, "usage", Mapping, where, {})
    branches = {0: 0}
    tokens = []
    for at, origin in enumerate(origins):  # none in an older run: its text is known, its pieces are not
        here = f"{where}.origins[{at}]"
        entry = logprobs[at].get(str(ids[at]), logprobs[at].get(ids[at], {})) if logprobs else {}
        source = field(origin, "source", str, here)
        if source not in SOURCES:
            raise RequestError(f"{here}.source: expected one of {', '.join(SOURCES)}, found {source!r}")
        tokens.append(
            Token(
                index=at,
                id=ids[at],
                text=field(origin, "text", str, here),
                source=source,
                forward=field(origin, "forward", int, here),
                depth=field(origin, "depth", int, here, 0),
                branch=branches.setdefault(field(origin, "branch", int, here, 0), len(branches)),
                confidence=field(origin, "confidence", (int, float), here, None),
                logprob=field(entry, "logprob", (int, float), f"{where}.logprobs[{at}]", None),
            )
        )
    return Answer(
        text=field(value, "text", str, where),
        tokens=tokens or None,
        length=len(ids),
        usage=Usage(**{f.name: field(usage, f.name, (int, float), f"{where}.usage", 0) for f in fields(Usage)}),
        finish_reason=field(value, "finish_reason", str, where, None),
        score=field(value, "score", (int, float), where, None),
        alternatives=[],
        notes=[
            Note(field(note, "label", str, here), field(note, "place", int, here), _weights(note, here))
            for note, here in each(value, "notes", where)
        ],
    )


def _weights(note: Any, where: str) -> list[tuple[int, float, str]]:
    found = []
    for at, entry in enumerate(items(note, "tokens", (list, tuple), where)):
        if [type(part) for part in entry] not in ([int, float, str], [int, int, str]):
            raise RequestError(f"{where}.tokens[{at}]: expected [id, weight, text], found {kind(entry)}")
        found.append((entry[0], float(entry[1]), entry[2]))
    return found
