"""`python -m omnidecode.train RECIPE --out DIR`: train, or with `--evaluate` measure, one of the small models."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from omnidecode.train import RECIPES, find, require_torch
from omnidecode.train.recipe import Row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m omnidecode.train", description=__doc__)
    parser.add_argument("recipe", choices=RECIPES, help="which model to train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, help="length of the whole schedule (default: the recipe's)")
    parser.add_argument("--learning-rate", type=float, help="peak of the schedule (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in DIR")
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="DIR", help="take the first weights from this checkpoint"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--evaluate", action="store_true", help="train nothing: measure the checkpoint in DIR")
    parser.add_argument(
        "--questions", type=Path, metavar="JSONL", help="measure on these {input, output} lines instead of made ones"
    )
    parser.add_argument("--count", type=int, default=256, help="held-out questions to measure on (default 256)")
    parser.add_argument("--target", type=Path, help="drafters: the model to draft for (a GGUF file or a folder)")
    parser.add_argument(
        "--text", type=Path, metavar="JSONL", help="drafters: what the target wrote (`omnidecode.train.write`)"
    )
    given = parser.parse_args(arguments)
    try:
        torch = require_torch()
    except ImportError as missing:
        print(missing, file=sys.stderr)
        return 2
    from omnidecode.train import loop

    torch.set_num_threads(given.threads)
    what = find(given.recipe)
    if given.learning_rate is not None:
        what = replace(what, learning_rate=given.learning_rate)
    try:
        if hasattr(what, "target"):
            what = replace(what, target=given.target, text=given.text)
        elif given.target or given.text:
            raise ValueError(f"--target and --text are for drafters; {what.name} makes its own questions")
        if not given.evaluate:
            loop.train(what, given.out, given.steps, given.seed, given.resume, given.start)
        items = what.task.read(given.questions) if given.questions else None
        table = what.evaluate(what.load(given.out).eval(), given.count, items)
    except (ValueError, FileNotFoundError) as bad:
        print(bad, file=sys.stderr)
        return 1
    source = given.questions.name if given.questions else f"{given.count} held-out questions"
    report = dict(recipe=what.name, measured_on=source, table=table)
    name = f"evaluation-{given.questions.stem}.json" if given.questions else "evaluation.json"
    (given.out / name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{what.name}, {source}")
    print(markdown(table))
    return 0


def markdown(table: list[Row]) -> str:
    """The table as Markdown, columns in the order of the rows' keys."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    lines = [columns, ["---"] * len(columns), *([str(row.get(c, "")) for c in columns] for row in table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
