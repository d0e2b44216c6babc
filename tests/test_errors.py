"""Bad input: each error is typed, says what was expected and found, and leaves the engine alive."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from omnidecode import LLM, Closed, ModelError, OmnidecodeError, RequestError, SamplingParams, StrategyError


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "/no/such/folder"}, "does not exist"),
        ({"model": "./nothing.gguf"}, "does not exist"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"device": "tpu"}, "device: expected 'cpu', 'cuda' or 'cuda:' with a number, found"),
        ({"threads": 0}, "threads: expected a positive integer"),
        ({"context": -5}, "context: expected a positive integer"),
        ({"kv_dtype": "int3"}, "kv_dtype: expected"),
    ],
)
def test_opening(arguments: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        LLM(**arguments)
    assert isinstance(caught.value, ValueError)


def test_damaged_files(tmp_path: Path) -> None:
    whole = Path(os.environ.get("OMNIDECODE_TEST_GGUF") or str(LLM().path))
    with whole.open("rb") as file:
        head = file.read(1 << 20)
    cases = {
        "empty.gguf": b"",
        "garbage.gguf": b"GGUF" + os.urandom(512),
        "truncated.gguf": head,
        "short.safetensors": struct.pack("<Q", 1 << 60) + b"{}",
        "weights.bin": b"\x80\x04pickle",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="expected") as caught:
            LLM(tmp_path / name)
        assert len(str(caught.value)) < 2000
    with pytest.raises(ModelError, match="expected"):
        LLM(tmp_path)


def test_hub_names_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="switched off"):
        LLM("nobody/nothing")
    # What an earlier download left is found and opened: here a file that is no model.
    snapshot = tmp_path / "models--nobody--nothing" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--nobody--nothing" / "refs").mkdir()
    (tmp_path / "models--nobody--nothing" / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ModelError) as caught:
        LLM("nobody/nothing")
    assert "switched off" not in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    ["", [], {"text": "x"}, [1, "a"], [True], [-1], {"prompt_token_ids": ["x"]}, [10**6], [2**40], 3.5],
)
def test_prompts(llm: LLM, prompt: object) -> None:
    with pytest.raises((RequestError, TypeError)):
        outputs = llm.generate([prompt], SamplingParams(max_tokens=2))  # type: ignore[list-item]
        raise AssertionError(outputs)


def test_a_prompt_beyond_the_context(llm: LLM) -> None:
    context = llm.card["context"]
    with pytest.raises(RequestError, match=str(context)):
        llm.generate([[1] * (context + 1)], SamplingParams(max_tokens=2))


def test_tokens_outside_of_the_vocabulary(llm: LLM) -> None:
    vocab = llm.card["vocab"]
    for bad in (
        {"stop_token_ids": [vocab]},
        {"logit_bias": {vocab: 1.0}},
        {"allowed_token_ids": [vocab]},
    ):
        with pytest.raises(RequestError, match=str(vocab)):
            llm.generate("x", SamplingParams(max_tokens=2, **bad))
    for call in (lambda: llm.score("x", [vocab]), lambda: llm.logits([vocab]), lambda: llm.detokenize([vocab])):
        with pytest.raises(RequestError, match=str(vocab)):
            call()


def test_chat(llm: LLM) -> None:
    for bad in ([], [{"role": "user"}], [{"content": object()}]):
        with pytest.raises((RequestError, ModelError)):
            llm.chat(bad)  # type: ignore[arg-type]
    with pytest.raises((RequestError, ModelError), match="line 1"):
        llm.chat([{"role": "user", "content": "x"}], chat_template="{% if %}")
    with pytest.raises((RequestError, ModelError), match="no way"):
        llm.chat([{"role": "user", "content": "x"}], chat_template="{{ raise_exception('no way') }}")


def test_one_bad_request_hurts_only_itself(llm: LLM) -> None:
    import omnidecode

    @omnidecode.strategy("fails-late")
    async def fails_late(seq):
        seq.push((await seq.forward()).root.choice)
        raise KeyError("mine")

    good = llm.generate("1, 2, 3,", SamplingParams(temperature=0, max_tokens=8))[0]
    with pytest.raises(StrategyError) as caught:
        llm.generate(
            ["1, 2, 3,"] * 3, SamplingParams(temperature=0, max_tokens=8), strategy=["plain", "fails-late", "plain"]
        )
    assert isinstance(caught.value.__cause__, KeyError)
    outputs = caught.value.outputs  # type: ignore[attr-defined]
    assert [outputs[i].outputs[0].token_ids for i in (0, 2)] == [good.outputs[0].token_ids] * 2
    assert outputs[1] is caught.value


def test_closing(greedy: SamplingParams) -> None:
    model = LLM(os.environ.get("OMNIDECODE_TEST_GGUF"), context=256)
    assert model.card["context"] == 256
    stream = model.stream("Once", SamplingParams(temperature=0, max_tokens=200, ignore_eos=True))
    next(stream)
    model.close()
    model.close()
    with pytest.raises(OmnidecodeError):
        list(stream)
    with pytest.raises(Closed):
        model.generate("Once", greedy)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(model)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_after_fork() -> None:
    code = textwrap.dedent(
        """
        import os, sys
        from omnidecode import LLM, Closed, SamplingParams
        llm = LLM(os.environ.get("OMNIDECODE_TEST_GGUF"))
        llm.generate("x", SamplingParams(max_tokens=2))
        if (child := os.fork()) == 0:
            try:
                llm.generate("x", SamplingParams(max_tokens=2))
            except Closed as error:
                assert "fork" in str(error), error
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        llm.generate("x", SamplingParams(max_tokens=2))
        """
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 0


def test_import_is_light() -> None:
    code = "import sys, omnidecode; print([m for m in ('numpy', 'torch', 'huggingface_hub', 'asyncio') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" not in found.stdout and "torch" not in found.stdout and "huggingface_hub" not in found.stdout
