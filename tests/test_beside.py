"""Models beside the main one, by role: from Python and from the shell. The small models share a vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import omnidecode
from omnidecode import LLM, ModelError, RequestError, SamplingParams

MODELS = Path(__file__).resolve().parent.parent / "models"
MAIN, SMALL, TUNED = (str(MODELS / name) for name in ("chains-ar", "countdown-ar", "sudoku-ar"))
QUESTION = "3+4-2+3;5-1;"
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def test_every_role_is_reached() -> None:
    beside = {"draft": SMALL, "expert": TUNED, "value": SMALL, "judge": MAIN}
    with LLM(MAIN, beside=beside) as llm:
        assert {role: str(path) for role, path in llm.beside.items()} == beside
        plain = llm.generate(QUESTION, GREEDY)[0].outputs[0].token_ids
        proxy = {"name": "fs-gen", "method": "proxy"}
        runs = llm.generate(
            [QUESTION] * 4,
            GREEDY,
            strategy=[
                "draft-model",
                {"name": "fs-gen", "method": "oracle"},
                proxy,
                {"name": "best-of-n", "n": 2, "judge": "model", "judge_good": 5},
            ],
        )
        assert runs[0].outputs[0].token_ids == runs[1].outputs[0].token_ids == plain
        assert runs[2].usage.forwards > runs[2].usage.target_forwards  # the others ran too
        assert runs[3].usage.judged == 2
    # The same models by the strategy's arithmetic: the expert is the one that counts.
    with LLM(MAIN, draft=SMALL, beside={"expert": SMALL}) as llm:
        neutral = llm.generate(QUESTION, GREEDY, strategy=proxy)[0].outputs[0].token_ids
        assert neutral == plain  # an expert that is the draft moves nothing
    assert runs[2].outputs[0].token_ids != plain


def test_what_is_missing_is_named() -> None:
    with LLM(MAIN, draft=SMALL) as llm, pytest.raises(RequestError, match='role "expert".*draft'):
        llm.generate(QUESTION, GREEDY, strategy={"name": "fs-gen", "method": "proxy"})


def test_bad_roles_are_refused() -> None:
    with pytest.raises(ModelError, match="expected roles among draft, expert, adapter, value, judge.*'exprt'"):
        LLM(MAIN, beside={"exprt": SMALL})
    with pytest.raises(ModelError, match="one draft model"):
        LLM(MAIN, draft=SMALL, beside={"draft": SMALL})
    golden = MODELS.parent / "tests" / "golden" / "llama"
    with pytest.raises(ModelError, match="role `judge`.*same tokenizer"):
        LLM(MAIN, beside={"judge": golden})


def adapter(folder: Path) -> str:
    """A Kangaroo adapter out of the main model's own last attention: what a recipe would begin from."""
    data = (Path(MAIN) / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body, out, kept = json.loads(data[8 : 8 + size]), data[8 + size :], b"", {}
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    names = {f"model.layers.4.{name}.weight": f"layers.0.{name}.weight" for name in ["input_layernorm", *attention]}
    for name, new in {**names, "model.norm.weight": "norm.weight"}.items():
        start, end = header[name]["data_offsets"]
        kept[new] = {**header[name], "data_offsets": [len(out), len(out) + end - start]}
        out += body[start:end]
    head = json.dumps(kept).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + out)
    shape = json.loads((Path(MAIN) / "config.json").read_text())
    same = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta")
    config = {name: shape[name] for name in (*same, "vocab_size", "torch_dtype")}
    config |= {"model_type": "kangaroo", "exit_layer": 4, "num_hidden_layers": 1, "target_layers": 5}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_an_adapter_drafts(tmp_path: Path) -> None:
    with LLM(MAIN, beside={"adapter": adapter(tmp_path / "adapter")}) as llm:
        for temperature in (0.0, 1.0):
            params = SamplingParams(temperature=temperature, seed=2, max_tokens=24)
            drafted = {"name": "kangaroo", "adaptive": False}
            ours, plain = llm.generate([QUESTION] * 2, params, strategy=[drafted, "plain"])
            assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
            assert ours.usage.drafted > 0 and ours.usage.forwards != plain.usage.forwards


def test_a_role_of_ones_own() -> None:
    @omnidecode.strategy("ask-the-teacher", needs=["teacher"])
    async def ask_the_teacher(seq):
        teacher = seq.sibling("teacher")
        while not seq.finished:
            teacher.follow(seq)
            seq.push((await teacher.forward()).root.choice)

    with LLM(MAIN) as llm:
        wanted = llm.generate(QUESTION, GREEDY)[0].outputs[0].token_ids
    with LLM(SMALL, beside={"teacher": MAIN}) as llm:
        found = llm.generate(QUESTION, GREEDY, strategy="ask-the-teacher")[0]
    assert found.outputs[0].token_ids == wanted and found.usage.target_forwards == 0


def test_shell() -> None:
    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "omnidecode",
            "generate",
            QUESTION,
            "--model",
            MAIN,
            "--max-tokens",
            "8",
            *flags,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    flags = (
        "--draft",
        SMALL,
        "--beside",
        f"expert={TUNED}",
        "--strategy",
        "fs-gen",
        "--param",
        "method=proxy",
        "--json",
    )
    found = run(*flags)
    assert found.returncode == 0 and json.loads(found.stdout)[0]["strategy"] == "fs-gen", found.stderr
    for wrong, message in (("expert", "ROLE=PATH"), ("exprt=x", "expected roles among")):
        refused = run("--beside", wrong)
        assert refused.returncode != 0 and message in refused.stderr
