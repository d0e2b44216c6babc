"""The canvas as it is decided: what is drawn on a terminal, and the lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omnidecode import LLM, SamplingParams
from omnidecode._show import Show
from omnidecode.outputs import Mark

ROOT = Path(__file__).resolve().parent.parent
SUDOKU = ROOT / "models" / "sudoku-diffusion"
PUZZLE = "0430300400032000="


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """What a terminal would show: understands cursor up, erase below, and styles."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[\d*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            row -= int(up[1])
            assert row >= 0, "the picture climbed out of its place"
        elif part == "\x1b[J":
            lines = [*lines[:row], ""]
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return lines


UNDECIDED = [Mark(5 + i, 1, 0, 0.0, "<mask>") for i in range(4)]
STEPS = [
    [Mark(6, 9, 1, 0.95, "b"), Mark(5, 8, 1, 0.6, "a")],
    [Mark(7, 10, 2, 0.3, "\x1b[2J")],
    [Mark(7, 1, 3, 0.0, "<mask>"), Mark(8, 11, 3, 0.9, "\n")],
]


def test_lines_elsewhere() -> None:
    out = io.StringIO()
    show = Show(out, 1)
    for marks in [UNDECIDED, *STEPS]:
        show.update(marks)
    assert out.getvalue().splitlines() == [
        "forward 1  ab··  0:0.60 1:0.95",
        "forward 2  ab\ufffd[2J·  2:0.30",
        "forward 3  ab·␤  2:masked again 3:0.90",
    ]
    together = io.StringIO()
    Show(together, 1).update([mark for marks in [UNDECIDED, *STEPS] for mark in marks])
    assert together.getvalue() == out.getvalue()


def test_a_terminal_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "3")
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    show = Show(out, 1)
    show.update(UNDECIDED)
    assert screen(out.getvalue()) == ["forward 0, 0 of 4 decided", "···", "·", ""]
    show.update(STEPS[0])
    assert screen(out.getvalue()) == ["forward 1, 2 of 4 decided", "ab·", "·", ""]
    assert "\x1b[32m\x1b[7mb" in out.getvalue() and "\x1b[33m\x1b[7ma" in out.getvalue()
    show.update(STEPS[1])
    assert "\x1b[2J" not in out.getvalue() and "\x1b[32mb" in out.getvalue()


def test_marks_of_a_request() -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=16, seed=0)
    strategy = {"name": "llada", "unmasker": "threshold"}
    with LLM(SUDOKU, threads=1) as llm:
        with llm.stream(PUZZLE, sampling, strategy=strategy, watch=True) as stream:
            marks = [mark for delta in stream for mark in delta.marks]
            watched = stream.result.outputs[0]
        quiet = llm.generate(PUZZLE, sampling, strategy=strategy)[0].outputs[0]
        with llm.stream(PUZZLE, sampling, strategy=strategy) as stream:
            assert all(not delta.marks for delta in stream)
        mask = llm.card["mask"]
    assert (watched.text, watched.token_ids, watched.usage.nfe) == (quiet.text, quiet.token_ids, quiet.usage.nfe)
    opened, decided = marks[:16], marks[16:]
    assert [mark.place for mark in opened] == list(range(18, 34)) and {mark.token_id for mark in opened} == {
        mark_id(mask)
    }
    by_place = {mark.place: mark for mark in decided}
    assert len(decided) == 16 and "".join(by_place[place].text for place in range(18, 34)) == quiet.text
    for mark, origin in zip((by_place[place] for place in range(18, 34)), quiet.origins):
        assert (mark.forward, mark.confidence, mark.text) == (origin.forward, origin.confidence, origin.text)
        assert mark.confidence == pytest.approx(1.0, abs=0.999)


def mark_id(mask: object) -> int:
    assert isinstance(mask, int)
    return mask


def test_shell() -> None:
    flags = (
        "--model",
        str(SUDOKU),
        "--strategy",
        "llada",
        "--temperature",
        "0",
        "--max-tokens",
        "16",
        "--threads",
        "1",
    )

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "omnidecode", "generate", PUZZLE, *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "TERM": "xterm"})

    shown = run(*flags, "--show")
    *lines, text = shown.stdout.splitlines()
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout and len(text) == 16
    assert [line.split()[1] for line in lines] == [str(n) for n in range(1, 17)]
    assert [line.count("·") for line in lines] == list(range(15, -1, -1)) and text in lines[-1]
    refused = run("--model", str(SUDOKU), "--strategy", "plain", "--show")
    assert refused.returncode == 2 and "--show: expected a strategy with a canvas" in refused.stderr
    assert run(*flags, "--show", "--json").returncode == 2
