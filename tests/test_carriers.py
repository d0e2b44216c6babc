"""Companions that take part in forwards, from Python: a value model beside the model, tokens left out of layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnidecode import LLM, RequestError, SamplingParams

MODELS = Path(__file__).parents[1] / "models"
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def test_drafts_are_verified_under_the_caps():
    """The model stands in for a value model: its logits below 0 are caps."""
    asked = ["5-5+4-1-1+7-6.....=", "2+7-8+1............=", "1+1+1+1+1+1........="]
    params = [SamplingParams(temperature=t, max_tokens=16, seed=3) for t in (0.0, 1.0, 1.5)]
    with LLM(MODELS / "sums-ar", beside={"value": MODELS / "sums-ar"}, threads=1) as llm:
        own = llm.generate(asked, params)
        capped, drafted = (
            llm.generate(asked, params, strategy=s, companions=[{"name": "rectification", "epsilon": 0.5}])
            for s in ("plain", "token-recycling")
        )
        for one, other in zip(capped, drafted, strict=True):
            assert one.outputs[0].token_ids == other.outputs[0].token_ids
            assert other.guarantee == "exact"
            assert one.usage.forwards == 2 * one.usage.target_forwards
        assert any(a.outputs[0].token_ids != b.outputs[0].token_ids for a, b in zip(own, capped, strict=True))


def test_companions_are_no_strategies():
    with LLM(MODELS / "sums-ar", threads=1) as llm:
        for name in ("rectification", "lazyllm"):
            with pytest.raises(RequestError, match="companion"):
                llm.generate("1+2=", strategy=name)
        with pytest.raises(RequestError, match="value"):
            llm.generate("1+2=", companions=["rectification"])
        with pytest.raises(RequestError, match="decode"):
            llm.generate("1+2=", strategy="token-recycling", companions=["lazyllm"])
        lazy = {"name": "lazyllm", "decode": False}
        plain, drafted = (
            llm.generate("1+2-1.............=", GREEDY, strategy=s, companions=[lazy])[0]
            for s in ("plain", "token-recycling")
        )
        assert plain.outputs[0].token_ids == drafted.outputs[0].token_ids
