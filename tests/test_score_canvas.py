"""The likelihood of an answer on a canvas, from Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnidecode import LLM, RequestError, StrategyError
from omnidecode.train import alphabet

MODELS = Path(__file__).resolve().parent.parent / "models"
PUZZLE, SOLUTION, WRONG = "0430300400032000=", "1432321441232341", "1432321441232314"


@pytest.fixture(scope="module")
def model() -> Iterator[LLM]:
    with LLM(MODELS / "sudoku-diffusion", threads=1) as llm:
        yield llm


def test_one_token_is_a_law(model: LLM) -> None:
    tokens = [t for t in range(len(alphabet.VOCABULARY)) if t != alphabet.MASK]
    scores = [model.score_canvas(PUZZLE, [token], draws=1) for token in tokens]
    assert sum(map(math.exp, scores)) == pytest.approx(1.0, abs=1e-3)
    assert scores == [model.score_canvas(PUZZLE, [token], draws=3, seed=9) for token in tokens]  # nothing is random


def test_right_answers_are_likelier(model: LLM) -> None:
    right, wrong = (model.score_canvas(PUZZLE, alphabet.encode(a), draws=16) for a in (SOLUTION, WRONG))
    assert wrong < right - 5 and right < 0
    assert right == model.score_canvas(PUZZLE, alphabet.encode(SOLUTION), draws=16)
    assert right != model.score_canvas(PUZZLE, alphabet.encode(SOLUTION), draws=16, seed=1)


def test_refusals(model: LLM) -> None:
    with pytest.raises(RequestError, match="draws: expected a positive integer, found 0"):
        model.score_canvas(PUZZLE, [9], draws=0)
    with pytest.raises(RequestError, match="answer_ids: expected at least one token"):
        model.score_canvas(PUZZLE, [])
    with pytest.raises(StrategyError, match="mask token"):
        model.score_canvas(PUZZLE, [alphabet.MASK])
    with LLM(MODELS / "sudoku-ar", threads=1) as causal, pytest.raises(StrategyError, match="bidirectional attention"):
        causal.score_canvas(PUZZLE, [9])
