"""Every example of the front door and of the guides runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/own-strategies.md", "docs/tools.md")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_run_one_after_the_other(document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(blocks(document, "python"))
    assert code.count("llm = LLM()") == 1
    if model := os.environ.get("OMNIDECODE_TEST_GGUF"):
        code = code.replace("LLM()", f"LLM({model!r})")
    monkeypatch.chdir(ROOT)
    exec(compile(code, document, "exec"), {"__name__": Path(document).stem.replace("-", "_")})


@pytest.mark.parametrize(
    "line",
    [
        line[2:]
        for document in DOCUMENTS
        for block in blocks(document, "console")
        for line in block.splitlines()
        if "omnidecode" in line
    ],
)
def test_shell_lines_run(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "omnidecode"
    if words[1] in ("generate", "doctor", "rerank") and (model := os.environ.get("OMNIDECODE_TEST_GGUF")):
        words += ["--model", model]
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.PIPE, timeout=300)
