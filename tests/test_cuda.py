"""The CUDA path without a GPU: it says what is missing, and nothing else notices it."""

from __future__ import annotations

import json

import pytest

from omnidecode import LLM, ModelError, _core
from omnidecode.doctor import doctor

FACTS = json.loads(_core.cuda())


def test_the_doctor_says_what_there_is() -> None:
    assert doctor()["cuda"] == FACTS
    assert set(FACTS) == {"built", "kernels", "driver", "devices", "missing", "library"}
    assert (FACTS["missing"] is None) == bool(FACTS["devices"])


@pytest.mark.skipif(bool(FACTS["devices"]), reason="there is a GPU")
def test_a_missing_gpu_is_an_error_with_a_name(llm: LLM) -> None:
    expected = "NVIDIA" if FACTS["built"] else "feature `cuda`"
    with pytest.raises(ModelError, match=expected):
        LLM(llm.path, device="cuda")
    with pytest.raises(Exception, match=expected):
        _core.check_cuda("cuda")


def test_the_processor_knows_one_mode(llm: LLM) -> None:
    with pytest.raises(ModelError, match="row_invariant"):
        LLM(llm.path, row_invariant=False)
    assert llm.stats()["host_rows"] == 0


def test_devices_by_name(llm: LLM) -> None:
    for device in ("gpu", "cuda:", "cuda:x", "CPU", ""):
        with pytest.raises(ModelError, match="device: expected 'cpu', 'cuda'"):
            LLM(llm.path, device=device)
