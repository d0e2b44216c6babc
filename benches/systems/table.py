"""The table of docs/spec-bench.md, of runs of `omnidecode bench --json`.

    python benches/systems/table.py --counters RUN.json [RUN.json ...] --times RUN.json

Counters and times are joined by strategy and parameters (a file's path counts as its name); of several runs the first counts. A run of one round counts what
cold tables find; times want a quiet machine and several rounds. Where only times were measured, the counters stay empty.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = (
    "strategy",
    "questions",
    "forwards, all models",
    "of the main model",
    "tokens per forward of it",
    "accepted",
    "the tokens of plain",
    "time: plain / it",
)


def title(row: dict[str, Any]) -> str:
    settings = [f"{k} {Path(v).parent.name or v if k == 'corpus' else v}" for k, v in row["parameters"].items()]
    return f"{row['strategy']} ({', '.join(settings)})" if settings else str(row["strategy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counters", type=Path, nargs="+", required=True)
    parser.add_argument("--times", type=Path)
    options = parser.parse_args()
    cells: dict[str, list[str]] = {}
    for path in options.counters:
        run = json.loads(path.read_text())
        for row in run["rows"]:
            kept = f"{row['accepted']} of {row['drafted']}" if row["drafted"] else ""
            same = {True: "yes", False: "no", None: "yes"}[row["identical"]]
            numbers = (run["prompts"], row["forwards"], row["target_forwards"], f"{row['tokens_per_forward']:.2f}")
            cells.setdefault(title(row), [*map(str, numbers), kept, same, ""])
    if options.times:
        for row in json.loads(options.times.read_text())["rows"]:
            same = "no" if row["identical"] is False else "yes"
            cells.setdefault(title(row), ["", "", "", "", "", same, ""])[-1] = f"{row['ratio']:.2f}"
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for name, row in cells.items():
        print("| " + " | ".join([name, *row]) + " |")


if __name__ == "__main__":
    main()
