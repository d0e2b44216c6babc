"""Strategies against plain decoding on the same prompts, alternating (A B A B), so that a drifting machine hurts both."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ._strategy import Strategy, resolve
from .errors import RequestError
from .llm import LLM
from .progress import Progress
from .sampling import SamplingParams

__all__ = ["PROMPTS", "Report", "Row", "bench"]

#: A small mixture: explanation, rewriting, code, listing.
PROMPTS = (
    "Explain in simple words why the sky is blue and why sunsets are red.",
    "Rewrite politely: 'Send me the report now, you are late again, and I am tired of waiting for the report.'",
    "Write a Python function that returns the n-th Fibonacci number, then the same function with memoization.",
    "List ten animals that live in the sea, one per line, each with one sentence about it.",
)


@dataclass
class Row:
    """One strategy's measurements over all prompts, one number a round."""

    strategy: str
    parameters: dict[str, Any]
    guarantee: str
    tokens: int = 0
    forwards: int = 0
    target_forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    correct: int | None = None
    python_steps: int = 0
    python_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    identical: bool | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of the median round, prefill included."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def tokens_per_forward(self) -> float:
        """Committed tokens over forwards of the main model, prefill included; those of a draft model are in ``forwards``."""
        return self.tokens / max(self.target_forwards, 1)


@dataclass
class Report:
    """The rows, plain first, and what was measured."""

    model: str
    prompts: int
    max_tokens: int
    temperature: float
    rounds: int
    rows: list[Row]
    answers: int = 0

    def ratio(self, row: Row) -> float:
        """Median over rounds of plain's seconds per token over the row's: above 1 is faster than plain."""
        plain = self.rows[0]
        return statistics.median(
            (p / plain.tokens) / (s / row.tokens) for p, s in zip(plain.seconds, row.seconds, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: raw seconds, medians and ratios."""
        rows = [
            {
                **asdict(row),
                "tokens_per_second": row.tokens_per_second,
                "tokens_per_forward": row.tokens_per_forward,
                "ratio": self.ratio(row),
            }
            for row in self.rows
        ]
        return {**asdict(self), "rows": rows}

    def __str__(self) -> str:
        names = (
            "strategy",
            "tok/s",
            "ratio to plain",
            "forwards",
            "tokens/forward",
            "accepted",
            "right",
            "guarantee",
            "as plain",
        )
        table = [names]
        for row in self.rows:
            same = {True: "yes", False: "no", None: "-"}[row.identical]
            settings = ", ".join(f"{name}={value}" for name, value in row.parameters.items())
            numbers = (f"{row.tokens_per_second:.1f}", f"{self.ratio(row):.2f}", str(row.forwards))
            kept = f"{row.accepted / row.drafted:.0%} of {row.drafted}" if row.drafted else "-"
            right = f"{row.correct} of {self.answers}" if row.correct is not None else "-"
            name = f"{row.strategy} ({settings})" if settings else row.strategy
            table.append((name, *numbers, f"{row.tokens_per_forward:.2f}", kept, right, row.guarantee, same))
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        head = (
            f"{self.model}: {self.prompts} prompts x {self.max_tokens} tokens, temperature {self.temperature:g}, "
            f"median of {self.rounds} rounds"
        )
        return "\n".join([head, *lines])


def bench(
    llm: LLM,
    strategies: Sequence[Strategy],
    prompts: Sequence[str] | None = None,
    sampling: SamplingParams | None = None,
    *,
    rounds: int = 3,
    chat: bool = True,
    companions: Sequence[Any] = (),
    answers: Sequence[str | None] = (),
    judge: Any = None,
) -> Report:
    """Run every strategy over all prompts, one request at a time, ``rounds`` times, alternating with plain decoding.

    ``answers``: for each prompt what it should end in, or ``None``; an answer is right whose last number is that one's. All
    run under the same seed, so that ``identical`` compares token ids with plain's. Strategies that learn keep
    what they learned from round to round, as they would in service.
    """
    prompts = list(prompts or PROMPTS)
    sampling = sampling or SamplingParams(temperature=0.0, max_tokens=128)
    if judge is not None and not any(strategy.spec.get("judged") for strategy in strategies):
        raise RequestError("judge: expected a strategy that asks one, found none; leave it out")
    if sampling.seed is None:
        sampling = sampling.with_seed(0)
    if answers and len(answers) != len(prompts):
        raise RequestError(f"answers: expected one a prompt ({len(prompts)}), found {len(answers)}")
    known = sum(answer is not None for answer in answers)
    chosen = [resolve("plain"), *(s for s in strategies if s.name != "plain")]
    rows = [Row(s.name, s.parameters, s.guarantee) for s in chosen]
    asked: list[Any] = [[{"role": "user", "content": p}] if chat else p for p in prompts]
    run = llm.chat if chat else llm.generate
    reference: list[list[int]] = []
    with Progress("runs") as progress:
        llm.generate(prompts[0], SamplingParams(temperature=0.0, max_tokens=4))  # touch every weight once
        for turn in range(rounds):
            for at, (strategy, row) in enumerate(zip(chosen, rows, strict=True)):
                start = time.perf_counter()
                by = judge if strategy.spec.get("judged") else None
                outputs = [run(item, sampling, strategy=strategy, companions=companions, judge=by)[0] for item in asked]
                row.seconds.append(time.perf_counter() - start)
                found = (one for output in outputs for one in output.outputs if one.beside is None)
                ids = [list(one.token_ids) for one in found]
                row.tokens = sum(map(len, ids))
                row.forwards = sum(output.usage.forwards for output in outputs)
                row.target_forwards = sum(output.usage.target_forwards for output in outputs)
                row.drafted = sum(output.usage.drafted for output in outputs)
                row.accepted = sum(output.usage.accepted for output in outputs)
                row.python_steps = sum(output.usage.python_steps for output in outputs)
                row.python_seconds = sum(output.usage.python_seconds for output in outputs)
                if known:
                    row.correct = sum(
                        _number(output.outputs[0].text) == _number(answer or "")
                        for output, answer in zip(outputs, answers, strict=True)
                        if answer is not None
                    )
                if at == 0:
                    reference = ids
                same = ids == reference
                row.identical = same if row.identical is None else row.identical and same
                progress(turn * len(chosen) + at + 1, rounds * len(chosen))
    return Report(llm.path.name, len(prompts), sampling.max_tokens, sampling.temperature, rounds, rows, known)


def _number(text: str) -> float | None:
    """The last number of a text; thousands may be separated by commas."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None
