"""Drafters learn from what a target wrote; the GGUF reader dequantizes as the format says."""

import json
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnidecode.train import checkpoint, find, loop, target
from omnidecode.train.decode import continue_text
from omnidecode.train.model import Llama, Shape
from omnidecode.train.write import question


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A target of four layers, and 60 texts that it wrote."""
    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    model = Llama(Shape(hidden=48, intermediate=96, layers=4, heads=4, kv_heads=2))
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


@pytest.mark.parametrize("name", ["draft", "kangaroo"])
def test_a_drafter_learns_its_target(name, world, tmp_path):
    what = replace(
        find(name),
        target=world[0],
        text=world[1],
        learning_rate=5e-3,
        **(dict(exit_layer=1) if name == "kangaroo" else {}),
    )
    untrained = what.evaluate(what.build().eval(), 3)
    losses = loop.train(what, tmp_path, steps=60, progress=False)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10]), losses
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config["vocab_size"] == 104 and json.loads((tmp_path / "training.json").read_text())["target"] == world[0].name
    )
    trained = what.evaluate(what.load(tmp_path).eval(), 3)
    assert trained[0]["tokens"] == untrained[0]["tokens"] > 20
    assert trained[0]["acceptance"] > untrained[0]["acceptance"]


def test_the_adapter_has_the_names_of_the_reference_and_leaves_the_target_alone(world, tmp_path):
    what = replace(find("kangaroo"), target=world[0], text=world[1], exit_layer=2)
    before = {n: t.clone() for n, t in what.model_of_target().state_dict().items()}
    loop.train(what, tmp_path, steps=2, progress=False)
    assert all(torch.equal(before[n], t) for n, t in what.model_of_target().state_dict().items())
    names = {f"layers.0.self_attn.{c}_proj.weight" for c in "qkvo"} | {"layers.0.input_layernorm.weight", "norm.weight"}
    tensors = checkpoint.read_safetensors(tmp_path / "model.safetensors")
    assert tensors.keys() == names and tensors["layers.0.self_attn.k_proj.weight"].shape == (48, 48)
    assert json.loads((tmp_path / "config.json").read_text())["exit_layer"] == 2


def test_the_teacher_stands_at_the_same_position_and_only_written_tokens_count(world):
    what = replace(find("kangaroo"), target=world[0], text=world[1], exit_layer=3)
    row = what.texts(held=False)[0]
    teacher, student = what.judged(what.build(), row)
    ids = torch.tensor([row["ids"]])
    with torch.no_grad():
        want = what.model_of_target()(ids)[0, row["prompt"] - 1 : -1]
    assert teacher.shape == student.shape == want.shape == (len(row["ids"]) - row["prompt"], 104)
    torch.testing.assert_close(teacher, want, atol=0.05, rtol=0.01)  # the states were kept in float16


def test_the_exit_must_lie_inside_the_target(world):
    with pytest.raises(ValueError, match="exit_layer: expected 1 to 3, found 4"):
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
    facts, tensors = target.read_gguf(path)
    assert facts == {"general.architecture": "llama", "eps": 0.5}
    assert np.array_equal(tensors["plain"], np.arange(8, dtype=np.float32).reshape(2, 4))
    assert np.array_equal(tensors["eight"][0], 0.25 * bytes8)
    assert np.array_equal(tensors["four"][0], 0.25 * nibbles - 1.5)
    path.write_bytes(b"GGML" + bytes(20))
    with pytest.raises(ValueError, match="expected GGUF of version 2 or 3"):
        target.read_gguf(path)


def test_prompts_are_read_from_plain_lines_and_json():
    assert question("Why?") == "Why?"
    assert question('{"question": "Why?", "answer": "So."}') == "Why?"
    with pytest.raises(ValueError, match="found answer"):
        question('{"answer": "So."}')
