"""SamplingParams, GenerationConfig, strategy objects: no model needed."""

from __future__ import annotations

import json

import pytest

import omnidecode
from omnidecode import RequestError, SamplingParams, Strategy, TokenRecycling, registry

VLLM_DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
}


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert {name: getattr(params, name) for name in VLLM_DEFAULTS} == VLLM_DEFAULTS


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"min_p": 2},
        {"typical_p": 0},
        {"n": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"max_tokens": 0},
        {"min_tokens": 17},
        {"logprobs": -1},
        {"repetition_penalty": 0},
        {"presence_penalty": 3},
        {"frequency_penalty": float("inf")},
        {"stop": [""]},
        {"stop": [3]},
        {"bad_words": "word"},
        {"stop_token_ids": [-1]},
        {"allowed_token_ids": []},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {1: float("nan")}},
        {"ignore_eos": 1},
    ],
)
def test_impossible_values(bad: dict) -> None:
    (name,) = bad
    with pytest.raises(RequestError, match=rf"{name}: expected .*found") as caught:
        SamplingParams(**bad)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["beams", "structured_outputs", "prompt_logprobs", "max_new_tokens"])
def test_unknown_names_are_type_errors(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        SamplingParams(**{name: 1})


def test_generation_config_both_ways() -> None:
    config = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "max_new_tokens": 100,
        "eos_token_id": [1, 2],
        "transformers_version": "5.0",
        "num_beams": 1,
    }
    params = SamplingParams.from_generation_config(config)
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.6, 0.9, 20, 100)
    assert params.repetition_penalty == 1.05 and params.stop_token_ids == [1, 2]
    back = params.to_generation_config()
    assert back == {k: v for k, v in config.items() if k not in ("transformers_version", "num_beams")}
    assert SamplingParams.from_generation_config(back) == params
    assert SamplingParams.from_generation_config({}).temperature == 0
    assert SamplingParams.from_generation_config({"temperature": 0.7}).temperature == 0  # do_sample is off
    assert SamplingParams.from_generation_config({"do_sample": True}).top_k == 50
    assert SamplingParams.from_generation_config({"max_new_tokens": 5}, max_tokens=6).max_tokens == 6
    assert SamplingParams(temperature=0, stop="x").to_generation_config()["stop_strings"] == ["x"]


@pytest.mark.parametrize("bad", [{"num_beams": 4}, {"penalty_alpha": 0.6}, {"no_such_field": 1}, {"guidance_scale": 2}])
def test_generation_config_refuses(bad: dict) -> None:
    with pytest.raises(RequestError, match=next(iter(bad))):
        SamplingParams.from_generation_config(bad)
    with pytest.raises(RequestError, match="presence_penalty"):
        SamplingParams(presence_penalty=1).to_generation_config()


def test_strategy_classes_grow_from_the_registry() -> None:
    entries = {entry["name"]: entry for entry in registry()}
    assert {"plain", "token-recycling", "prompt-lookup"} <= set(entries)
    for name in omnidecode._strategy.BUILT_IN:
        entry = entries[name]
        assert set(entry) >= {"name", "guarantee", "needs", "parameters", "summary", "source"}
        assert entry["guarantee"] in ("exact", "distribution", "approximate")
        cls = type(omnidecode._strategy.resolve(name))
        assert getattr(omnidecode, cls.__name__) is cls
        instance = cls(**{p["name"]: p["default"] for p in entry["parameters"]})
        for parameter in entry["parameters"]:
            assert getattr(instance, parameter["name"]) == parameter["default"]
            assert parameter["doc"] and parameter["name"] in (cls.__doc__ or "")
        assert json.loads(json.dumps(instance.to_dict())) == instance.to_dict()


def test_strategy_forms_are_one() -> None:
    resolve = omnidecode._strategy.resolve
    forms = ["token-recycling", {"name": "token-recycling"}, TokenRecycling, TokenRecycling()]
    assert len({resolve(form) for form in forms}) == 1
    assert resolve({"name": "token-recycling", "k": 4}) == TokenRecycling(k=4) != TokenRecycling()
    assert repr(TokenRecycling(k=4)) == "TokenRecycling(k=4)"
    assert resolve(None).name == "plain"


def test_strategy_errors() -> None:
    resolve = omnidecode._strategy.resolve
    with pytest.raises(TypeError, match="no parameter 'kk'; it has .*k"):
        TokenRecycling(kk=4)
    with pytest.raises(RequestError, match="`k` expects int from .*found 0"):
        TokenRecycling(k=0)
    with pytest.raises(RequestError, match="expected one of .*plain.*found 'magic'"):
        resolve("magic")
    with pytest.raises(RequestError, match="no parameter 'kk'"):
        resolve({"name": "token-recycling", "kk": 1})
    for bad in (3, {"k": 3}, object()):
        with pytest.raises(RequestError):
            resolve(bad)
    with pytest.raises(TypeError, match="base"):
        Strategy()
