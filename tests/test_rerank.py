"""FIRST in Python and in the shell: windows, counters, TREC files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from omnidecode import LLM, RequestError, trec
from omnidecode.rerank import rerank

TOPICS = [
    "the moon",
    "bread",
    "a river",
    "chess",
    "the violin",
    "iron",
    "bees",
    "glass",
    "the sahara",
    "wool",
    "salt",
    "sleep",
]
DOCUMENTS = [
    f"A short text about {topic}: it is known in many lands. [B] See also number {i}." for i, topic in enumerate(TOPICS)
]


def test_forwards_are_windows(llm: LLM) -> None:
    query = "Which instruments have strings? "
    for window, stride in ((5, 3), (12, 6), (6, 6)):
        found = llm.rerank(query, DOCUMENTS, window=window, stride=stride)
        n = len(DOCUMENTS)
        expected = 1 if n <= window else 1 + math.ceil((n - window) / stride)
        assert sorted(found.order) == list(range(n))
        assert (found.windows, found.usage.host_reads) == (expected, expected), "one pass a window"
        assert len(found.scores) == expected
        for scores in found.scores:
            assert [s for _, s in scores] == sorted((s for _, s in scores), reverse=True)
    again = llm.rerank(query, DOCUMENTS, window=window, stride=stride)
    assert (again.order, again.scores) == (found.order, found.scores)


def test_the_head_is_prefilled_once(llm: LLM) -> None:
    query = "Where do people keep animals that make honey, and why? " * 6
    with LLM(llm.path) as fresh:
        found = fresh.rerank(query, DOCUMENTS[:8], window=4, stride=2)
        (alone,) = rerank(fresh, ["?"], [DOCUMENTS[:2]])
    assert found.windows == 3
    # All windows but the first find the whole pages of the common head.
    head = len(llm.tokenize(query))
    assert found.usage.cached_tokens >= (found.windows - 1) * (head // 32 * 32), found.usage
    assert found.usage.rows + found.usage.cached_tokens == found.usage.prompt_tokens
    assert alone.windows == 1


def test_methods_agree_on_the_first(llm: LLM) -> None:
    for query in ("bees and honey", "a game of kings"):
        first = llm.rerank(query, DOCUMENTS[:8])
        constrained = llm.rerank(query, DOCUMENTS[:8], method="constrained")
        generated = llm.rerank(query, DOCUMENTS[:8], method="generate")
        assert first.order[0] == constrained.order[0], "contract 4"
        assert sorted(generated.order) == sorted(constrained.order) == list(range(8))
        assert constrained.usage.host_reads == 7 and first.usage.host_reads == 1 < generated.usage.host_reads


def test_many_queries_are_one_batch(llm: LLM) -> None:
    queries = ["bees", "music", "food"]
    together = rerank(llm, queries, [DOCUMENTS, DOCUMENTS[:5], DOCUMENTS[:1]], window=6, stride=3)
    for query, documents, found in zip(queries, (DOCUMENTS, DOCUMENTS[:5], DOCUMENTS[:1]), together, strict=True):
        assert llm.rerank(query, documents, window=6, stride=3).order == found.order
    assert together[2].order == [0] and together[2].usage.forwards == 0


def test_long_documents_are_cut_to_fit(llm: LLM) -> None:
    with LLM(llm.path, context=512) as small:
        long = [document + " and so on" * 200 for document in DOCUMENTS[:6]]
        found = small.rerank("bees", long, window=4, stride=2)
        assert sorted(found.order) == list(range(len(long)))
        with pytest.raises(RequestError, match="512"):
            small.rerank("bees " * 600, long, window=4, stride=2)


def test_what_cannot_be_is_refused(llm: LLM) -> None:
    for bad in ({"window": 27}, {"stride": 0}, {"window": 4, "stride": 5}, {"method": "vote"}, {"words": 0}):
        with pytest.raises(RequestError, match="expected"):
            llm.rerank("q", DOCUMENTS, **bad)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="lists of texts"):
        rerank(llm, ["q"], ["text"])  # type: ignore[list-item]


def test_trec_files(tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    trec.write_run(path, {"q1": ["b", "a", "c"], "q2": ["a"]}, tag="mine")
    assert path.read_text().splitlines()[:2] == ["q1 Q0 b 1 3 mine", "q1 Q0 a 2 2 mine"]
    assert {q: [d for d, _ in docs] for q, docs in trec.read_run(path).items()} == {"q1": ["b", "a", "c"], "q2": ["a"]}
    path.write_text("q Q0 a 1 1.5 t\nq Q0 b 2 2.5 t\nq Q0 c 4 0 t\nq Q0 d 3 0 t\n")
    assert trec.read_run(path) == {"q": [("b", 2.5), ("a", 1.5), ("d", 0.0), ("c", 0.0)]}, "scores decide, then ranks"
    for wrong in ("q Q0 a 1 1.5\n", "q Q0 a x 1 t\n", "q Q0 a 1 nan t\n", "q Q0 a 1 1 t\nq Q0 a 2 0 t\n"):
        path.write_text(wrong)
        with pytest.raises(RequestError, match="expected"):
            trec.read_run(path)
    (tmp_path / "qrels.txt").write_text("q 0 a 2\nq 0 b 0\n")
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t0\n")
    assert (
        trec.read_judgements(tmp_path / "qrels.txt")
        == trec.read_judgements(tmp_path / "qrels.tsv")
        == {"q": {"a": 2, "b": 0}}
    )


def test_metrics() -> None:
    grades = {"a": 3, "b": 2, "c": 3, "d": 0, "e": 1, "f": 2}
    # DCG 3 + 2/log2(3) + 3/2 + 0 + 1/log2(6) + 2/log2(7); ideal 3, 3, 2, 2, 1, 0.
    ideal = 3 + 3 / math.log2(3) + 2 / 2 + 2 / math.log2(5) + 1 / math.log2(6)
    found = 3 + 2 / math.log2(3) + 3 / 2 + 1 / math.log2(6) + 2 / math.log2(7)
    assert trec.ndcg("abcdef", grades) == pytest.approx(found / ideal)
    assert trec.ndcg("d", grades) == 0 and trec.ndcg("a", {}) == 0
    assert trec.mrr("dxa", grades) == pytest.approx(1 / 3) and trec.mrr("d", grades) == 0
    assert trec.recall("abx", grades, 2) == pytest.approx(2 / 5)


def test_in_the_shell(llm: LLM, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "omnidecode", "rerank", "--model", str(llm.path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    expected = llm.rerank("bees", DOCUMENTS[:4]).order
    said = run("--query", "bees", *DOCUMENTS[:4])
    assert said.stdout.splitlines() == [DOCUMENTS[at] for at in expected], said.stderr
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "title": "", "text": d}) + "\n" for i, d in enumerate(DOCUMENTS))
    )
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "bees"}) + "\n")
    trec.write_run(tmp_path / "run.txt", {"q": [f"d{i}" for i in range(len(DOCUMENTS))]})
    (tmp_path / "qrels.txt").write_text("q 0 d6 2\n")
    flags = [
        f"--{name}={tmp_path / file}"
        for name, file in (
            ("run", "run.txt"),
            ("corpus", "corpus.jsonl"),
            ("queries", "queries.jsonl"),
            ("judgements", "qrels.txt"),
            ("output", "new.txt"),
        )
    ]
    found = run(*flags, "--window", "6", "--stride", "3", "--json")
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stdout)
    assert facts["windows"] == facts["passes"] == 3 and 0 <= facts["ndcg10_after"] <= 1
    assert facts["ndcg10_before"] == pytest.approx(1 / math.log2(8))
    order = [f"d{at}" for at in llm.rerank("bees", DOCUMENTS, window=6, stride=3).order]
    assert [d for d, _ in trec.read_run(tmp_path / "new.txt")["q"]] == order == facts["run"]["q"]
    assert run("--run", str(tmp_path / "run.txt")).returncode == 2
