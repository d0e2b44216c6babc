"""The learned router of fs-gen, and its trace."""

from __future__ import annotations

import math
import random

import pytest

from omnidecode import LLM, RequestError, SamplingParams, router


def law(draw: random.Random, sure: bool) -> list[float]:
    top = draw.uniform(0.75, 1.0) if sure else draw.uniform(0.1, 0.5)
    rest = sorted((draw.random() for _ in range(4)), reverse=True)
    return [top, *(x / sum(rest) * (1 - top) for x in rest)]


def test_it_learns_who_is_unsure() -> None:
    draw = random.Random(3)
    data = [(law(draw, sure), not sure) for sure in [True, False, True] * 60]
    machine = router.fit(data, seed=1)
    held_out = [(law(draw, sure), not sure) for sure in [True, False] * 100]
    right = sum(machine.asks(x) == wrong for x, wrong in held_out)
    assert right >= 190, f"{right} of 200"
    assert router.fit(data, seed=1) == machine
    assert len(machine.vectors) == len(machine.weights) < 120
    # Support vectors do not change the decision beyond what the file holds.
    again = router.Machine(**__import__("json").loads(machine.to_json()))
    assert all(again.asks(x) == machine.asks(x) for x, _ in held_out)
    with pytest.raises(RequestError, match="found 3 and 0"):
        router.fit([(law(draw, True), False)] * 3)


def test_traces_tell_every_token(llm: LLM) -> None:
    """A model beside itself: always agreed, whichever router asks; the machine is honoured by the engine."""
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with LLM(llm.path, draft=llm.path) as pair:
        plain = pair.generate("Once upon a time", params)[0]
        always = pair.generate("Once upon a time", params, strategy={"name": "fs-gen", "method": "oracle", "trace": 5})[
            0
        ]
        assert always.outputs[0].token_ids == plain.outputs[0].token_ids
        notes = always.outputs[0].notes
        assert [note.label for note in notes] == ["agreed"] * 20
        for place, (note, token) in enumerate(zip(notes, always.outputs[0].token_ids, strict=True)):
            assert note.place == len(always.prompt_token_ids) + place and note.tokens[0][0] == token
            weights = [w for _, w, _ in note.tokens]
            assert len(weights) == 5 and weights == sorted(weights, reverse=True) and sum(weights) <= 1 + 1e-4
        found = router.frequencies(always)
        assert (found["asked"], found["overruled"]) == (1.0, 0.0) and math.isnan(found["entropy_overruled"])
        data = router.examples([always])
        assert len(data) == 20 and not any(wrong for _, wrong in data)
        # Unsure where the first probability is below a half: as the machine says, so the engine does.
        machine = router.Machine(8.0, 0.0, [[0.9, 0.05], [0.2, 0.2]], [-1.0, 1.0])
        strategy = {"name": "fs-gen", "method": "oracle", "router": "svm", "svm": machine.to_json(), "trace": 2}
        routed = pair.generate("Once upon a time", params, strategy=strategy)[0]
        assert routed.outputs[0].token_ids == plain.outputs[0].token_ids
        asked = [machine.asks([w for _, w, _ in note.tokens]) for note in routed.outputs[0].notes]
        assert [note.label == "agreed" for note in routed.outputs[0].notes] == asked
        assert 0 < sum(asked) < 20 and routed.usage.target_forwards == sum(asked)
        for wrong in ({"svm": "{}"}, {}, {"svm": machine.to_json(), "router": "delta"}):
            with pytest.raises(RequestError, match="svm"):
                pair.generate("x", params, strategy={"name": "fs-gen", "router": "svm", **wrong})
    with pytest.raises(RequestError, match="trace"):
        router.frequencies(plain)
