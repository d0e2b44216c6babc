"""One model for all tests: SmolLM2-135M-Instruct, by OMNIDECODE_TEST_GGUF or the installed package."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from omnidecode import LLM, SamplingParams


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    with LLM(os.environ.get("OMNIDECODE_TEST_GGUF")) as model:
        yield model


@pytest.fixture
def greedy() -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=24)
