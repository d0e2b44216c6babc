"""The learned router of ``fs-gen`` (arXiv:2406.12295, sheet 33): a support vector machine that says from the small model's
largest probabilities whether the large one would disagree.

    llm = LLM(large, draft=small)
    machine = router.train(llm, prompts, SamplingParams(temperature=0, max_tokens=64))
    llm.generate(prompt, strategy={"name": "fs-gen", "method": "oracle", "router": "svm", "svm": machine.to_json()})

Examples are the traces of ``fs-gen`` itself, asked at every token. Plain Python: some hundreds of examples are enough.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import RequestError
from .outputs import RequestOutput
from .sampling import SamplingParams

if TYPE_CHECKING:
    from .llm import LLM

__all__ = ["Machine", "examples", "fit", "frequencies", "train"]


@dataclass(slots=True)
class Machine:
    """f(x) = bias + sum of weight exp(-gamma |x - vector|^2); above 0 the large model is asked."""

    gamma: float
    bias: float
    vectors: list[list[float]]
    weights: list[float]

    def asks(self, law: Sequence[float]) -> bool:
        """Whether the large model is asked; ``law``: the small model's largest probabilities, descending."""
        return (
            self.bias + sum(w * _near(self.gamma, v, law) for v, w in zip(self.vectors, self.weights, strict=True)) > 0
        )

    def to_json(self) -> str:
        """The parameter ``svm`` of ``fs-gen``."""
        return json.dumps(
            {"gamma": self.gamma, "bias": self.bias, "vectors": self.vectors, "weights": self.weights},
            separators=(",", ":"),
        )


def examples(outputs: Sequence[RequestOutput]) -> list[tuple[list[float], bool]]:
    """From answers of ``fs-gen`` with ``trace``: the small model's largest probabilities at each token where the large one was
    asked, and whether it disagreed."""
    found = []
    for output in outputs:
        for answer in output.outputs:
            for note in answer.notes:
                if note.label in ("agreed", "overruled"):
                    found.append(([weight for _, weight, _ in note.tokens], note.label == "overruled"))
    return found


def frequencies(output: RequestOutput) -> dict[str, float]:
    """What the sheet measures, from an answer with ``trace``: ``asked`` (latent frequency) and ``overruled`` (collaboration
    frequency) over all tokens, and the mean entropy in nats of the traced probabilities where the small model was overruled
    and where not (NaN where there was no such token)."""
    notes = [
        note for answer in output.outputs for note in answer.notes if note.label in ("alone", "agreed", "overruled")
    ]
    if not notes:
        raise RequestError("frequencies: expected an answer of fs-gen with trace above 0, found no trace")

    def entropy(wrong: bool) -> float:
        laws = [[w for _, w, _ in n.tokens] for n in notes if (n.label == "overruled") == wrong]
        each = [-sum(p * math.log(p) for p in law if p > 0) for law in laws]
        return sum(each) / len(each) if each else math.nan

    total = len(notes)
    return {
        "asked": sum(note.label != "alone" for note in notes) / total,
        "overruled": sum(note.label == "overruled" for note in notes) / total,
        "entropy_overruled": entropy(True),
        "entropy_kept": entropy(False),
    }


def train(
    llm: LLM,
    prompts: Sequence[Any],
    sampling_params: SamplingParams | None = None,
    *,
    k: int = 10,
    chat: bool = True,
    method: str = "oracle",
    **fitting: Any,
) -> Machine:
    """Let ``fs-gen`` answer the prompts, the large model asked at every token, and learn where it disagreed. ``k``:
    probabilities that the machine looks at; ``fitting``: as of :func:`fit`."""
    params = sampling_params or SamplingParams(temperature=0.0, max_tokens=64)
    strategy = {"name": "fs-gen", "method": method, "trace": k}
    if chat:
        outputs = llm.chat([[{"role": "user", "content": p}] for p in prompts], params, strategy=strategy)
    else:
        outputs = llm.generate(list(prompts), params, strategy=strategy)
    return fit(examples(outputs), **fitting)


def fit(
    data: Sequence[tuple[Sequence[float], bool]],
    *,
    gamma: float = 4.0,
    c: float = 1.0,
    most: int = 400,
    sweeps: int = 60,
    seed: int = 0,
) -> Machine:
    """A machine on balanced examples, at most ``most``: coordinate ascent on the dual, whose bias is part of the kernel so that
    no constraint joins the multipliers.

    ``gamma``: width of the kernel; ``c``: the largest multiplier. Raises :class:`RequestError` unless both answers occur.
    """
    draw = random.Random(seed)
    sides = [[list(x) for x, wrong in data if wrong is side] for side in (False, True)]
    each = min(len(sides[0]), len(sides[1]), most // 2)
    if each == 0:
        raise RequestError(
            f"examples: expected some where the models agree and some where they do not, found {len(sides[0])} and "
            f"{len(sides[1])}"
        )
    points = [(x, sign) for side, sign in zip(sides, (-1.0, 1.0), strict=True) for x in draw.sample(side, each)]
    n = len(points)
    kernel = [[1.0 + _near(gamma, a, b) for b, _ in points] for a, _ in points]
    alpha, score = [0.0] * n, [0.0] * n
    for _ in range(sweeps):
        moved = 0.0
        for i in draw.sample(range(n), n):
            sign = points[i][1]
            new = min(c, max(0.0, alpha[i] + (1.0 - sign * score[i]) / kernel[i][i]))
            change = (new - alpha[i]) * sign
            if change:
                alpha[i], row = new, kernel[i]
                score = [s + change * value for s, value in zip(score, row, strict=True)]
                moved = max(moved, abs(change))
        if moved < 1e-4:
            break
    held = [(x, a * sign) for (x, sign), a in zip(points, alpha, strict=True) if a > 0]
    return Machine(gamma, sum(weight for _, weight in held), [x for x, _ in held], [weight for _, weight in held])


def _near(gamma: float, a: Sequence[float], b: Sequence[float]) -> float:
    return math.exp(-gamma * sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
