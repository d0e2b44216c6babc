"""Diffusion strategies on the small trained models: exact answers, forwards and time, beside the autoregressive twin.

Every row answers the same held-out questions, one request at a time; the rows of a task take turns, round after round, so
that a drifting machine hurts all of them alike. Needs the folders under ``models/`` of the repository, and no torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._flags import read_named
from ._strategy import Strategy, resolve
from .errors import RequestError
from .llm import LLM
from .progress import Progress
from .sampling import SamplingParams
from .train import chains, sudoku
from .train.recipe import Task, questions

__all__ = ["SUITES", "Report", "Row", "Suite", "bench_diffusion", "models_folder"]


@dataclass(frozen=True)
class Suite:
    """A task and the models that learned it. ``block``: places of a block of the full-attention model."""

    name: str
    task: Task
    block: int

    def model(self, kind: str) -> str:
        """Folder of the model of a kind: ``diffusion``, ``block`` or ``ar``."""
        return f"{self.name}-{kind}"


SUITES = {
    suite.name: suite
    for suite in (
        Suite("sudoku", sudoku.TASK, 16),
        Suite("chains", chains.TASK, 16),
        Suite("chains-long", chains.LONG, 32),
    )
}


def _table(suite: Suite) -> list[tuple[str, dict[str, Any]]]:
    """(kind of model, strategy) of each row, the static loop first, the autoregressive twin last."""
    canvas, block = suite.task.canvas, {"block": suite.block}
    llada: list[dict[str, Any]] = [
        {},
        {"steps": canvas // 2},
        {"steps": canvas // 4},
        *({"unmasker": unmasker} for unmasker in ("threshold", "factor", "entropy", "localleap", "credit", "prophet")),
        {"unmasker": "prophet", "exit_gaps": [10.0, 10.0, 10.0]},
        *({"cache": cache} for cache in ("prefix", "dual", "delayed")),
        *({"unmasker": "threshold", "cache": cache} for cache in ("prefix", "dual", "delayed")),
        *({"unmasker": unmasker, "cache": "dual"} for unmasker in ("factor", "localleap", "credit")),
    ]
    full: list[dict[str, Any]] = [
        *({"name": "llada", **block, **parameters} for parameters in llada),
        {"name": "dream"},
        {"name": "dream", "unmasker": "threshold"},
        {"name": "freedave", **block},
        {"name": "freedave", **block, "cache": "dual"},
    ]
    causal: list[dict[str, Any]] = [
        {"name": "sdar"},
        {"name": "sdar", "unmasker": "threshold"},
        {"name": "sdar", "unmasker": "entropy"},
        {"name": "freedave"},
    ]
    return [*(("diffusion", s) for s in full), *(("block", s) for s in causal), ("ar", {"name": "plain"})]


@dataclass
class Row:
    """One strategy on one model. ``seconds``: of all questions, one number a round. ``turn_seconds``: of the engine's turns
    that ran a forward; ``rest_seconds``: of those that ended a request and woke its reader."""

    model: str
    strategy: str
    parameters: dict[str, Any]
    guarantee: str
    questions: int = 0
    right: int = 0
    nfe: int = 0
    rows: int = 0
    tokens: int = 0
    cached: int = 0
    seconds: list[float] = field(default_factory=list)
    network_seconds: float = 0.0
    turn_seconds: float = 0.0
    rest_seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Per cent of the questions answered exactly."""
        return 100 * self.right / max(self.questions, 1)

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of the answers, end tokens included, over forwards, stored passes and prefill included."""
        return self.tokens / max(self.nfe, 1)

    @property
    def overhead(self) -> float:
        """Share of the turns that ran a forward that is not spent inside the network, over all rounds."""
        return 1 - self.network_seconds / self.turn_seconds if self.turn_seconds else 0.0

    @property
    def overhead_with_ends(self) -> float:
        """As ``overhead``, the turns that ended requests and woke their readers included."""
        spent = self.turn_seconds + self.rest_seconds
        return 1 - self.network_seconds / spent if spent else 0.0

    @property
    def label(self) -> str:
        """The strategy as the shell writes it."""
        given = ",".join(f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in self.parameters.items())
        return f"{self.strategy}:{given}" if given else self.strategy


@dataclass
class Report:
    """The rows of one task: the static loop without cache first, the autoregressive twin last."""

    task: str
    questions: int
    canvas: int
    rounds: int
    rows: list[Row]

    def ratio(self, row: Row, base: Row | None) -> float | None:
        """Median over rounds of ``base``'s seconds over the row's: above 1 the row is faster. ``None`` without a base."""
        if base is None:
            return None
        return statistics.median(b / s for b, s in zip(base.seconds, row.seconds, strict=True))

    @property
    def static(self) -> Row | None:
        """One token a forward, nothing cached, full attention."""
        return next((r for r in self.rows if r.strategy == "llada" and set(r.parameters) <= {"block"}), None)

    @property
    def twin(self) -> Row | None:
        """The autoregressive model."""
        return next((r for r in self.rows if r.strategy == "plain"), None)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: counts, raw seconds, medians and ratios."""
        rows = [
            {
                **asdict(row),
                "accuracy": row.accuracy,
                "nfe_per_question": row.nfe / max(row.questions, 1),
                "tokens_per_forward": row.tokens_per_forward,
                "ratio_to_static": self.ratio(row, self.static),
                "ratio_to_autoregressive": self.ratio(row, self.twin),
                "overhead": row.overhead,
                "overhead_with_ends": row.overhead_with_ends,
            }
            for row in self.rows
        ]
        return {**asdict(self), "rows": rows}

    def __str__(self) -> str:
        heads = ("model", "strategy", "exact %", "NFE", "tokens/NFE", "x static", "x twin", "outside %")
        table = [heads]
        for row in self.rows:
            ratios = (self.ratio(row, self.static), self.ratio(row, self.twin))
            x, y = ("-" if r is None else f"{r:.2f}" for r in ratios)
            numbers = (f"{row.accuracy:.1f}", f"{row.nfe / max(row.questions, 1):.1f}", f"{row.tokens_per_forward:.2f}")
            table.append((row.model, row.label, *numbers, x, y, f"{100 * row.overhead:.1f}"))
        widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        head = (
            f"{self.task}: {self.questions} held-out questions, canvas of {self.canvas}, greedy, "
            f"median of {self.rounds} rounds"
        )
        return "\n".join([head, *lines])


def models_folder(given: Path | None = None) -> Path:
    """The folder of the trained models: as given, ``models`` here, or beside the package in a clone. Raises
    :class:`RequestError` where there is none."""
    places = [given] if given is not None else [Path("models"), Path(__file__).resolve().parents[2] / "models"]
    for place in places:
        if any((place / suite.model("diffusion") / "config.json").is_file() for suite in SUITES.values()):
            return place
    known = ", ".join(suite.model("diffusion") for suite in SUITES.values())
    raise RequestError(
        f"--models: expected a folder with one of {known}, found none at {' or '.join(map(str, places))}; "
        "they are in the folder models/ of the repository"
    )


def bench_diffusion(
    suite: Suite,
    models: Path,
    *,
    count: int = 48,
    rounds: int = 3,
    strategies: Sequence[Strategy | tuple[str, Strategy]] | None = None,
    threads: int | None = None,
) -> Report:
    """Run the table of one task, or ``strategies`` beside its first and last row, on ``count`` held-out questions.

    Strategies that need a block-causal model run on that of the task, others on the full-attention one, or on the kind of model
    that is given with one: ``("block", strategy)``. Rows whose model is not in the folder are left out.
    """
    rows = _rows(suite, strategies)
    present = {kind for kind, _ in rows if (models / suite.model(kind) / "config.json").is_file()}
    rows = [(kind, strategy) for kind, strategy in rows if kind in present]
    if not rows:
        raise RequestError(f"--models: expected {suite.model('diffusion')} in {models}, found none")
    items = questions(suite.task, "held-out", count, held=True)
    # No row may find what another, asked the same question, left behind.
    opened: dict[str, LLM] = {}
    report = Report(suite.name, count, suite.task.canvas, rounds, [])
    try:
        for kind in sorted(present):
            path = models / suite.model(kind)
            opened[kind] = LLM(path, threads=threads, prefix_cache=False)
        report.rows = [Row(suite.model(kind), s.name, s.parameters, s.guarantee) for kind, s in rows]
        with Progress("rows") as progress:
            for kind, strategy in rows:  # touch every weight and buffer once
                _answer(opened[kind], suite, strategy, items[:1])
            for turn in range(rounds):
                for at, ((kind, strategy), row) in enumerate(zip(rows, report.rows, strict=True)):
                    _measure(row, opened[kind], suite, strategy, items, count_answers=turn == 0)
                    progress(turn * len(rows) + at + 1, rounds * len(rows))
    finally:
        for llm in opened.values():
            llm.close()
    return report


def _rows(suite: Suite, strategies: Sequence[Strategy | tuple[str, Strategy]] | None) -> list[tuple[str, Strategy]]:
    table = [(kind, resolve(strategy)) for kind, strategy in _table(suite)]
    if strategies is None:
        return table
    chosen = [
        given if isinstance(given, tuple) else ("block" if "block" in given.spec["needs"] else "diffusion", given)
        for given in strategies
    ]
    for _, strategy in chosen:
        if "mask" not in strategy.spec["needs"]:
            raise RequestError(f"--strategy: expected a diffusion strategy, found {strategy.name!r}")
    return [table[0], *(row for row in chosen if row != table[0]), table[-1]]


def _answer(
    llm: LLM, suite: Suite, strategy: Strategy, items: Iterable[tuple[str, str]]
) -> Iterable[tuple[bool, Any, int]]:
    """For each question: whether it was answered, the usage, the tokens of the answer."""
    sampling = SamplingParams(temperature=0.0, max_tokens=suite.task.canvas, seed=0)
    found = []
    for question, _ in items:
        output = llm.generate(question, sampling, strategy=strategy)[0]
        (answer,) = output.outputs
        found.append((suite.task.judge(question, answer.text), output.usage, len(answer.token_ids)))
    return found


def _measure(
    row: Row, llm: LLM, suite: Suite, strategy: Strategy, items: Sequence[tuple[str, str]], *, count_answers: bool
) -> None:
    before = llm.stats()
    start = time.perf_counter()
    answers = _answer(llm, suite, strategy, items)
    row.seconds.append(time.perf_counter() - start)
    after = llm.stats()
    row.network_seconds += after["network_seconds"] - before["network_seconds"]
    row.turn_seconds += after["turn_seconds"] - before["turn_seconds"]
    row.rest_seconds += after["rest_seconds"] - before["rest_seconds"]
    for right, usage, tokens in answers if count_answers else ():
        row.questions += 1
        row.right += right
        row.nfe += usage.nfe
        row.rows += usage.rows
        row.cached += usage.cached_tokens
        row.tokens += tokens


def add_command(bench: argparse.ArgumentParser) -> None:
    """Give the verb ``bench`` the suite ``diffusion``. Flags that both have keep what ``bench`` was given."""
    text = "measure diffusion strategies on the small trained models, beside their autoregressive twin"
    suite = bench.add_subparsers(metavar="[diffusion]").add_parser(
        "diffusion", help=text, description=text, allow_abbrev=False
    )
    suite.add_argument(
        "--models", type=Path, metavar="DIR", help="folder of the trained models (default: of the clone)"
    )
    suite.add_argument(
        "--task", action="append", choices=SUITES, help="repeatable; default: all whose models are in the folder"
    )
    suite.add_argument(
        "--strategy",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help="a row in place of the built-in table; repeatable",
    )
    suite.add_argument("--count", type=int, default=48, help="held-out questions (default 48)")
    suite.add_argument("--rounds", type=int, help="how often each row runs (default 3)", default=argparse.SUPPRESS)
    suite.add_argument("--threads", type=int, help="worker threads", default=argparse.SUPPRESS)
    suite.add_argument("--json", action="store_true", help="print JSON", default=argparse.SUPPRESS)
    suite.set_defaults(run=run, bench=bench)


def run(options: argparse.Namespace) -> int:
    """``omnidecode bench diffusion``."""
    shared = ("rounds", "threads", "json", "run")
    for name, value in vars(options.bench.parse_args([])).items():
        if name not in shared and getattr(options, name) != value:
            raise RequestError(
                f"--{name.replace('_', '-')}: expected without the suite `diffusion`, which has no such flag"
            )
    for name in ("count", "rounds"):
        if getattr(options, name) < 1:
            raise RequestError(f"--{name}: expected at least 1, found {getattr(options, name)}")
    strategies = [read_named("--strategy", text) for text in options.strategy] if options.strategy else None
    models = models_folder(options.models)
    names = options.task or [n for n, s in SUITES.items() if (models / s.model("diffusion") / "config.json").is_file()]
    reports = []
    for name in names:
        report = bench_diffusion(
            SUITES[name],
            models,
            count=options.count,
            rounds=options.rounds,
            strategies=strategies,
            threads=options.threads,
        )
        reports.append(report)
        if not options.json:
            print(report, end="\n\n" if name != names[-1] else "\n", flush=True)
    if options.json:
        print(json.dumps({"diffusion": [report.to_dict() for report in reports]}))
    return 0
