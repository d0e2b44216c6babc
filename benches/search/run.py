"""Accuracy of searches with a judge, against the tokens that they make and the texts that they have judged.

    python benches/search/run.py measure --out benches/search/results.json
    python benches/search/run.py plot benches/search/results.json --svg docs/search.svg

Every search gets the same budgets: `n` samples side by side, or, for A*, as many tokens as `n` samples have on average.
The judge is a rule that knows whether a text, whole or on its way, can still be right; `noise` is the share of its
scores that chance takes the place of. Needs the checkpoints under `models/`, no torch; `plot` needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnidecode import LLM, SamplingParams
from omnidecode.train import find
from omnidecode.train.recipe import Task, questions
from omnidecode.train.sums import rate

MODELS = Path(__file__).resolve().parents[2] / "models"
BUDGETS = (1, 2, 4, 8, 16)
NOISES = (0.0, 0.2, 0.4)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """A task with its model, what its answers look like, and who judges them."""

    model: str
    #: Where the answer stands in a text, for votes; empty: the whole text.
    answer: str
    #: Tokens of a sample on average: the unit of A*'s budget.
    tokens: int
    #: Parameters that name the judge, and the judge that comes with a request.
    judge: dict[str, Any]
    function: Callable[..., list[float]] | None = None
    #: Of the samples. Above 1 for a model that errs too little.
    temperature: float = 1.0


def whole_steps(candidates: Any) -> list[float]:
    """The judge of running sums, as a function in Python."""
    return [rate(c.prompt.removeprefix("<bos>"), c.text, c.finished) for c in candidates]


SETTINGS = {
    "countdown": Setting("countdown-ar", "", 17, dict(judge="countdown")),
    "sums": Setting("sums-ar", r"(\d+)$", 11, dict(judge="request"), whole_steps, temperature=1.5),
}


def strategies(setting: Setting, n: int, noise: float) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Name in the table, strategy, temperature. What asks no judge does not depend on the noise."""
    judge, step = setting.judge | dict(judge_noise=noise), dict(boundary=",")
    if noise == 0:
        if n == 1:
            yield "plain, greedy", dict(name="plain"), 0.0
            yield "plain, sampled", dict(name="plain"), setting.temperature
        else:
            yield "beam", dict(name="beam", width=n), setting.temperature
            yield "self-consistency", dict(name="self-consistency", n=n, answer=setting.answer), setting.temperature
    if n > 1:
        yield "best-of-n", dict(name="best-of-n", n=n, **judge), setting.temperature
        yield (
            "best-of-n, weighted",
            dict(name="best-of-n", n=n, weighted=True, answer=setting.answer, **judge),
            setting.temperature,
        )
        yield "particle", dict(name="particle", n=n, **judge, **step), setting.temperature
        yield "judge-beam", dict(name="judge-beam", n=n, width=2 if n < 8 else 4, **judge, **step), setting.temperature
        yield (
            "a-star",
            dict(name="a-star", k=max(2, n // 2), budget_tokens=n * setting.tokens, **judge, **step),
            setting.temperature,
        )


def measure(tasks: list[str], count: int, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row a task, search, budget and noise; `right[s][q]` of seed s and question q."""
    rows = []
    for name in tasks:
        setting = SETTINGS[name]
        task: Task = find(setting.model).task
        items = questions(task, "search", count, held=True)
        with LLM(
            MODELS / setting.model, kv_tokens=1 << 16
        ) as llm:  # room for all branches at once: nothing is run twice
            for noise in NOISES:
                for n in BUDGETS:
                    for label, strategy, temperature in strategies(setting, n, noise):
                        row = dict(task=name, search=label, n=n, noise=noise, right=[])
                        total = dict(tokens=0, judged=0, judge_calls=0, forwards=0)
                        for seed in seeds:
                            laws = [
                                SamplingParams(temperature=temperature, seed=seed * 100_003 + i, max_tokens=task.canvas)
                                for i in range(count)
                            ]
                            asks = dict(judge=setting.function) if strategy.get("judge") == "request" else {}
                            answers = llm.generate([q for q, _ in items], laws, strategy=strategy, **asks)
                            row["right"].append(
                                [int(task.judge(q, a.outputs[0].text)) for (q, _), a in zip(items, answers)]
                            )
                            for answer in answers:
                                used = answer.usage
                                total["tokens"] += used.rows - len(answer.prompt_token_ids) + used.cached_tokens + 1
                                for key in ("judged", "judge_calls", "forwards"):
                                    total[key] += getattr(used, key)
                        row |= {key: round(value / count / len(seeds), 2) for key, value in total.items()}
                        rows.append(row | interval(row["right"]))
                        shown = {k: v for k, v in rows[-1].items() if k != "right"}
                        print(json.dumps(shown), file=sys.stderr, flush=True)
    return rows


def interval(right: list[list[int]], draws: int = 2000) -> dict[str, Any]:
    """Accuracy in per cent, of each seed and of all; 95 per cent of bootstrap means over questions, with all their seeds."""
    each = [sum(question) / len(right) for question in zip(*right)]
    source = random.Random(0)
    means = sorted(sum(source.choices(each, k=len(each))) / len(each) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws)]
    return dict(
        accuracy=round(100 * sum(each) / len(each), 1),
        low=round(100 * low, 1),
        high=round(100 * high, 1),
        seeds=[round(100 * sum(seed) / len(seed), 1) for seed in right],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("measure", help="decode, and write the raw figures")
    run.add_argument("--out", type=Path, required=True, metavar="JSON")
    run.add_argument("--tasks", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    run.add_argument("--count", type=int, default=100, help="held-out questions a task (default 100)")
    run.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    draw = verbs.add_parser("plot", help="draw the figure, and print the table as Markdown")
    draw.add_argument("results", type=Path, metavar="JSON")
    draw.add_argument("--svg", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.verb == "measure":
        rows = measure(given.tasks, given.count, tuple(given.seeds))
        given.out.write_text(
            "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n", encoding="utf-8"
        )
        return
    import figure

    rows = json.loads(given.results.read_text(encoding="utf-8"))
    print(figure.table(rows))
    if given.svg:
        figure.draw(rows, given.svg)


if __name__ == "__main__":
    main()
