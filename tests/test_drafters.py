"""The draft model and the Kangaroo adapter of this repository beside SmolLM2: exact, and worth their forwards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnidecode import LLM, RequestOutput, SamplingParams

ROOT = Path(__file__).resolve().parents[1]
#: None of these was written on by the drafters' training.
PROMPTS = [
    json.loads(line)["prompt"] for line in (ROOT / "tests/data/spec_bench_64.jsonl").read_text("utf-8").splitlines()
]
CONVERSATIONS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[::6]]


@pytest.fixture(scope="module")
def drafted() -> Iterator[LLM]:
    beside = {"draft": ROOT / "models/smollm2-draft", "adapter": ROOT / "models/smollm2-kangaroo"}
    with LLM(os.environ.get("OMNIDECODE_TEST_GGUF"), beside=beside) as llm:
        yield llm


def a_pass(outputs: list[RequestOutput]) -> float:
    """Committed tokens a pass of the whole model: each pass adds one to what it accepts."""
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return tokens / (tokens - sum(output.usage.accepted for output in outputs))


#: Least tokens a pass, with drafts of fixed length, greedy: somewhat below what the cards say.
@pytest.mark.parametrize(
    ("strategy", "least"),
    [
        ({"name": "draft-model", "adaptive": False}, 1.15),
        ({"name": "rsd-s", "adaptive": False}, 1.15),
        ({"name": "dyspec", "adaptive": False}, 1.15),
        ({"name": "kangaroo", "adaptive": False, "eta": 0.4}, 1.1),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_exact_and_accepted(drafted: LLM, strategy: dict, least: float) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=48)
    plain = drafted.chat(CONVERSATIONS, greedy)
    outputs = drafted.chat(CONVERSATIONS, greedy, strategy=strategy)
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in plain]
    assert sum(o.usage.accepted for o in outputs) <= sum(o.usage.drafted for o in outputs)
    assert a_pass(outputs) >= least


@pytest.mark.parametrize("name", ["draft-model", "kangaroo"])
def test_sampled_texts_are_those_of_plain_decoding(drafted: LLM, name: str) -> None:
    """Guarantee `exact`: the noise is the target's, keyed by position."""
    laws = [SamplingParams(temperature=0.8, seed=i, max_tokens=32) for i in range(len(CONVERSATIONS))]
    plain, outputs = (drafted.chat(CONVERSATIONS, laws, strategy=s) for s in ("plain", name))
    if outputs[0].guarantee == "exact":
        assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in plain]
    else:
        assert outputs[0].guarantee == "distribution" and all(o.outputs[0].token_ids for o in outputs)
