"""Drafters learn from what a target wrote; the GGUF reader dequantizes as the format says."""

import json
import os
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnidecode.train import checkpoint, find, gguf, loop
from omnidecode.train.decode import continue_text
from omnidecode.train.lessons import read_texts
from omnidecode.train.model import Llama, Shape
from omnidecode.train.prompts import main as make
from omnidecode.train.write import main as write
from omnidecode.train.write import question


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A target of four layers, and 60 texts that it wrote."""
    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    model = Llama(Shape(hidden=64, intermediate=96, layers=4, heads=4, kv_heads=2))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)  # a peaked law, so that there is something to learn
        for layer in model.model.layers[1:]:  # and one that the first layer alone does not know
            layer.self_attn.o_proj.weight.mul_(3)
            layer.mlp.down_proj.weight.mul_(3)
    checkpoint.export(folder, model, {})
    source = random.Random(0)
    prompts = [[3] + [source.randrange(8, 104) for _ in range(4)] for _ in range(60)]
    out = continue_text(checkpoint.load(folder), prompts, 24, temperature=1.0)
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps(dict(ids=p + o, prompt=len(p))) + "\n" for p, o in zip(prompts, out)))
    return folder, text


#: Small enough for the target of these tests.
SMALL = {
    "draft": dict(shape=dict(hidden=32, intermediate=64, layers=2, heads=2), learning_rate=2e-2),
    "kangaroo": dict(exit_layer=1, learning_rate=5e-3),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_drafter_learns_its_target(name, world, tmp_path):
    what = replace(find(name), target=world[0], text=world[1], **SMALL[name])
    untrained = what.evaluate((what.structure if name == "kangaroo" else what.build)().eval(), 3)
    losses = loop.train(what, tmp_path, steps=60, progress=False)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10]), losses
    assert json.loads((tmp_path / "training.json").read_text())["target"] == world[0].name
    trained = what.evaluate(what.load(tmp_path).eval(), 3)
    assert trained[0]["tokens"] == untrained[0]["tokens"] > 20
    assert trained[0]["acceptance"] > untrained[0]["acceptance"]


def test_the_draft_is_written_as_gguf_and_read_back(world, tmp_path):
    what = replace(find("draft"), target=world[0], text=world[1], **SMALL["draft"])
    model = what.build()
    what.export(model, tmp_path, {})
    facts, tensors = gguf.read_gguf(tmp_path / "model.gguf")
    assert (
        facts["llama.embedding_length"] == 32 and facts["llama.vocab_size"] == len(tensors["token_embd.weight"]) == 104
    )
    back = what.load(tmp_path)
    for (name, a), b in zip(model.named_parameters(), back.parameters()):
        # 8 bits: half a step of a block's largest value
        assert (a - b).abs().max() <= a.abs().max() / 127 * 0.51, name
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), back(ids), atol=0.1, rtol=0.1)


def test_writing_goes_on_where_it_stopped(tmp_path):
    if "OMNIDECODE_TEST_GGUF" not in os.environ:
        pytest.skip("needs OMNIDECODE_TEST_GGUF")
    prompts, whole, cut = (tmp_path / name for name in ("prompts.jsonl", "whole.jsonl", "cut.jsonl"))
    assert make(["--out", str(prompts), "--count", "5"]) == 0
    asked = ["--target", os.environ["OMNIDECODE_TEST_GGUF"], "--prompts", str(prompts), "--max-tokens", "6"]
    assert write([*asked, "--out", str(whole)]) == 0
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["temperature"] for row in rows] == [0.0, 0.3, 0.7, 1.0, 0.0]
    assert all(0 < len(row["ids"]) - row["prompt"] <= 6 for row in rows)
    cut.write_text("".join(whole.read_text().splitlines(keepends=True)[:2]))
    assert write([*asked, "--out", str(cut), "--resume"]) == 0
    assert cut.read_text() == whole.read_text()


def test_a_draft_is_not_wider_than_its_target(world):
    with pytest.raises(ValueError, match="hidden: expected at most the target's 64, found 128"):
        replace(find("draft"), target=world[0], text=world[1]).build()


def test_the_adapter_has_the_names_of_the_reference_and_leaves_the_target_alone(world, tmp_path):
    what = replace(find("kangaroo"), target=world[0], text=world[1], exit_layer=2)
    before = {n: t.clone() for n, t in what.model_of_target().state_dict().items()}
    loop.train(what, tmp_path, steps=2, progress=False)
    assert all(torch.equal(before[n], t) for n, t in what.model_of_target().state_dict().items())
    names = {f"layers.0.self_attn.{c}_proj.weight" for c in "qkvo"} | {"layers.0.input_layernorm.weight", "norm.weight"}
    tensors = checkpoint.read_safetensors(tmp_path / "model.safetensors")
    assert tensors.keys() == names and tensors["layers.0.self_attn.k_proj.weight"].shape == (64, 64)
    assert json.loads((tmp_path / "config.json").read_text())["exit_layer"] == 2


def test_lessons_are_what_the_target_says_of_written_tokens(world):
    what = replace(find("kangaroo"), target=world[0], text=world[1], exit_layer=3)
    lesson = what.lessons(held=False)[0]
    row = read_texts(world[1])[0]
    assert lesson.ids.tolist() == row["ids"] and lesson.rows == slice(row["prompt"] - 1, len(row["ids"]) - 1)
    target, ids, taps = what.model_of_target(), lesson.ids[None], {3: None}
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with torch.no_grad():
        states, _ = target.states(target.embed(ids), torch.arange(ids.shape[1]), mask, taps=taps)
        want = target.head(states)[0, lesson.rows]
        assert what.guesses(what.build(), lesson, torch.arange(4)).shape == (4, 104)
    assert lesson.choices.shape == (len(row["ids"]) - row["prompt"], 64)
    torch.testing.assert_close(lesson.choices[:, 0].long(), want.argmax(-1))
    torch.testing.assert_close(
        lesson.shares.float(), want.softmax(-1).gather(-1, lesson.choices.long()), atol=0.01, rtol=0.02
    )
    torch.testing.assert_close(lesson.entering.float(), taps[3][0, :-1], atol=0.05, rtol=0.02)


def test_the_exit_must_lie_inside_the_target(world):
    with pytest.raises(ValueError, match="exit_layer: expected 1 to 3, found 10"):
        replace(find("kangaroo"), target=world[0], text=world[1]).build()


def test_a_drafter_without_its_target_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="draft needs --target"):
        loop.train(find("draft"), tmp_path, steps=1, progress=False)


def test_gguf_blocks_are_read_as_the_format_says(tmp_path):
    """A file made by hand: metadata of several kinds, F32, Q8_0 and Q4_1."""
    noise = np.random.default_rng(0)
    scale, least = np.float16(0.25), np.float16(-1.5)
    bytes8 = noise.integers(-128, 128, 32, dtype=np.int8)
    nibbles = noise.integers(0, 16, 32, dtype=np.uint8)
    parts = {
        "plain": (0, (2, 4), np.arange(8, dtype=np.float32).tobytes()),
        "eight": (8, (1, 32), scale.tobytes() + bytes8.tobytes()),
        "four": (3, (1, 32), scale.tobytes() + least.tobytes() + (nibbles[:16] | nibbles[16:] << 4).tobytes()),
    }

    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    head = struct.pack("<4sIQQ", b"GGUF", 3, len(parts), 3)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    head += text("eps") + struct.pack("<If", 6, 0.5)
    at, body = 0, b""
    for name, (kind, shape, raw) in parts.items():
        head += text(name) + struct.pack("<I2QIQ", 2, *shape[::-1], kind, at)
        raw += b"\0" * (-len(raw) % 32)
        body, at = body + raw, at + len(raw)
    path = tmp_path / "x.gguf"
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    facts, tensors = gguf.read_gguf(path)
    assert facts == {"general.architecture": "llama", "eps": 0.5}
    assert np.array_equal(tensors["plain"], np.arange(8, dtype=np.float32).reshape(2, 4))
    assert np.array_equal(tensors["eight"][0], 0.25 * bytes8)
    assert np.array_equal(tensors["four"][0], 0.25 * nibbles - 1.5)
    path.write_bytes(b"GGML" + bytes(20))
    with pytest.raises(ValueError, match="expected GGUF of version 2 or 3"):
        gguf.read_gguf(path)


def test_prompts_are_read_from_plain_lines_and_json():
    assert question("Why?") == "Why?"
    assert question('{"question": "Why?", "answer": "So."}') == "Why?"
    with pytest.raises(ValueError, match="found answer"):
        question('{"answer": "So."}')


def engine():
    """The engine's module, where it is built."""
    module = pytest.importorskip("omnidecode", reason="the engine is not built")
    return module if hasattr(module, "LLM") else pytest.skip("the engine is not built")


def test_the_draft_speaks_in_the_engine_as_in_torch(world, tmp_path):
    what = replace(find("draft"), target=world[0], text=world[1], **SMALL["draft"])
    loop.train(what, tmp_path, steps=20, progress=False)
    ids, seen = read_texts(world[1])[0]["ids"], []
    omnidecode = engine()

    @omnidecode.strategy("ask-the-draft")
    async def ask(seq):
        found = await seq.sibling("draft").forward(omnidecode.Plan(logits=True))
        seen.append(torch.from_dlpack(found.root.logits)[0])
        seq.push(ids[0])

    with omnidecode.LLM(world[0], draft=tmp_path, threads=1) as llm:
        law = omnidecode.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        llm.generate([ids], omnidecode.SamplingParams(max_tokens=1), strategy="ask-the-draft")
        plain, drafted = (
            llm.generate([ids[:4]], law, strategy=s)[0] for s in ("plain", dict(name="draft-model", adaptive=False))
        )
    with torch.no_grad():
        want = what.load(tmp_path)(torch.tensor([ids]))[0, -1]
    torch.testing.assert_close(seen[0], want, atol=0.1, rtol=0.05)  # the engine rounds states to 8 bits too
    assert drafted.outputs[0].token_ids == plain.outputs[0].token_ids
    assert drafted.usage.drafted > 0


def test_the_adapter_drafts_in_the_engine_as_in_torch(world, tmp_path):
    what = replace(find("kangaroo"), target=world[0], text=world[1], **SMALL["kangaroo"])
    loop.train(what, tmp_path, steps=20, progress=False)
    omnidecode = engine()
    strategy = dict(name="kangaroo", gamma=1, eta=0, adaptive=False, trace=True)
    law = omnidecode.SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    with omnidecode.LLM(world[0], beside=dict(adapter=tmp_path), threads=1) as llm:
        prompt = read_texts(world[1])[0]["ids"][:4]
        plain, drafted = (llm.generate([prompt], law, strategy=s)[0] for s in ("plain", strategy))
    assert drafted.outputs[0].token_ids == plain.outputs[0].token_ids
    ids = torch.tensor([prompt + plain.outputs[0].token_ids])
    target, adapter, taps = what.model_of_target(), what.load(tmp_path), {1: None}
    with torch.no_grad():
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        target.states(target.embed(ids), torch.arange(ids.shape[1]), mask, taps=taps)
        want = target.head(adapter(taps[1]))[0].argmax(-1).tolist()
    said = {note.place: note.tokens[0][0] for note in drafted.outputs[0].notes}
    assert len(said) >= 10
    right = sum(want[place - 1] == token for place, token in said.items())
    assert right >= 0.9 * len(said), (said, want)  # a near tie may turn
