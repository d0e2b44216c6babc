"""Strategies against plain decoding on the same prompts, alternating (A B A B), so that a drifting machine hurts both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ._strategy import Strategy, resolve
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
    seconds: list[float] = field(default_factory=list)
    identical: bool | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of the median round, prefill included."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def tokens_per_forward(self) -> float:
        """Committed tokens over forwards, prefill included."""
        return self.tokens / max(self.forwards, 1)


@dataclass
class Report:
    """The rows, plain first, and what was measured."""

    model: str
    prompts: int
    max_tokens: int
    temperature: float
    rounds: int
    rows: list[Row]

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
        table = [("strategy", "tok/s", "ratio to plain", "tokens/forward", "guarantee", "identical to plain")]
        for row in self.rows:
            same = {True: "yes", False: "no", None: "-"}[row.identical]
            numbers = (f"{row.tokens_per_second:.1f}", f"{self.ratio(row):.2f}", f"{row.tokens_per_forward:.2f}")
            table.append((row.strategy, *numbers, row.guarantee, same))
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
    judge: Any = None,
) -> Report:
    """Run every strategy over all prompts, one request at a time, ``rounds`` times, alternating with plain decoding.

    All run under the same seed, so that ``identical`` compares token ids with plain's. Strategies that learn keep
    what they learned from round to round, as they would in service.
    """
    prompts = list(prompts or PROMPTS)
    sampling = sampling or SamplingParams(temperature=0.0, max_tokens=128)
    if sampling.seed is None:
        sampling = sampling.with_seed(0)
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
                answers = (one for output in outputs for one in output.outputs if one.beside is None)
                ids = [list(one.token_ids) for one in answers]
                row.tokens = sum(map(len, ids))
                row.forwards = sum(output.usage.forwards for output in outputs)
                if at == 0:
                    reference = ids
                same = ids == reference
                row.identical = same if row.identical is None else row.identical and same
                progress(turn * len(chosen) + at + 1, rounds * len(chosen))
    return Report(llm.path.name, len(prompts), sampling.max_tokens, sampling.temperature, rounds, rows)
