"""The map of feature neurons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from omnidecode import LLM, RequestError, SamplingParams, neurons, report

SMALL = Path(__file__).parent / "golden" / "llama"


@pytest.fixture(scope="module")
def small() -> neurons.NeuronMap:
    return neurons.map(SMALL, top=4, control=True)


def test_all_neurons_are_read(small: neurons.NeuronMap) -> None:
    count = small.layers * small.width
    assert len(small.entropy) == len(small.lse) == count and len(small.tokens) == len(small.probabilities) == 4 * count
    for at in range(0, count, 7):
        row = small.likeliest(*divmod(at, small.width))
        assert [p for _, p in row] == sorted((p for _, p in row), reverse=True) and 0 < sum(
            p for _, p in row
        ) <= 1 + 1e-5
    assert small.control is not None and small.control.entropy != small.entropy
    assert small.stability(neurons.map(SMALL, top=1)) == 1.0, "contract 8: the same model twice"
    chance = small.stability(small.control)
    assert chance < 0.2, f"random directions share the likeliest token of {chance:.0%}"


def test_concepts_are_sums_of_the_law(small: neurons.NeuronMap) -> None:
    everything = list(range(256))
    hits = small.find(everything[:3])
    assert len(hits) == small.layers * small.width
    assert [h.probability for h in hits] == sorted((h.probability for h in hits), reverse=True)
    best = hits[0]
    (token, p), *_ = small.likeliest(best.layer, best.neuron)
    (found,) = [h for h in small.find([token]) if (h.layer, h.neuron) == (best.layer, best.neuron)]
    assert found.probability == pytest.approx(p, rel=1e-4)
    logs = [math.log(h.probability) for h in hits]
    assert sum(h.z for h in hits) == pytest.approx(0, abs=1e-6 * len(logs)) and best.z > 1


def test_options_change_what_they_say(small: neurons.NeuronMap) -> None:
    base = list(small.tokens[::4])
    longer = neurons.map(SMALL, top=1, length=0.5)
    assert longer.stability(small) > 0.999, "scaling keeps the order"
    assert longer.entropy != small.entropy
    for options in (
        {"negative": True},
        {"part": "gate"},
        {"part": "down"},
        {"fold_input": True},
        {"fold_output": True},
        {"cosine": True},
    ):
        other = neurons.map(SMALL, top=1, **options)  # type: ignore[arg-type]
        assert list(other.tokens) != base or list(other.entropy) != list(small.entropy), options


def test_report(llm: LLM, small: neurons.NeuronMap) -> None:
    page = report.render(report.load(json.dumps(small.to_dict(llm, most=5))))
    assert "The sharpest neurons" in page and "control" in page


def test_clamping(llm: LLM, small: neurons.NeuronMap) -> None:
    """Neurons that are held move the law; an empty set changes nothing. (Mapping all of this model takes a minute: the map is of
    the small one.)"""
    hits = [neurons.Hit(28, at, 0.1, 1.0) for at in (3, 700, 1500)]
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=5)
    prompt = "My favourite animal is the"
    plain = llm.generate(prompt, params)[0].outputs[0]
    none = llm.generate(prompt, params, companions=[{"name": "clamp-neurons"}])[0].outputs[0]
    clamp = small.clamp(hits, 20.0, mode="post")
    assert clamp["neurons"] == [28, 3, 28, 700, 28, 1500] and clamp["values"] == [20.0]
    held = llm.generate(prompt, params, companions=[clamp])[0].outputs[0]
    assert none.logprobs == plain.logprobs and held.logprobs != plain.logprobs


def test_what_does_not_fit_is_refused(llm: LLM, small: neurons.NeuronMap) -> None:
    for bad in ({"top": 0}, {"length": -1.0}, {"part": "middle"}):
        with pytest.raises(RequestError, match="expected"):
            neurons.map(SMALL, **bad)  # type: ignore[arg-type]
    for call in (
        lambda: small.find([]),
        lambda: small.find(["a"]),
        lambda: small.likeliest(99, 0),
        lambda: small.find([10**6]),
    ):
        with pytest.raises(RequestError):
            call()
    with pytest.raises(RequestError, match="one token"):
        small.find(["several words of text"], llm)
