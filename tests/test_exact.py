"""Law 1 on real weights: exact strategies give the token ids of plain decoding, alone and in mixed batches, greedy and sampled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnidecode import LLM, SamplingParams
from omnidecode._strategy import registry

PROMPTS = [
    json.loads(line)["prompt"]
    for line in (Path(__file__).parent / "data/spec_bench_64.jsonl").read_text("utf-8").splitlines()
]
EXACT = [s["name"] for s in registry() if s["guarantee"] == "exact" and not s["needs"] and s["name"] != "plain"]


def params(temperature: float, tokens: int = 64) -> list[SamplingParams]:
    return [SamplingParams(temperature=temperature, seed=i, max_tokens=tokens) for i in range(len(PROMPTS))]


def conversations() -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


def ids(outputs: list) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_spec_bench_prompts_on_smollm2(llm: LLM, temperature: float) -> None:
    assert len(PROMPTS) == 64 and "token-recycling" in EXACT and "prompt-lookup" in EXACT
    plain = ids(llm.chat(conversations(), params(temperature), strategy="plain"))
    assert sum(map(len, plain)) > 64 * 40
    for name in EXACT:
        outputs = llm.chat(conversations(), params(temperature), strategy=name)
        assert ids(outputs) == plain, name
        assert {output.guarantee for output in outputs} == {"exact"}
        assert all(o.usage.accepted <= o.usage.drafted for o in outputs)
    # Every strategy in one batch.
    names = ["plain", *EXACT]
    mixed = [names[i % len(names)] for i in range(len(PROMPTS))]
    assert ids(llm.chat(conversations(), params(temperature), strategy=mixed)) == plain
    # Alone: nothing else in the batch.
    for i in range(0, len(PROMPTS), 13):
        for name in names:
            alone = llm.chat(conversations()[i], params(temperature)[i], strategy=name)
            assert ids(alone) == [plain[i]], f"{name}, prompt {i}"
