"""The command `index` and the table that `aded` reads: counted through the model's tokenizer, refused for another's."""

import json
from pathlib import Path

import pytest

from omnidecode import LLM, RequestError, SamplingParams, StrategyError, trigrams
from omnidecode.cli import main

SMALL = Path(__file__).parents[1] / "models/chains-ar"
TEXT = "3+4-2;5-1;=3>7>5;5>4;\n" * 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def small():
    with LLM(SMALL) as llm:
        yield llm


def aded(path, **more):
    return {"name": "aded", "corpus": str(path), "table": "request", "adaptive": False, **more}


def test_a_table_is_counted_and_drafts(small, tmp_path):
    text, lines, table = (tmp_path / name for name in ("a.txt", "a.jsonl", "table.bin"))
    text.write_text(TEXT)
    rows = [TEXT, {"text": TEXT}, {"ids": small.tokenize(TEXT, add_special_tokens=False)}]
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    one = trigrams.index(small, [text], table)
    assert (one.texts, one.tokens) == (1, 40 * 22)
    assert one.trigrams >= one.pairs > 10 and one.bytes == 20 + 12 * one.pairs + 8 * one.trigrams
    three = trigrams.index(small, [lines], tmp_path / "three.bin")
    assert (three.texts, three.pairs) == (3, one.pairs)
    assert (tmp_path / "three.bin").read_bytes() == table.read_bytes(), "shares do not depend on how often all is there"
    assert trigrams.index(small, [text], tmp_path / "none.bin", least=10**6).trigrams == 0
    prompt = "9-2;1+1;="
    (plain,) = small.generate(prompt, GREEDY)
    (cold,) = small.generate(prompt, GREEDY, strategy=aded(tmp_path / "none.bin", learn_prompt=False))
    (known,) = small.generate(prompt, GREEDY, strategy=aded(table, learn_prompt=False))
    assert plain.outputs[0].token_ids == cold.outputs[0].token_ids == known.outputs[0].token_ids
    assert known.usage.drafted > cold.usage.drafted


def test_the_shell_writes_it(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    table = tmp_path / "table.bin"
    assert main(["index", str(tmp_path / "a.txt"), "-o", str(table), "--model", str(SMALL), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == table.stat().st_size


def test_what_is_no_corpus_is_said(small, tmp_path):
    bad = tmp_path / "bad.jsonl"
    for line, expected in [('{"ids": [999999]}', "`ids` of a model"), ("[1, 2]", "a JSON text"), ("{", "a JSON text")]:
        bad.write_text(line)
        with pytest.raises(RequestError, match=f"bad.jsonl:1: expected {expected}"):
            trigrams.index(small, [bad], tmp_path / "out.bin")
    with pytest.raises(RequestError, match="expected a file of text"):
        trigrams.index(small, [tmp_path / "missing.txt"], tmp_path / "out.bin")
    with pytest.raises(RequestError, match="expected a file to write"):
        trigrams.index(small, [], tmp_path / "no" / "out.bin")
    with pytest.raises(RequestError, match="least: expected 1 or more"):
        trigrams.index(small, [], tmp_path / "out.bin", least=0)
    (tmp_path / "junk.bin").write_bytes(b"junk")
    with pytest.raises(StrategyError, match="omnidecode index"):
        small.generate("1+1=", GREEDY, strategy=aded(tmp_path / "junk.bin"))
