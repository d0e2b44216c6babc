"""Every example of the front door runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_python_blocks_run_one_after_the_other() -> None:
    code = "\n".join(blocks("python"))
    assert code.count("llm = LLM()") == 1
    if model := os.environ.get("OMNIDECODE_TEST_GGUF"):
        code = code.replace("LLM()", f"LLM({model!r})")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize(
    "line", [line[2:] for block in blocks("console") for line in block.splitlines() if "omnidecode" in line]
)
def test_shell_lines_run(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "omnidecode"
    if words[1] in ("generate", "doctor") and (model := os.environ.get("OMNIDECODE_TEST_GGUF")):
        words += ["--model", model]
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.PIPE, timeout=300)
