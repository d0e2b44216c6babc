"""The watermark detector: what it reads of watermarked text, and of other text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from omnidecode import LLM, RequestError, SamplingParams, watermark

CHAT = [{"role": "user", "content": "Write a long story about a lighthouse keeper and his dog."}]
LONG = SamplingParams(temperature=1.0, max_tokens=160, seed=1, ignore_eos=True)


@pytest.mark.parametrize(
    ("message", "blocks", "strategy"), [("10110100", 1, "plain"), ("10010111", 2, "token-recycling")]
)
def test_marked_text_is_detected(llm: LLM, message: str, blocks: int, strategy: str) -> None:
    mark = {"name": "majormark", "message": message, "key": 42, "blocks": blocks, "delta": 4.0}
    answer = llm.chat(CHAT, LONG, strategy=strategy, companions=[mark])[0].outputs[0]
    for text in (answer.token_ids, answer.text):
        found = watermark.detect(text, bits=8, key=42, blocks=blocks, model=llm)
        assert (found.message, found.detected) == (message, True), found
        assert found.p_value < 1e-9 and found.z > 5.9 and found.counted > 100
        assert len(found.scores) == blocks and all(best > next for best, next in found.scores)
    # Another key sees nothing.
    other = watermark.detect(answer.token_ids, bits=8, key=43, blocks=blocks, model=llm)
    assert not other.detected and other.p_value > 1e-3


def test_other_text_is_not(llm: LLM) -> None:
    plain = llm.chat(CHAT, LONG)[0].outputs[0]
    neutral = llm.chat(CHAT, LONG, companions=[{"name": "majormark", "message": "10", "delta": 0.0}])[0].outputs[0]
    assert neutral.token_ids == plain.token_ids, "delta 0 changes nothing"
    for blocks in (1, 2):
        found = watermark.detect(plain.token_ids, bits=8, key=42, blocks=blocks, model=llm)
        assert not found.detected and found.p_value > 1e-3, found


def test_in_the_shell(llm: LLM) -> None:
    mark = {"name": "majormark", "message": "1100", "key": 7, "delta": 5.0}
    answer = llm.chat(CHAT, LONG, companions=[mark])[0].outputs[0]

    def run(*more: str, text: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "omnidecode",
            "watermark",
            "detect",
            "--bits",
            "4",
            "--model",
            str(llm.path),
            *more,
        ]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)

    said = run("--key", "7", text=answer.text)
    assert (said.returncode, said.stdout) == (0, "1100\n"), said.stderr
    found = json.loads(run("--key", "7", "--ids", "--json", text=json.dumps(answer.token_ids)).stdout)
    assert found["message"] == "1100" and found["detected"] and found["p_value"] < 1e-6
    assert run("--key", "8", text=answer.text).stdout == "no watermark\n"
    bad = run("--key", "7", "--ids", text="one two")
    assert bad.returncode == 2 and "--ids" in bad.stderr


def test_what_cannot_be_is_refused(llm: LLM) -> None:
    for bad in (
        {"bits": 1},
        {"bits": 8, "blocks": 3},
        {"bits": -1},
        {"bits": 8, "key": -1},
        {"bits": 8, "false_positives": 0},
    ):
        with pytest.raises(RequestError, match="expected|of two bits"):
            watermark.detect([1, 2, 3, 4], model=llm, **bad)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="token"):
        watermark.detect([10**6, 1, 2], bits=8, model=llm)
    assert watermark.detect("", bits=8, model=llm).p_value == 1.0
