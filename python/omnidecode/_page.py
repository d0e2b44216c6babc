"""The HTML of a report. All that comes from a model or a user goes through :func:`text`.

Colour is never alone: drafted tokens are underlined and numbered by depth, canvas tokens dotted and numbered by forward,
tokens of a branch framed and lettered.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import string
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING

from . import _bench, _tables

if TYPE_CHECKING:
    from .report import Answer, Reply, Run, Token

__all__ = ["page", "text"]

GUARANTEES = {
    "exact": "token for token what plain decoding gives",
    "distribution": "the law of plain decoding",
    "approximate": "may differ from plain decoding",
}
#: Steps of each palette in the style sheet.
SHADES = 8


def page(run: Run, version: str) -> str:
    """The whole document."""
    files = resources.files(__package__)
    script = files.joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    if run.tables is not None:
        title, body = text(run.tables.title), _tables.html(run.tables, text, _table)
        subtitle = text(run.tables.heading)
    elif run.bench is not None:
        title, body = "Strategies against plain decoding", _bench.bench_html(run.bench, text, _table)
        subtitle = text(run.bench.heading)
    elif run.sweeps is not None:
        title, body = "Diffusion strategies", _bench.sweeps_html(run.sweeps, text, _table)
        subtitle = _count(len(run.sweeps), "task")
    else:
        title, body = "Where the tokens came from", _replies(run)
        answers = sum(len(reply.answers) for reply in run.replies)
        subtitle = f"{_count(len(run.replies), 'prompt')}, {_count(answers, 'answer')}"
    if run.model:
        subtitle = f"{text(run.model)}: {subtitle}"
    template = string.Template(files.joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=title,
        subtitle=subtitle,
        body=body,
        version=text(version),
        script=script,
        script_hash=f"sha256-{digest}",
    )


def text(value: object) -> str:
    """Any string as HTML text or attribute: escaped, control characters shown as pictures, lone surrogates replaced."""
    shown = str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    shown = "".join(chr(0x2400 + ord(c)) if c < " " and c not in "\n\t" else c for c in shown)
    return html.escape(shown.replace("\x7f", "\u2421"))


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _cards(facts: Iterable[tuple[str, str, str]]) -> str:
    """(name, value, remark) as cards; all are HTML."""
    cards = [
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{remark}</small>' if remark else ''}</dd></div>"
        for name, value, remark in facts
    ]
    return f'<dl class="cards">{"".join(cards)}</dl>'


# Replies


def _replies(run: Run) -> str:
    answers = [(reply, answer) for reply in run.replies for answer in reply.answers]
    parts = []
    if len(answers) > 1:
        parts.append(_overview(run, answers))
    number = 0
    for at, reply in enumerate(run.replies, 1):
        many = f"{at}. " if len(run.replies) > 1 else ""
        parts.append(f"<section><h2>{many}{text(reply.strategy)}</h2>")
        if reply.prompt is not None:
            parts.append(f"<details><summary>Prompt</summary><pre>{text(reply.prompt)}</pre></details>")
        for place, answer in enumerate(reply.answers, 1):
            number += 1
            if len(reply.answers) > 1:
                parts.append(f"<h3>Answer {place} of {len(reply.answers)}</h3>")
            # The time is that of the whole run: it is an answer's own only where there is one.
            seconds = run.seconds if len(answers) == 1 else None
            parts.append(_article(reply, answer, number, seconds))
        parts.append("</section>")
    return "\n".join(parts)


def _overview(run: Run, answers: list[tuple[Reply, Answer]]) -> str:
    tokens = sum(answer.length for _, answer in answers)
    forwards = sum(answer.usage.forwards for _, answer in answers)
    facts = [("Tokens", f"{tokens:,}", ""), ("Forwards", f"{forwards:,}", "summed over the answers")]
    facts.append(("Tokens per forward", f"{tokens / max(forwards, 1):.2f}", "prefill included"))
    if run.seconds:
        facts.append(("Time", f"{run.seconds:.2f} s", f"{tokens / run.seconds:,.1f} tokens/s"))
    rows = [
        f'<tr><td><a href="#answer-{at}">{text(reply.strategy)}</a></td><td>{text(reply.guarantee)}</td>'
        f'<td class="number">{answer.length:,}</td><td class="number">{answer.usage.forwards:,}</td>'
        f'<td class="number">{answer.length / max(answer.usage.forwards, 1):.2f}</td>'
        f"<td>{text(answer.text.strip()[:60]) or '(no text)'}</td></tr>"
        for at, (reply, answer) in enumerate(answers, 1)
    ]
    head = (
        '<th scope="col">Strategy</th><th scope="col">Guarantee</th><th scope="col" class="number">Tokens</th>'
        '<th scope="col" class="number">Forwards</th><th scope="col" class="number">Tokens / forward</th>'
        '<th scope="col">Begins</th>'
    )
    return f"{_cards(facts)}\n{_table('All answers', head, rows)}"


def _table(label: str, head: str, rows: list[str]) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _article(reply: Reply, answer: Answer, number: int, seconds: float | None) -> str:
    usage = answer.usage
    facts = [
        ("Tokens", f"{answer.length:,}", ""),
        ("Forwards", f"{usage.forwards:,}", f"NFE {usage.nfe:,}, {usage.rows:,} rows"),
        ("Tokens per forward", f"{answer.length / max(usage.forwards, 1):.2f}", "prefill included"),
        ("Guarantee", text(reply.guarantee), GUARANTEES.get(reply.guarantee, "")),
    ]
    if usage.drafted:
        share = f"{usage.accepted / usage.drafted:.0%} of the drafted tokens"
        facts.append(("Accepted", f"{usage.accepted:,} of {usage.drafted:,}", share))
    if usage.judge_calls:
        facts.append(("Judged", f"{usage.judged:,}", f"texts, in {_count(usage.judge_calls, 'call')}"))
    if seconds:
        facts.append(("Time", f"{seconds:.2f} s", f"{answer.length / seconds:,.1f} tokens/s"))
    if usage.prompt_tokens:
        facts.append(("Prompt", f"{usage.prompt_tokens:,}", f"tokens, {usage.cached_tokens:,} of them cached"))
    if answer.score is not None:
        facts.append(("Score", f"{answer.score:.4g}", "on the strategy's own scale"))
    facts.append(("Ended by", text(answer.finish_reason or "nothing yet"), ""))
    parts = [f'<article id="answer-{number}" aria-label="Answer {number}">', _cards(facts)]
    if answer.tokens is None:
        parts.append('<p class="note">This run does not tell where its tokens came from.</p>')
        parts.append(f"<pre>{text(answer.text)}</pre>")
    else:
        look = _Look(answer.tokens)
        parts.append(_text(answer, answer.tokens, look, number))
        canvas = [token for token in answer.tokens if token.source == "canvas"]
        if canvas:
            parts.append(_picture(canvas, look))
        parts.append(_timeline(answer, answer.tokens, look))
    if answer.notes:
        parts.append(_notes(answer))
    if answer.alternatives:
        parts.append(_alternatives(answer))
    return "\n".join([*parts, "</article>"])


class _Look:
    """How the tokens of one answer are drawn."""

    def __init__(self, tokens: list[Token]) -> None:
        forwards = sorted({t.forward for t in tokens if t.source == "canvas"})
        steps = max(len(forwards) - 1, 1)
        self._shade = {f: 1 + at * (SHADES - 1) // steps for at, f in enumerate(forwards)}

    def shade(self, token: Token) -> str:
        """The class of its colour, if it has one."""
        if token.source == "draft":
            return f"d{min(max(token.depth, 1), SHADES)}"
        return f"c{self._shade[token.forward]}" if token.source == "canvas" else ""

    def classes(self, token: Token, cut: bool = False) -> str:
        names = ["t", token.source, self.shade(token), "branch" if token.branch else "", "cut" if cut else ""]
        return " ".join(name for name in names if name)

    def number(self, token: Token) -> str:
        """The small number behind it."""
        which = {"draft": token.depth, "canvas": token.forward}
        return f"{_letter(token.branch)}{which.get(token.source, '')}"


def _letter(branch: int) -> str:
    """0 has none, then A to Z, AA and so on."""
    letters = ""
    while branch:
        branch, digit = divmod(branch - 1, 26)
        letters = chr(65 + digit) + letters
    return letters


def _confidence(value: float) -> str:
    return f"{value:.0%}" if 0 <= value <= 1 else f"{value:.3g}"


def _describe(token: Token) -> str:
    """A token in words, not yet escaped."""
    found = {
        "target": "the model's own next token",
        "draft": f"drafted, depth {token.depth}",
        "canvas": "decided on the canvas",
    }[token.source]
    said = repr(token.text) if token.text else "part of a character"
    facts = [f"Token {token.index + 1}, {said}", f"id {token.id}", found, f"forward {token.forward}"]
    if token.branch:
        facts.append(f"branch {_letter(token.branch)}")
    if token.confidence is not None:
        facts.append(f"confidence {_confidence(token.confidence)}")
    if token.logprob is not None and math.isfinite(token.logprob):
        facts.append(f"log-probability {token.logprob:.3f}")
    return "; ".join(facts)


def _piece(token: Token, breaks: bool = True) -> tuple[str, str]:
    """A token's text as HTML, with or without the line breaks inside it, and those that end it."""
    body = token.text.rstrip("\n")
    tail = token.text[len(body) :]
    mark = '<span class="mark" aria-hidden="true">{}</span>'
    shown = text(body).replace("\n", mark.format("↵") + ("\n" if breaks else "")) + mark.format("↵") * len(tail)
    return shown or mark.format("◌"), tail


def _text(answer: Answer, tokens: list[Token], look: _Look, number: int) -> str:
    joined = "".join(token.text for token in tokens)
    end = len(answer.text) if joined.startswith(answer.text) else len(joined)
    parts, at = [], 0
    for token in tokens:
        shown, tail = _piece(token)
        cut = at >= end and bool(token.text)
        at += len(token.text)
        said = _describe(token) + ("; not part of the text" if cut else "")
        parts.append(
            f'<span class="{look.classes(token, cut)}" role="listitem" tabindex="0" data-f="{token.forward}" '
            f'data-n="{look.number(token)}" aria-label="{text(said)}">{shown}</span>{tail}'
        )
    return (
        f"<h3>Text</h3>{_legend(tokens, look)}"
        f'<a class="skip" href="#forwards-{number}">Skip the text</a>'
        f'<div class="text" role="list" data-walk aria-label="The answer, token by token">{"".join(parts)}</div>'
        f"<details><summary>Plain text</summary><pre>{text(answer.text)}</pre></details>"
        f'<span id="forwards-{number}" tabindex="-1"></span>'
    )


def _legend(tokens: list[Token], look: _Look) -> str:
    """One entry for each way of drawing that occurs, with its count."""
    items = []

    def item(classes: str, number: object, words: str) -> None:
        items.append(f'<li><span class="t {classes}" data-n="{number}">token</span> {words}</li>')

    if own := sum(t.source == "target" for t in tokens):
        item("target", "", f"the model's own ({own:,})")
    depths = Counter(t.depth for t in tokens if t.source == "draft")
    for depth, count in sorted(depths.items()):
        item(f"draft d{min(max(depth, 1), SHADES)}", depth, f"drafted, depth {depth} ({count:,})")
    canvas = [t for t in tokens if t.source == "canvas"]
    if canvas:
        first, last = min(canvas, key=lambda t: t.forward), max(canvas, key=lambda t: t.forward)
        item(f"canvas {look.shade(first)}", first.forward, f"canvas, decided at forward {first.forward}")
        if last.forward > first.forward:
            item(f"canvas {look.shade(last)}", last.forward, f"at forward {last.forward}")
    branches = Counter(t.branch for t in tokens if t.branch)
    for branch, count in sorted(branches.items()):
        item("branch", _letter(branch), f"branch {_letter(branch)} ({count:,})")
    return f'<ul class="legend" aria-label="Legend">{"".join(items)}</ul>'


def _timeline(answer: Answer, tokens: list[Token], look: _Look) -> str:
    ordered = sorted(tokens, key=lambda t: (t.forward, t.index))
    found = {forward: list(group) for forward, group in groupby(ordered, key=lambda t: t.forward)}
    most = max(map(len, found.values()))
    rows, last = [], 0
    # Forward 0: tokens that a strategy appended without running the model.
    for forward in [*sorted(found), max(answer.usage.forwards, *found) + 1]:
        if forward > last + 1:
            skipped = f"{last + 1}" if forward == last + 2 else f"{last + 1} to {forward - 1}"
            rows.append(f'<tr><th scope="row">{skipped}</th><td>0</td><td class="empty">no token</td></tr>')
        last = forward
        group = found.get(forward)
        if not group:
            continue
        chips = "".join(
            f'<span class="{look.classes(t)}" data-n="{look.number(t)}">{_piece(t, breaks=False)[0]}</span>'
            for t in group
        )
        said = f"Forward {forward}: {_count(len(group), 'token')}"
        rows.append(
            f'<tr data-f="{forward}" data-label="{said}"><th scope="row">{forward}</th><td class="track">{len(group)}'
            f'<span class="bar" style="width:{5 * len(group) / most:.2f}rem"></span></td><td class="tokens">{chips}</td></tr>'
        )
    head = '<th scope="col">Forward</th><th scope="col">Tokens</th><th scope="col">Committed</th>'
    return f"<h3>Forward by forward</h3>{_table('Tokens that each forward committed', head, rows)}"


def _notes(answer: Answer) -> str:
    rows = []
    for note in answer.notes:
        chips = "".join(f'<span class="t">{text(word)}</span> {weight:.3g} ' for _, weight, word in note.tokens)
        rows.append(
            f'<tr><th scope="row">{text(note.label)}</th><td class="number">{note.place}</td>'
            f'<td class="tokens">{chips or "none"}</td></tr>'
        )
    head = (
        '<th scope="col">Kind</th><th scope="col" class="number">Position</th><th scope="col">Tokens, with weights</th>'
    )
    return f"<h3>Seen on the way</h3>{_table('What the strategy saw on its way', head, rows)}"


def _alternatives(answer: Answer) -> str:
    rows = [
        f'<tr><td class="number">{other.score:.4g}</td><td class="long">{text(other.text)}</td></tr>'
        for other in answer.alternatives
    ]
    head = '<th scope="col" class="number">Score</th><th scope="col">Text</th>'
    return f"<h3>Other texts found</h3>{_table('Other texts that the strategy found', head, rows)}"


#: Sizes of the canvas picture in CSS pixels: a cell, the space for forwards at the left and for tokens above.
CELL_W, CELL_H, LEFT, TOP = 16, 16, 56, 92


def _picture(tokens: list[Token], look: _Look) -> str:
    """Positions from left to right, forwards from top to bottom; a cell where a position was decided."""
    forwards = sorted({token.forward for token in tokens})
    row = {forward: at for at, forward in enumerate(forwards)}
    width, bottom = LEFT + CELL_W * len(tokens) + 8, TOP + CELL_H * len(forwards)
    known = all(t.confidence is not None and 0 <= t.confidence <= 1 for t in tokens)
    parts = []
    for forward, at in row.items():
        y = TOP + CELL_H * at
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{width}" y1="{y}" y2="{y}"/>')
        if at % 2 == 0 or len(forwards) < 40:
            parts.append(f'<text class="soft" x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{forward}</text>')
    for column, token in enumerate(tokens):
        x, y = LEFT + CELL_W * column, TOP + CELL_H * row[token.forward]
        label = text(token.text.strip()[:11] or repr(token.text)[1:-1] or "◌")
        parts.append(f'<text transform="translate({x + 12} {TOP - 6}) rotate(-90)">{label}</text>')
        parts.append(f'<rect class="after" x="{x}" y="{y}" width="{CELL_W}" height="{bottom - y}"/>')
        sure = ""
        if known and token.confidence is not None:
            high = round((CELL_H - 2) * token.confidence, 1)
            sure = f'<rect class="sure" x="{x + 11}" y="{y + CELL_H - 1 - high}" width="4" height="{high}"/>'
        parts.append(
            f'<g class="g" role="listitem" tabindex="{0 if column == 0 else -1}" data-f="{token.forward}" '
            f'aria-label="{text(_describe(token))}"><rect class="cell {look.shade(token)}" x="{x + 0.5}" y="{y + 0.5}" '
            f'width="{CELL_W - 1}" height="{CELL_H - 1}"/>{sure}</g>'
        )
    explained = "Positions from left to right, forwards from top to bottom. A cell marks the forward that decided a "
    explained += "position; the bar in it is the confidence." if known else "position."
    return (
        f'<h3>Canvas over time</h3><p class="note">{explained}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Canvas over time">'
        f'<svg width="{width}" height="{bottom + 8}" '
        f'viewBox="0 0 {width} {bottom + 8}" role="list" data-walk aria-label="{explained}">'
        f'<text class="soft" x="4" y="{TOP - 6}">forward</text>{"".join(parts)}</svg></div>'
    )
