"""`omnidecode bench diffusion` on the trained models of the repository, in its smallest size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from omnidecode import LLM, RequestError, SamplingParams
from omnidecode import strategies as S
from omnidecode.bench_diffusion import SUITES, Report, Row, bench_diffusion, models_folder
from omnidecode.train.recipe import questions

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"


@pytest.fixture(scope="module")
def sudoku() -> Report:
    chosen = [S.Llada(block=16, unmasker="threshold", threshold=2.0), S.Llada(block=16, unmasker="threshold")]
    return bench_diffusion(SUITES["sudoku"], MODELS, count=3, rounds=2, strategies=chosen, threads=1)


def test_counts(sudoku: Report) -> None:
    static, above, threshold, twin = sudoku.rows
    assert sudoku.static is static and sudoku.twin is twin and (twin.model, twin.strategy) == ("sudoku-ar", "plain")
    assert (
        static.nfe == above.nfe == 3 * 16 and static.right == above.right == 3
    )  # contract: above 1 it is the static loop
    assert threshold.nfe < static.nfe and threshold.tokens == static.tokens and threshold.tokens_per_forward > 1
    items = questions(SUITES["sudoku"].task, "held-out", 3, held=True)
    with LLM(MODELS / "sudoku-ar", threads=1) as llm:
        outputs = llm.generate(
            [q for q, _ in items], SamplingParams(temperature=0.0, max_tokens=16, seed=0), strategy="plain"
        )
    assert twin.nfe == sum(o.usage.nfe for o in outputs)
    assert twin.right == sum(SUITES["sudoku"].task.judge(q, o.outputs[0].text) for (q, _), o in zip(items, outputs))
    for row in sudoku.rows:
        assert row.questions == 3 and len(row.seconds) == 2 and 0 < row.network_seconds <= row.turn_seconds
        assert row.rest_seconds > 0 and row.overhead < row.overhead_with_ends < 1
        assert row.cached == 0, "a prompt was found in the cache: later rows would look faster than they are"


def test_ratios() -> None:
    base = Row("m", "llada", {"block": 4}, "approximate", 2, 2, 8, 8, 8, 0, [4.0, 6.0, 8.0])
    fast = Row("m", "llada", {"cache": "dual"}, "approximate", 2, 1, 4, 4, 8, 0, [1.0, 2.0, 1.0], 0.9, 1.0)
    report = Report("t", 2, 4, 3, [base, fast])
    assert report.ratio(fast, report.static) == 4.0 and report.ratio(fast, report.twin) is None
    assert (fast.accuracy, fast.tokens_per_forward, fast.label) == (50.0, 2.0, "llada:cache=dual")
    assert fast.overhead == pytest.approx(0.1)
    row = report.to_dict()["rows"][1]
    assert row["ratio_to_static"] == 4.0 and row["ratio_to_autoregressive"] is None and row["nfe_per_question"] == 2.0
    assert str(report).splitlines()[3].split()[1:] == ["llada:cache=dual", "50.0", "2.0", "2.00", "4.00", "-", "10.0"]


def test_kinds_of_models() -> None:
    chosen = [S.Freedave(), ("block", S.Freedave())]
    report = bench_diffusion(SUITES["chains"], MODELS, count=1, rounds=1, strategies=chosen, threads=1)
    assert [row.model for row in report.rows] == ["chains-diffusion", "chains-diffusion", "chains-block", "chains-ar"]


def test_tables_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sudoku: Report) -> None:
    """`benches/diffusion/run.py write` puts what was measured between its marks, and nothing else changes."""
    monkeypatch.syspath_prepend(str(ROOT / "benches" / "diffusion"))
    bench = importlib.import_module("run")
    large = {"parameters": 110_000_000, "rows": [{"overhead": 0.0004}, {"overhead": 0.0015}]}
    facts = {"date": "2030-01-02", "machine": "m", "threads": 1, "build": "", "stolen_ticks": 0}
    figures = json.loads(json.dumps({**facts, "diffusion": [sudoku.to_dict()], "large": large}))
    document = tmp_path / "page.md"
    document.write_text(f"before\n{bench.BEGIN}\nstale words\n{bench.END}\nbehind\n", encoding="utf-8")
    bench.write(figures, document)
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{bench.BEGIN}\nMeasured 2030-01-02: m, 1 threads") and "stale words" not in text
    assert text.endswith(f"{bench.END}\nbehind\n")
    rows = [line for line in text.splitlines() if line.startswith(("| llada", "| plain"))]
    assert len(rows) == len(sudoku.rows) and rows[0].startswith("| llada | 100.0 | 16.0 | 1.00 | 1.00 |")
    assert "| 0.04 to 0.15 % | 2 % |" in text
    bench.write(figures, document)
    assert document.read_text(encoding="utf-8") == text
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").count(bench.BEGIN) == 1


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--models: expected a folder with one of sudoku-diffusion"):
        models_folder(tmp_path)
    with pytest.raises(RequestError, match="expected a diffusion strategy, found 'plain'"):
        bench_diffusion(SUITES["sudoku"], MODELS, count=1, rounds=1, strategies=[S.Plain()])
    assert models_folder(MODELS) == MODELS


def test_shell() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "omnidecode", "bench", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)

    flags = ("diffusion", "--task", "sudoku", "--count", "1", "--rounds", "1", "--threads", "1")
    found = run(*flags, "--strategy", "llada:unmasker=threshold,block=16", "--json")
    (report,) = json.loads(found.stdout)["diffusion"]
    assert [row["strategy"] for row in report["rows"]] == ["llada", "llada", "plain"], found.stderr
    assert report["rows"][1]["parameters"] == {"unmasker": "threshold", "block": 16}
    assert run("--temperature", "1", *flags).returncode == 2  # a flag of the other benchmark
    assert run("diffusion", "--count", "0").returncode == 2
    assert run("diffusion", "--strategy", "llada:magic=1").returncode == 2
