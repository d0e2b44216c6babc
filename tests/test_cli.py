"""The command line, as a shell sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnidecode import LLM, SamplingParams
from omnidecode._strategy import BUILT_IN
from omnidecode.bench import bench
from omnidecode.hub import locate

MODEL = os.environ.get("OMNIDECODE_TEST_GGUF") or str(locate(None))


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "omnidecode", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)


def test_generate(llm: LLM) -> None:
    wanted = llm.generate("1, 2, 3, 4,", SamplingParams(temperature=0, max_tokens=8))[0].outputs[0]
    flags = ("--model", MODEL, "--temperature", "0", "--max-tokens", "8")
    plain = run("generate", "1, 2, 3, 4,", *flags)
    assert (plain.returncode, plain.stdout) == (0, wanted.text + "\n"), plain.stderr
    assert "plain, exact" in plain.stderr and "\r" not in plain.stderr
    piped = run("generate", *flags, "--strategy", "token-recycling", "--param", "k=4", "--json", stdin="1, 2, 3, 4,\n")
    (answer,) = json.loads(piped.stdout)
    assert answer["outputs"][0]["token_ids"] == wanted.token_ids
    assert (answer["strategy"], answer["guarantee"]) == ("token-recycling", "exact") and answer["usage"]["forwards"] > 0


def test_files_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("One\n\nTwo\n")
    (tmp_path / "p.jsonl").write_text('"One"\n{"prompt": "Two"}\n{"turns": ["Three", "Four"]}\n')
    for name, count in (("p.txt", 2), ("p.jsonl", 3)):
        found = run(
            "generate", "--model", MODEL, "--file", str(tmp_path / name), "--max-tokens", "2", "--chat", "--json"
        )
        assert len(json.loads(found.stdout)) == count, found.stderr
    (tmp_path / "bad.jsonl").write_text('{"nothing": 1}\n')
    bad = run("generate", "--model", MODEL, "--file", str(tmp_path / "bad.jsonl"))
    assert bad.returncode == 2 and "bad.jsonl:1: expected" in bad.stderr


def test_chat_remembers() -> None:
    flags = ("--model", MODEL, "--temperature", "0", "--max-tokens", "12", "--json")
    found = run("chat", *flags, stdin="My name is Ada.\nWhat is my name?\n")
    first, second = map(json.loads, found.stdout.splitlines())
    assert first["outputs"][0]["text"] in second["prompt"] and "My name is Ada." in second["prompt"]


def test_strategies() -> None:
    found = run("strategies", "--json")
    assert found.returncode == 0 and json.loads(found.stdout) == [cls.spec for cls in BUILT_IN.values()]
    listed = run("strategies", "token-recycling")
    assert "k: int = 8" in listed.stdout and "exact" in listed.stdout
    assert run("strategies", "magic").returncode == 2


def test_doctor() -> None:
    found = run("doctor", "--model", MODEL, "--json")
    facts = json.loads(found.stdout)
    assert found.returncode == 0 and facts["ok"] and facts["model"]["card"]["layers"] == 30
    assert facts["omnidecode"]["version"] and facts["machine"]["cores"] >= 1
    missing = run("doctor", "--model", "/no/such")
    assert missing.returncode == 1 and "does not exist" in missing.stdout


def test_bench(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("List three fruits.\n")
    flags = ("--prompts", str(tmp_path / "prompts.txt"), "--max-tokens", "12", "--rounds", "2", "--temperature", "0")
    found = run("bench", "--model", MODEL, "--strategies", "token-recycling", *flags, "--json")
    report = json.loads(found.stdout)
    assert [row["strategy"] for row in report["rows"]] == ["plain", "token-recycling"], found.stderr
    assert report["rows"][0]["ratio"] == 1 and report["rows"][1]["identical"] is True
    assert len(report["rows"][1]["seconds"]) == 2 and report["rows"][1]["tokens_per_forward"] >= 1
    table = str(bench(llm, [], ["Hello"], SamplingParams(temperature=0, max_tokens=3), rounds=1))
    assert "plain" in table and "tokens/forward" in table


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ((), 2, "command"),
        (("sing",), 2, "invalid choice"),
        (("generate", "x", "--no-such"), 2, "unrecognized arguments"),
        (("generate", "x", "--max-tokens", "many"), 2, "invalid int value"),
        (("generate", "x", "--top-p", "2"), 2, "top_p: expected a number"),
        (("generate", "x", "--strategy", "magic"), 2, "expected one of"),
        (("generate", "x", "--param", "k=3"), 2, "plain has no parameter 'k'"),
        (("generate", "x", "--strategy", "token-recycling", "--param", "k"), 2, "KEY=VALUE"),
        (("generate", "x", "--strategy", "token-recycling", "--param", "k=x"), 2, "expected int, found 'x'"),
        (("generate", "x", "--strategy", "token-recycling", "--param", "k=0"), 2, "`k` expects int"),
        (("generate", "x", "--logit-bias", "3"), 2, "ID=BIAS"),
        (("generate", "x", "--model", "/no/such"), 1, "does not exist"),
        (("generate", "x", "--file", "/no/such"), 2, "expected a file"),
    ],
)
def test_errors(arguments: tuple[str, ...], code: int, message: str) -> None:
    if arguments[:1] == ("generate",) and "--model" not in arguments:
        arguments += ("--model", MODEL)
    found = run(*arguments)
    assert found.returncode == code, found.stderr
    assert message in found.stderr and found.stdout == ""
    assert "Traceback" not in found.stderr
