"""Omnidecode beside llama.cpp, mistral.rs and transformers, in one run: ``python benches/peers/run.py --help``.

Every comparison alternates A B A B with both models loaded, takes medians of at least five turns, and discards the first.
Ratios are printed; the raw seconds go to ``benches/results/<date>-<machine>.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engines import LlamaCpp, MistralRs, Ours, Transformers

ROOT = Path(__file__).resolve().parents[2]


def steal() -> int:
    """Ticks that the hypervisor took from this machine so far."""
    try:
        return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    except (OSError, IndexError, ValueError):
        return 0


def alternate(turns: int, sides: dict[str, Callable[[int], Any]]) -> tuple[dict[str, list[Any]], int]:
    """What each side gives in each of its turns, the first one dropped, and the stolen ticks meanwhile."""
    raw: dict[str, list[Any]] = {name: [] for name in sides}
    before = steal()
    for turn in range(turns + 1):
        for name, side in sides.items():
            value = side(turn)
            if turn:
                raw[name].append(value)
    return raw, steal() - before


def beside(
    ours: Ours, name: str, peer: Any, contexts: list[int], turns: int, keep: bool, tag: dict[str, Any]
) -> Iterator[dict]:
    for context in contexts:
        raw, stolen = alternate(
            turns,
            {
                "omnidecode": lambda turn, c=context: ours.decode(c, 0 if keep else turn),
                name: lambda turn, c=context: peer.decode(c, 0 if keep else turn),
            },
        )
        for at, what in enumerate(("prefill", "decode")):
            if keep and what == "prefill":
                continue
            sides = {side: [value[at] for value in values] for side, values in raw.items()}
            mine, other = (statistics.median(values) for values in sides.values())
            row = {**tag, "what": what, "peer": name, "context": context, "ratio": other / mine}
            yield {**row, "seconds": sides, "stolen_ticks": stolen}


TABLES = ("cold", "warm", "seen")


def recycling(model: str, threads: int, per_task: int, tokens: int, turns: int) -> Iterator[dict]:
    """Token Recycling over plain decoding by prompt, in three states of its table, and prompt lookup over plain.

    Each turn has an engine of its own. Its table is filled by other prompts of the same tasks; then every prompt is read by a
    plain run that is dropped, and answered with no table (cold), with the engine's, which has not met this prompt (warm), and
    with the engine's once more, which holds its answer now (seen).
    """
    lines = (ROOT / "tests/data/spec_bench_64.jsonl").read_text(encoding="utf-8").splitlines()
    tasks: dict[str, list[str]] = {}
    for line in map(json.loads, lines):
        tasks.setdefault(line["task"], []).append(line["prompt"])
    mixed = [(task, text) for texts in zip(*(t[:per_task] for t in tasks.values())) for task, text in zip(tasks, texts)]
    others = [text for texts in zip(*(t[per_task : 2 * per_task] for t in tasks.values())) for text in texts]
    assert len(others) == len(mixed), f"expected two times --per-task prompts of each task, found {len(others)} others"
    sides: dict[str, Any] = {
        "plain": "plain",
        "prompt-lookup": "prompt-lookup",
        "cold": {"name": "token-recycling", "table": "request"},
        "warm": "token-recycling",
        "seen": "token-recycling",
    }
    seconds: list[dict[str, list[float]]] = [{name: [] for name in sides} for _ in mixed]
    counts: list[dict[str, Any]] = [{} for _ in mixed]
    before = steal()
    for turn in range(turns):
        ours = Ours(model, threads)
        params = ours.sampling(temperature=0, max_tokens=tokens)

        def run(text: str, strategy: Any, ours: Ours = ours, params: Any = params) -> tuple[float, Any]:
            start = time.perf_counter()
            out = ours.llm.chat([{"role": "user", "content": text}], params, strategy=strategy)[0]
            return time.perf_counter() - start, out

        for text in others:
            run(text, "token-recycling")
        for (task, text), times, count in zip(mixed, seconds, counts):
            answers = {tuple(run(text, "plain")[1].outputs[0].token_ids)}
            # Plain goes first and last by turns, so that a machine that grows slower or faster favours nobody.
            names = list(sides) if turn % 2 == 0 else [*list(sides)[1:], "plain"]
            for name in names:
                took, out = run(text, sides[name])
                times[name].append(took)
                answers.add(tuple(out.outputs[0].token_ids))
                count[name] = {key: getattr(out.usage, key) for key in ("forwards", "rows", "drafted", "accepted")}
            assert len(answers) == 1, f"{task}: not the same tokens"
            count["tokens"] = len(answers.pop())
        ours.llm.close()
    stolen = steal() - before
    for (task, text), times, count in zip(mixed, seconds, counts):
        median = {name: statistics.median(values) for name, values in times.items()}
        row = {"model": Path(model).name, "task": task, "prompt": text[:60], **count, "seconds": times}
        for name in ("prompt-lookup", *TABLES):
            what = f"token-recycling {name}" if name in TABLES else name
            yield {**row, "what": what, "ratio": median["plain"] / median[name], "stolen_ticks": stolen}


def bandwidth(threads: int) -> float | None:
    """Bytes a second that this machine reads from memory now; nothing without numpy."""
    try:
        import concurrent.futures

        import numpy as np
    except ImportError:
        return None
    parts = [np.ones(64 << 20, dtype=np.uint8).view(np.uint64) for _ in range(threads)]
    best = float("inf")
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="GGUF files: beside llama.cpp")
    parser.add_argument("--transformers", action="append", default=[], metavar="MODEL", help="beside transformers")
    parser.add_argument("--dtype", default="bfloat16", help="of transformers: bfloat16 or float32")
    parser.add_argument(
        "--mistralrs", action="append", default=[], metavar="MODEL", help="GGUF files: beside mistral.rs"
    )
    parser.add_argument("--together", metavar="MODEL", help="8 requests at once against one")
    parser.add_argument("--recycling", metavar="MODEL", help="Token Recycling against plain, on Spec-Bench prompts")
    parser.add_argument("--per-task", type=int, default=2, help="Spec-Bench prompts of each task")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a Spec-Bench answer")
    parser.add_argument("--contexts", default="64,512,2048")
    parser.add_argument("--keep-prompt", action="store_true", help="one prompt for all turns: decoding only")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="the raw file; rows are added to what it holds")
    args = parser.parse_args()
    contexts = [int(c) for c in args.contexts.split(",")]
    date = datetime.date.today().isoformat()
    out = args.out or ROOT / "benches/results" / f"{date}-{platform.machine()}.json"
    record = json.loads(out.read_text()) if out.exists() else {"date": date, "runs": []}
    run: dict[str, Any] = {"threads": args.threads, "turns": args.turns, "read_bytes_per_s": bandwidth(args.threads)}
    run["cpu"] = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")),
        "?",
    )
    run["rows"] = rows = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        about = [str(row[key]) for key in ("model", "what", "peer", "task", "context") if key in row]
        print(f"{' '.join(about):72} {row['ratio']:6.2f}x", flush=True)

    for model in args.models:
        ours, peer = Ours(model, args.threads), LlamaCpp(model, args.threads)
        for row in beside(ours, "llama.cpp", peer, contexts, args.turns, args.keep_prompt, {"model": Path(model).name}):
            add(row)
        ours.llm.close()
    for model in args.transformers:
        ours, other = Ours(model, args.threads), Transformers(model, args.threads, args.dtype)
        for row in beside(
            ours,
            f"transformers {args.dtype}",
            other,
            contexts,
            args.turns,
            args.keep_prompt,
            {"model": Path(model).name},
        ):
            add(row)
        ours.llm.close()
    for model in args.mistralrs:
        ours, rust = Ours(model, args.threads), MistralRs(model, args.threads)
        for row in beside(
            ours, "mistral.rs", rust, contexts, args.turns, args.keep_prompt, {"model": Path(model).name}
        ):
            add(row)
        ours.llm.close()
    if args.together:
        ours = Ours(args.together, args.threads)
        for prefilled in (False, True):
            sides = {
                str(n): lambda turn, n=n, p=prefilled: ours.together(n, turn * 20 + n + 10 * p, prefilled=p)
                for n in (1, 8)
            }
            raw, stolen = alternate(args.turns, sides)
            one, eight = (statistics.median(values) for values in raw.values())
            what = "8 requests over one, tokens/s" + (", prompts in the cache" if prefilled else "")
            tag = {"model": Path(args.together).name, "what": what}
            add({**tag, "ratio": eight / one, "tokens_per_s": raw, "stolen_ticks": stolen})
        ours.llm.close()
    if args.recycling:
        for row in recycling(args.recycling, args.threads, args.per_task, args.tokens, args.turns):
            add(row)
        for what in ("prompt-lookup", *(f"token-recycling {table}" for table in TABLES)):
            by_task: dict[str, list[float]] = {}
            for row in rows:
                if row["what"] == what:
                    by_task.setdefault(row["task"], []).append(row["ratio"])
            mean = statistics.mean(map(statistics.mean, by_task.values()))
            print(f"{what}: mean over tasks {mean:.2f}x, worst {min(map(min, by_task.values())):.2f}x")
    record["runs"].append(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
