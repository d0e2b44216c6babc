"""Feature neurons (arXiv:2501.02688, sheet 42): what the head says of every feed-forward neuron, read off the weights.

    found = neurons.map("model.gguf")
    for hit in found.find([" dog", " dogs"])[:3]: print(hit)
    llm.generate(prompt, companions=[found.clamp(hit, 8.0)])

A neuron's row of the up-projection lies in the space of the residual stream; times the head it is a law over tokens. That a
sharp law makes a neuron special is a hypothesis: read beside it the control, random directions of the same lengths.
"""

from __future__ import annotations

import math
import os
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _core
from .errors import RequestError
from .hub import locate
from .llm import LLM
from .progress import Progress

__all__ = ["Hit", "NeuronMap", "map"]


@dataclass(frozen=True, slots=True)
class Hit:
    """A neuron found for a concept. ``probability``: of the concept's tokens together; ``z``: how many standard deviations
    its logarithm lies above the mean over all neurons."""

    layer: int
    neuron: int
    probability: float
    z: float


@dataclass(slots=True)
class NeuronMap:
    """What the head says of each neuron, layer after layer: ``tokens`` and ``probabilities`` hold ``top`` numbers for each,
    the likeliest first; ``entropy`` (nats) and ``lse`` one."""

    model: str
    part: str
    options: dict[str, Any]
    layers: int
    width: int
    top: int
    tokens: array[int]
    probabilities: array[float]
    entropy: array[float]
    lse: array[float]
    control: NeuronMap | None = None
    _open: _core.Neurons | None = field(default=None, repr=False, compare=False)

    def likeliest(self, layer: int, neuron: int) -> list[tuple[int, float]]:
        """The likeliest tokens of a neuron with their probabilities."""
        at = self._at(layer, neuron) * self.top
        return list(zip(self.tokens[at : at + self.top], self.probabilities[at : at + self.top], strict=True))

    def find(self, concept: Sequence[str] | Sequence[int], llm: LLM | None = None) -> list[Hit]:
        """All neurons by the probability of a concept: token ids, or texts (with ``llm``, the model they are of), each of
        which must be one token. The likeliest first."""
        ids = [_one_token(llm, item) if isinstance(item, str) else item for item in concept]
        if self._open is None:
            raise RequestError("find: expected a map made by `map`, found one without its weights")
        if not ids:
            raise RequestError("find: expected at least one token, found none")
        found: list[float] = []
        for layer, logits in enumerate(self._open.logits_of(sorted(set(ids)))):
            for neuron, row in enumerate(logits.tolist()):
                lse = self.lse[layer * self.width + neuron]
                found.append(sum(math.exp(logit - lse) for logit in row))
        logs = [math.log(max(p, 1e-300)) for p in found]
        mean, spread = statistics.fmean(logs), statistics.pstdev(logs) or 1.0
        hits = [
            Hit(at // self.width, at % self.width, p, (log - mean) / spread)
            for at, (p, log) in enumerate(zip(found, logs, strict=True))
        ]
        return sorted(hits, key=lambda hit: (-hit.probability, hit.layer, hit.neuron))

    def clamp(
        self, hits: Hit | Sequence[Hit], value: float, mode: str = "set", *, prompt: bool = True
    ) -> dict[str, Any]:
        """The companion that holds these neurons at a value."""
        listed = [hits] if isinstance(hits, Hit) else list(hits)
        pairs = [number for hit in listed for number in (hit.layer, hit.neuron)]
        return {"name": "clamp-neurons", "neurons": pairs, "values": [value], "mode": mode, "prompt": prompt}

    def sharp(self, least: float) -> float:
        """The share of neurons whose likeliest token has at least this probability."""
        return sum(p >= least for p in self.probabilities[:: self.top]) / (self.layers * self.width)

    def stability(self, other: NeuronMap) -> float:
        """The share of neurons with the same likeliest token in both maps (a base model and its fine-tune)."""
        if (self.layers, self.width) != (other.layers, other.width):
            raise RequestError(
                f"stability: expected a map of {self.layers} layers of {self.width} neurons, "
                f"found one of {other.layers} of {other.width}"
            )
        pairs = zip(self.tokens[:: self.top], other.tokens[:: other.top], strict=True)
        return sum(a == b for a, b in pairs) / (self.layers * self.width)

    def to_dict(self, llm: LLM, most: int = 60) -> dict[str, Any]:
        """Ready for JSON, and for ``omnidecode report``: shares of sharp neurons beside the control, the histogram of
        entropy, and the ``most`` sharpest neurons with their tokens."""
        maps = [("neurons", self), *([("control", self.control)] if self.control else [])]
        shares = [
            {"": name, **{f"p1 >= {least:g}": found.sharp(least) for least in (0.5, 0.1, 0.01)}} for name, found in maps
        ]
        bins = max(1, math.ceil(max(max(found.entropy) for _, found in maps)))
        histogram: list[dict[str, Any]] = [{"entropy, nats": f"{low} to {low + 1}"} for low in range(bins)]
        for name, found in maps:
            counts = [0] * bins
            for value in found.entropy:
                counts[min(int(value), bins - 1)] += 1
            for row, count in zip(histogram, counts, strict=True):
                row[name] = count
        firsts = self.probabilities[:: self.top]
        order = sorted(range(len(firsts)), key=lambda at: -firsts[at])[:most]
        sharpest = [
            {
                "layer": at // self.width,
                "neuron": at % self.width,
                "tokens": ", ".join(repr(llm.detokenize([id])) for id, _ in self.likeliest(*divmod(at, self.width))),
                "p1": firsts[at],
                "entropy": self.entropy[at],
            }
            for at in order
        ]
        by_layer = [
            {
                "layer": layer,
                "mean p1": statistics.fmean(firsts[layer * self.width : (layer + 1) * self.width]),
                "mean entropy": statistics.fmean(self.entropy[layer * self.width : (layer + 1) * self.width]),
            }
            for layer in range(self.layers)
        ]
        return {
            "title": "Feature neurons",
            "model": self.model,
            "heading": f"{self.layers} layers of {self.width} {self.part}-projection neurons"
            + "".join(f", {name} {value}" for name, value in self.options.items() if value),
            "tables": [
                {"title": "Share of neurons whose likeliest token has at least this probability", "rows": shares},
                {"title": "How sharp the laws are", "rows": histogram},
                {"title": "The sharpest neurons", "rows": sharpest},
                {"title": "By layer", "rows": by_layer},
            ],
        }

    def _at(self, layer: int, neuron: int) -> int:
        if not (0 <= layer < self.layers and 0 <= neuron < self.width):
            raise RequestError(
                f"neuron: expected one of {self.layers} layers of {self.width}, found {neuron} of layer {layer}"
            )
        return layer * self.width + neuron


def map(  # noqa: A001 (the word for it)
    model: str | os.PathLike[str] | LLM | None = None,
    *,
    part: str = "up",
    top: int = 5,
    negative: bool = False,
    fold_input: bool = False,
    fold_output: bool = False,
    length: float | None = None,
    cosine: bool = False,
    control: bool = False,
    threads: int | None = None,
) -> NeuronMap:
    """Read every neuron of a model: one product of all rows with the head, in chunks, in float32.

    ``part``: ``up`` or ``gate`` (rows, which read the stream) or ``down`` (columns, which write to it). ``negative``: the
    opposite direction. ``fold_input``, ``fold_output``: multiply by the gain of the layer's norm, of the last norm.
    ``length``: scale each row to it. ``cosine``: divide logits by the lengths of the head's rows. ``control``: also read
    random directions of the same lengths, as ``.control``.

    Raises :class:`ModelError` when there is no such model or it has no dense feed-forward layers.
    """
    if not isinstance(top, int) or top < 1:
        raise RequestError(f"top: expected a positive whole number, found {top!r}")
    if length is not None and not length > 0:
        raise RequestError(f"length: expected a positive number or None, found {length!r}")
    path = model.path if isinstance(model, LLM) else locate(model)
    options: dict[str, Any] = {
        "negative": negative,
        "fold_input": fold_input,
        "fold_output": fold_output,
        "length": length,
        "cosine": cosine,
    }

    def read(random: int | None) -> NeuronMap:
        opened = _core.Neurons(path, part, **options, random=random, threads=threads)
        layers, width = opened.shape()
        tokens, probabilities, entropy, lse = array("I"), array("f"), array("f"), array("f")
        with Progress("layers") as progress:

            def each(layer: int, ids: list[int], *numbers: _core.Array) -> None:
                tokens.extend(ids)
                for known, found in zip((probabilities, entropy, lse), numbers, strict=True):
                    known.extend(value for row in found.tolist() for value in row)
                progress(layer + 1, layers)

            opened.decode(top, each)
        kept = len(tokens) // (layers * width)
        return NeuronMap(
            path.name, part, options, layers, width, kept, tokens, probabilities, entropy, lse, _open=opened
        )

    found = read(None)
    if control:
        found.control = read(0)
    return found


def _one_token(llm: LLM | None, text: str) -> int:
    if llm is None:
        raise RequestError(f"find: expected token ids, or texts with llm=, found {text!r}")
    ids = llm.tokenize(text, add_special_tokens=False)
    if len(ids) != 1:
        raise RequestError(f"find: expected texts of one token, found {text!r} of {len(ids)}; give token ids")
    return ids[0]
