"""From the start of a process to its first token, and its peak memory, beside llama.cpp: ``python start.py MODEL.gguf``.

Each side is a process of its own that imports its engine, opens the model, answers one prompt of 64 ids with one token and
ends; turns alternate, the first (which warms the file cache) is dropped, medians of the rest. Also the seconds that
``import omnidecode`` takes beside an empty interpreter, and the wheel's size where one is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

OURS = """
import sys, omnidecode
llm = omnidecode.LLM(sys.argv[1], threads=int(sys.argv[2]), context=2048)
params = omnidecode.SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), ignore_eos=True)
for _ in llm.stream({"prompt_token_ids": [100 + i for i in range(64)]}, params, strategy="plain"):
    pass
"""
LLAMA = """
import sys
from llama_cpp import Llama
n = int(sys.argv[2])
llm = Llama(sys.argv[1], n_ctx=2048, n_threads=n, n_threads_batch=n, verbose=False)
llm.eval([100 + i for i in range(64)])
for i in range(int(sys.argv[3]) - 1):
    llm.eval([200 + i])
"""


def turn(code: str, *args: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"a side failed: {child.stderr.read().decode()[-2000:] if child.stderr else status}")
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--out", type=Path, help="JSON lines; rows are added")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for tokens in (1, 128):
            raw: dict[str, list[tuple[float, int]]] = {"omnidecode": [], "llama.cpp": []}
            for at in range(args.turns + 1):
                for name, code in (("omnidecode", OURS), ("llama.cpp", LLAMA)):
                    value = turn(code, model, str(args.threads), str(tokens))
                    if at:
                        raw[name].append(value)
            seconds, memory = ({n: statistics.median(v[i] for v in vs) for n, vs in raw.items()} for i in (0, 1))
            row = {"model": Path(model).name, "tokens": tokens, "raw": raw}
            row["seconds_ratio"] = seconds["omnidecode"] / seconds["llama.cpp"]
            row["memory_ratio"] = memory["omnidecode"] / memory["llama.cpp"]
            rows.append(row)
            print(
                f"{row['model']}, {tokens} tokens: time {row['seconds_ratio']:.2f}, peak memory {row['memory_ratio']:.2f}"
            )
    both: dict[str, list[float]] = {"import omnidecode": [], "pass": []}
    for _ in range(2 * args.turns):
        for code in both:
            both[code].append(turn(code)[0])
    cost = statistics.median(both["import omnidecode"]) - statistics.median(both["pass"])
    rows.append({"import_seconds": cost, "raw": both})
    print(f"import omnidecode: {cost:.3f} s")
    if args.wheel:
        rows.append({"wheel_bytes": args.wheel.stat().st_size})
        print(f"wheel: {args.wheel.stat().st_size / 1e6:.1f} MB")
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
