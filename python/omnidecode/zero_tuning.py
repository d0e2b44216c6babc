"""Calibration of ZeroTuning (arXiv:2505.11739, sheet 29): which heads, and how much attention for the initial token.

    found = zero_tuning.calibrate(llm, [Example("Review: a joy.\\nSentiment:", answer=" good"), ...], [" good", " bad"])
    llm.generate(prompt, companions=[found.companion])

First each head is scaled alone, up and down, in all layers; the heads that gained under the direction that helped more of
them are kept; then gamma is chosen on a grid. Each of the two steps is one batch over all settings and examples. With
answers the metric is accuracy; without, minus the mean entropy of the next token, and no label is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import RequestError
from .outputs import Usage
from .progress import Progress
from .sampling import SamplingParams
from .streaming import gather_blocking

if TYPE_CHECKING:
    from .llm import LLM

__all__ = ["GRID", "Calibration", "Example", "Score", "calibrate", "evaluate"]

#: Gammas that are tried.
GRID = (0.25, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt that ends where the answer begins, and, for the supervised metric, its answer: one of the labels."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """What a setting gave: ``metric`` decides; ``accuracy`` (``None`` without answers); ``valid``: the share of examples
    whose likeliest next token is a label at all; ``entropy``: the mean of the next token's, in nats."""

    metric: float
    accuracy: float | None
    valid: float
    entropy: float


@dataclass(slots=True)
class Calibration:
    """What was found. ``direction``: ``up`` (gamma above 1), ``down``, or ``none``. ``up`` and ``down``: for each head what
    the metric gained when it was scaled alone. ``grid``: the score of each gamma on the chosen heads. ``usage``: of all of
    it; ``usage.host_reads`` is ``(2 heads + grid) * examples``, one pass for each setting and example."""

    gamma: float
    heads: list[int]
    direction: str
    base: Score
    best: Score
    up: list[float]
    down: list[float]
    grid: list[tuple[float, Score]]
    supervised: bool
    examples: int
    usage: Usage

    @property
    def companion(self) -> dict[str, Any]:
        """What to give to ``companions=``; with gamma 1 it changes nothing."""
        return {"name": "zero-tuning", "gamma": self.gamma, "heads": self.heads}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, and for ``omnidecode report``."""
        name = "accuracy" if self.supervised else "minus entropy"
        tried = [
            {"gamma": gamma, name: score.metric, "valid": score.valid, "entropy": score.entropy}
            for gamma, score in self.grid
        ]
        heads = [
            {"head": head, "up": up, "down": down, "chosen": "yes" if head in self.heads else ""}
            for head, (up, down) in enumerate(zip(self.up, self.down, strict=True))
        ]
        return {
            "companion": self.companion,
            "direction": self.direction,
            "title": "ZeroTuning",
            "heading": f"gamma {self.gamma:g} on {len(self.heads)} heads: {name} {self.base.metric:.4g} before, "
            f"{self.best.metric:.4g} after, on {self.examples} examples and {self.usage.host_reads} passes",
            "tables": [
                {"title": "Gamma on the chosen heads", "rows": tried},
                {"title": "What each head gained alone", "rows": heads},
            ],
        }

    def __str__(self) -> str:
        return str(self.to_dict()["heading"])


def calibrate(
    llm: LLM,
    examples: Sequence[Example],
    labels: Sequence[str] = (),
    *,
    gammas: Sequence[float] = GRID,
    up: float = 1.5,
    down: float = 0.6,
    layers: Sequence[int] = (),
    place: int = 0,
) -> Calibration:
    """Choose heads and gamma on labelled examples (by accuracy) or on bare prompts (by entropy).

    ``labels``: the answers that there are, as they stand behind a prompt; their first tokens must differ. Without any, the
    entropy decides. ``gammas``: the grid. ``up``, ``down``: with what each head is profiled. ``layers``: as of the companion;
    empty stands for all. ``place``: of the initial token.

    Raises :class:`RequestError` when there are no examples, some have answers and some have none, or labels begin alike.
    """
    supervised = _supervised(examples, labels)
    if not up > 1 > down > 0:
        raise RequestError(f"up, down: expected up above 1 and down between 0 and 1, found {up!r} and {down!r}")
    if not gammas or any(not gamma > 0 for gamma in gammas):
        raise RequestError(f"gammas: expected positive numbers, found {list(gammas)!r}")
    count: int = llm.card["heads"]

    def setting(gamma: float, heads: Sequence[int]) -> dict[str, Any] | None:
        if gamma == 1 or not heads:
            return None
        return {"gamma": gamma, "heads": list(heads), "layers": list(layers), "place": place}

    profile: list[dict[str, Any] | None] = [setting(1.0, ())]
    profile += [setting(gamma, [head]) for gamma in (up, down) for head in range(count)]
    (base, *alone), usage = evaluate(llm, examples, labels, profile)
    gains = [score.metric - base.metric for score in alone]
    risen, fallen = gains[:count], gains[count:]
    up_set = [h for h in range(count) if risen[h] > 0 and risen[h] >= fallen[h]]
    down_set = [h for h in range(count) if fallen[h] > 0 and fallen[h] > risen[h]]
    heads, direction = (up_set, "up") if len(up_set) >= len(down_set) else (down_set, "down")
    if not heads:
        return Calibration(1.0, [], "none", base, base, risen, fallen, [(1.0, base)], supervised, len(examples), usage)
    rest = [gamma for gamma in gammas if gamma != 1]
    scores, more = evaluate(llm, examples, labels, [setting(gamma, heads) for gamma in rest])
    grid = sorted([(1.0, base), *zip(rest, scores, strict=True)], key=lambda entry: entry[0])
    # Of equals the one that changes least.
    gamma, best = max(grid, key=lambda entry: (entry[1].metric, -abs(math.log(entry[0]))))
    chosen = heads if gamma != 1 else []
    return Calibration(
        gamma, chosen, direction, base, best, risen, fallen, grid, supervised, len(examples), usage + more
    )


def evaluate(
    llm: LLM, examples: Sequence[Example], labels: Sequence[str], settings: Sequence[dict[str, Any] | None]
) -> tuple[list[Score], Usage]:
    """The score of each setting (parameters of the companion ``zero-tuning``, or ``None``) on all examples, as one batch of
    one pass each, and what it cost. Errors as :func:`calibrate`'s."""
    supervised = _supervised(examples, labels)
    firsts = [_first(llm, label) for label in labels]
    if len(set(firsts)) < len(firsts):
        raise RequestError(f"labels: expected first tokens that differ, found {firsts} of {list(labels)!r}")
    asked = firsts if len(firsts) > 1 else [0, 1]  # a question needs two: without labels only the law is looked at
    prompts = [(example.prompt, llm.tokenize(example.prompt)) for example in examples]
    params = SamplingParams(temperature=0.0, max_tokens=len(asked), seed=0, ignore_eos=True)
    jobs = []
    for setting in settings:
        riding = [] if setting is None else [{"name": "zero-tuning", **setting}]
        jobs += llm._jobs(prompts, params, {"name": "first", "labels": asked}, riding)
    with Progress("calibration") as progress:
        outputs = gather_blocking(llm._engine, jobs, progress)
    scores, usage, each = [], Usage(), len(examples)
    for at in range(len(settings)):
        right, valid, entropy = 0, 0, 0.0
        for example, output in zip(examples, outputs[at * each : (at + 1) * each], strict=True):
            (answer,) = output.outputs
            notes = {note.label: note.tokens for note in answer.notes}
            ((likeliest, uncertain, _),) = notes["law"]
            entropy += uncertain / each
            valid += likeliest in firsts
            right += supervised and labels[firsts.index(notes["scores"][0][0])] == example.answer
            usage = usage + output.usage
        metric = right / each if supervised else -entropy
        scores.append(Score(metric, right / each if supervised else None, valid / each, entropy))
    return scores, usage


def _supervised(examples: Sequence[Example], labels: Sequence[str]) -> bool:
    """Whether there are labels; raises where examples and labels do not fit."""
    if not examples:
        raise RequestError("examples: expected at least one, found none")
    if not labels:
        return False
    if len(labels) == 1:
        raise RequestError(f"labels: expected two or more, or none, found {labels[0]!r} alone")
    for example in examples:
        if example.answer not in labels:
            raise RequestError(f"examples: expected answers among {list(labels)!r}, found {example.answer!r}")
    return True


def _first(llm: LLM, label: str) -> int:
    ids = llm.tokenize(label, add_special_tokens=False)
    if not ids:
        raise RequestError(f"labels: expected texts, found {label!r}, which has no tokens")
    return ids[0]
