"""Benchmarks in a report: strategies against plain decoding, and diffusion strategies by what they answer and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ._reading import each, field

__all__ = ["Bench", "Point", "Sweep", "bench_html", "read_bench", "read_sweeps", "sweeps_html"]

Escape = Callable[[object], str]
Frame = Callable[[str, str, list[str]], str]


@dataclass(slots=True)
class Bench:
    """What ``omnidecode bench --json`` printed: a heading and its rows."""

    heading: str
    rows: list[dict[str, Any]]


@dataclass(slots=True)
class Point:
    """A row of a task. ``kind``: ``full``, ``block`` or ``causal`` attention. ``accuracy`` and ``overhead`` in per cent,
    ``forwards`` a question; ratios are ``None`` where the model to compare with was not run."""

    strategy: str
    model: str
    kind: str
    accuracy: float
    forwards: float
    tokens_per_forward: float
    to_static: float | None
    to_causal: float | None
    overhead: float


@dataclass(slots=True)
class Sweep:
    """A task of ``omnidecode bench diffusion --json``."""

    task: str
    heading: str
    points: list[Point]


def _rounds(rounds: int) -> str:
    return f"median of {rounds} rounds" if rounds > 1 else "one round"


def read_bench(value: Mapping[str, Any]) -> Bench:
    """Raises :class:`RequestError` where it is none."""
    for row, where in each(value, "rows", "run"):
        for name in ("strategy", "guarantee"):
            field(row, name, str, where)
        for name in ("tokens_per_second", "tokens_per_forward", "ratio"):
            field(row, name, (int, float), where)
        field(row, "identical", bool, where, None)
    heading = (
        f"{field(value, 'prompts', int, 'run')} prompts, at most {field(value, 'max_tokens', int, 'run')} tokens each, "
        f"temperature {field(value, 'temperature', (int, float), 'run'):g}, {_rounds(field(value, 'rounds', int, 'run'))}"
    )
    return Bench(heading, value["rows"])


def read_sweeps(value: Mapping[str, Any]) -> list[Sweep]:
    """Raises :class:`RequestError` where it is none."""
    return [_sweep(task, where) for task, where in each(value, "diffusion", "run")]


def _sweep(value: Any, where: str) -> Sweep:
    heading = (
        f"{field(value, 'questions', int, where)} questions, canvas of {field(value, 'canvas', int, where)}, "
        f"{_rounds(field(value, 'rounds', int, where))}"
    )
    points = [_point(row, here) for row, here in each(value, "rows", where)]
    return Sweep(field(value, "task", str, where), heading, points)


def _point(row: Any, where: str) -> Point:
    number = (int, float)
    model = field(row, "model", str, where)
    given = field(row, "parameters", Mapping, where)
    name = field(row, "strategy", str, where)
    return Point(
        strategy=f"{name}:{','.join(f'{k}={v}' for k, v in given.items())}" if given else name,
        model=model,
        kind={"block": "block", "ar": "causal"}.get(model.rpartition("-")[2], "full"),
        accuracy=field(row, "accuracy", number, where),
        forwards=max(field(row, "nfe_per_question", number, where), 0.0),
        tokens_per_forward=field(row, "tokens_per_forward", number, where),
        to_static=field(row, "ratio_to_static", number, where, None),
        to_causal=field(row, "ratio_to_autoregressive", number, where, None),
        overhead=100 * field(row, "overhead", number, where),
    )


def _head(names: tuple[str, ...], numeric: tuple[str, ...]) -> str:
    return "".join(f'<th scope="col" class="{"number" if name in numeric else "word"}">{name}</th>' for name in names)


def bench_html(bench: Bench, text: Escape, table: Frame) -> str:
    """``text`` escapes, ``table`` frames rows."""
    most = max((row["ratio"] for row in bench.rows), default=1) or 1
    same: dict[Any, str] = {True: "yes", False: "no", None: "not compared"}
    rows = [
        f'<tr><th scope="row">{text(row["strategy"])}</th><td>{text(row["guarantee"])}</td>'
        f'<td class="number">{row["tokens_per_second"]:,.1f}</td><td class="number">{row["tokens_per_forward"]:.2f}</td>'
        f'<td class="track">{row["ratio"]:.2f}<span class="bar" style="width:{5 * max(row["ratio"], 0) / most:.2f}rem"></span>'
        f"</td><td>{same[row.get('identical')]}</td></tr>"
        for row in bench.rows
    ]
    numeric = "Tokens / s", "Tokens / forward"
    names = ("Strategy", "Guarantee", *numeric, "Times plain's speed", "Same tokens as plain")
    return table("Strategies", _head(names, numeric), rows)


def sweeps_html(sweeps: list[Sweep], text: Escape, table: Frame) -> str:
    """A picture and a table for each task."""
    return "\n".join(
        f'<section><article aria-label="{text(sweep.task)}"><h2>{text(sweep.task)}</h2><p class="note">{text(sweep.heading)}</p>'
        f"{_picture(sweep, text)}{_rows(sweep, text, table)}</article></section>"
        for sweep in sweeps
    )


def _rows(sweep: Sweep, text: Escape, table: Frame) -> str:
    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        f'<tr data-f="{at}" data-label="{text(_describe(at, point))}"><th scope="row">{at}</th><td>{text(point.strategy)}</td>'
        f"<td>{text(point.model)}</td>"
        + "".join(
            f'<td class="number">{cell}</td>'
            for cell in (
                f"{point.accuracy:.1f}",
                f"{point.forwards:.1f}",
                f"{point.tokens_per_forward:.2f}",
                ratio(point.to_static),
                ratio(point.to_causal),
                f"{point.overhead:.1f}",
            )
        )
        + "</tr>"
        for at, point in enumerate(sweep.points, 1)
    ]
    numeric = ("Exact, %", "Forwards", "Tokens / forward", "× static", "× causal", "Outside, %")
    return table(f"Rows of {sweep.task}", _head(("Row", "Strategy", "Model", *numeric), numeric), rows)


def _describe(at: int, point: Point) -> str:
    return f"Row {at}, {point.strategy} on {point.model}: {point.accuracy:.1f} % exact in {point.forwards:.1f} forwards"


#: The picture in CSS pixels: the plane, and the space for numbers at its left and below it.
WIDE, HIGH, LEFT, LOW = 640, 260, 48, 48
#: Shapes tell the kinds of models apart, with or without their colours.
SHAPES = {
    "full": ("circles full attention", '<circle class="cell c6" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'),
    "block": ("squares block-causal", '<rect class="cell d6" x="{l:.1f}" y="{t:.1f}" width="11" height="11"/>'),
    "causal": ("triangles the causal twin", '<path class="cell after" d="M{x:.1f} {t:.1f}l7 12h-14z"/>'),
}


def _picture(sweep: Sweep, text: Escape) -> str:
    """Forwards a question from left to right, by doublings; exact answers from below to above."""
    if not sweep.points:
        return ""
    last = max(1, math.ceil(math.log2(max(max(p.forwards for p in sweep.points), 2))))
    least = min(90.0, 10 * math.floor(min(p.accuracy for p in sweep.points) / 10))

    def x(forwards: float) -> float:
        return LEFT + WIDE * min(max(math.log2(max(forwards, 1)), 0) / last, 1)

    def y(accuracy: float) -> float:
        return 20 + HIGH * (1 - (accuracy - least) / (100 - least))

    parts = []
    for tick in range(5):
        value = least + (100 - least) * tick / 4
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{LEFT + WIDE}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g} %</text>')
    for power in range(last + 1):
        at = x(2**power)
        parts.append(f'<text class="soft" x="{at:.1f}" y="{HIGH + 38}" text-anchor="middle">{2**power}</text>')
    near: dict[tuple[int, int], list[int]] = {}  # rows that stand at one place share a label
    for at, point in enumerate(sweep.points, 1):
        near.setdefault((round(x(point.forwards) / 12), round(y(point.accuracy) / 12)), []).append(at)
    labels = {rows[0]: ", ".join(map(str, rows)) for rows in near.values()}
    for at, point in enumerate(sweep.points, 1):
        px, py = x(point.forwards), y(point.accuracy)
        shape = SHAPES[point.kind][1].format(x=px, y=py, l=px - 5.5, t=py - 5.5)
        parts.append(
            f'<g class="g" role="listitem" tabindex="{0 if at == 1 else -1}" data-f="{at}" '
            f'aria-label="{text(_describe(at, point))}">{shape}<text x="{px + 8:.1f}" y="{py - 6:.1f}">{labels.get(at, "")}</text></g>'
        )
    kinds = [words for kind, (words, _) in SHAPES.items() if any(point.kind == kind for point in sweep.points)]
    said = f"Exact answers over forwards a question (doubling): {', '.join(kinds)}."
    return (
        f'<p class="note">{said}</p><div class="scroll" tabindex="0" role="region" aria-label="Accuracy over forwards">'
        f'<svg width="{LEFT + WIDE + 96}" height="{HIGH + LOW}" viewBox="0 0 {LEFT + WIDE + 96} {HIGH + LOW}" role="list" '
        f'data-walk aria-label="{said}">{"".join(parts)}</svg></div>'
    )
