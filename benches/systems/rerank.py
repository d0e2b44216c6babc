"""FIRST against generating the list, on the same windows (sheet 01).

    python benches/systems/rerank.py MODEL [--data FILE.jsonl] [--rounds 3] [--limit 4]

``--data``: JSON lines with ``query`` and ``candidates`` of ``content`` and ``relevance``; default: a small collection made here,
called synthetic, which says nothing about quality. Alternating, medians; prints passes, seconds, the ratio and nDCG@10.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from omnidecode import LLM
from omnidecode.rerank import METHODS, rerank
from omnidecode.trec import ndcg


def synthetic() -> list[dict[str, Any]]:
    things = (
        "lighthouse",
        "glacier",
        "violin",
        "bakery",
        "comet",
        "harbour",
        "orchard",
        "windmill",
        "library",
        "volcano",
    )
    facts = (
        "was built in {y}",
        "is {n} metres high",
        "is kept by {n} people",
        "closed in {y}",
        "is painted every {n} years",
    )
    found = []
    for q, thing in enumerate(things):
        candidates = []
        for i in range(20):
            other = things[(q + i * 3) % len(things)]
            fact = facts[(q + i) % len(facts)].format(y=1700 + 13 * i + q, n=7 + i)
            relevance = 2 * (other == thing and "built" in fact) or int(other == thing)
            candidates.append(
                {"content": f"The {other} of Oldtown {fact}, as the town records say.", "relevance": relevance}
            )
        found.append({"query": f"When was the {thing} of Oldtown built?", "candidates": candidates})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text().splitlines()] if options.data else synthetic()
    rows = rows[: options.limit]
    texts = [[c["content"] for c in row["candidates"]] for row in rows]
    grades = [{str(i): int(c["relevance"]) for i, c in enumerate(row["candidates"])} for row in rows]
    seconds: dict[str, list[float]] = {method: [] for method in options.methods}
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(options.rounds + 1):
        for method in options.methods:
            # A fresh prefix cache each time; opening is not counted.
            with LLM(options.model) as llm:
                start = time.perf_counter()
                found = [
                    rerank(llm, [r["query"]], [t], method=method, words=options.words)[0]
                    for r, t in zip(rows, texts, strict=True)
                ]
                if turn:  # the first turn reads the file into memory
                    seconds[method].append(time.perf_counter() - start)
            if method not in facts:
                scores = [ndcg(map(str, f.order), g) for f, g in zip(found, grades, strict=True)]
                facts[method] = {
                    "windows": sum(f.windows for f in found),
                    "passes": sum(f.usage.host_reads for f in found),
                    "rows": sum(f.usage.rows for f in found),
                    "ndcg10": sum(scores) / len(scores),
                }
    before = [ndcg(map(str, range(len(t))), g) for t, g in zip(texts, grades, strict=True)]
    print(f"{len(rows)} queries of {len(texts[0])} passages, nDCG@10 before {sum(before) / len(before):.3f}\n")
    print("| method | passes | rows | seconds | times as fast as generating | nDCG@10 |\n|---|---|---|---|---|---|")
    for method, times in seconds.items():
        f = facts[method]
        f["seconds"] = times
        ratio = statistics.median(g / t for g, t in zip(seconds.get("generate", times), times, strict=True))
        f["ratio"] = ratio
        print(
            f"| {method} | {f['passes']} | {f['rows']} | {statistics.median(times):.2f} | {ratio:.2f} | {f['ndcg10']:.3f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
