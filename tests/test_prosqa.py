"""Chain of thought and continuous thought on the models of this repository (sheet 34): right answers, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnidecode import LLM, RequestOutput, SamplingParams
from omnidecode.train import alphabet, find
from omnidecode.train.prosqa import HOPS, climb
from omnidecode.train.recipe import questions

MODELS = Path(__file__).resolve().parents[1] / "models"
TASK = find("prosqa-cot").task
ITEMS = questions(TASK, "held-out", 512, held=True)
GREEDY = SamplingParams(temperature=0, max_tokens=TASK.canvas)
THOUGHT = {
    "name": "coconut",
    "latents": HOPS,
    "start": alphabet.START_LATENT,
    "end": alphabet.END_LATENT,
    "readout": 3,
}


def ask(model: str, strategy: object) -> list[RequestOutput]:
    with LLM(MODELS / model, kv_tokens=1 << 15) as llm:  # room for all at once: nothing is run twice
        return llm.generate([question for question, _ in ITEMS], GREEDY, strategy=strategy)


@pytest.fixture(scope="module")
def written() -> list[RequestOutput]:
    return ask("prosqa-cot", "plain")


@pytest.fixture(scope="module")
def thought() -> list[RequestOutput]:
    return ask("prosqa-coconut", THOUGHT)


def accuracy(outputs: list[RequestOutput]) -> float:
    return sum(TASK.judge(q, o.outputs[0].text) for (q, _), o in zip(ITEMS, outputs)) / len(ITEMS)


def positions(outputs: list[RequestOutput], thoughts: int) -> float:
    return thoughts + sum(len(output.outputs[0].token_ids) for output in outputs) / len(outputs)


def test_thoughts_answer_as_well_as_steps_in_fewer_positions(
    written: list[RequestOutput], thought: list[RequestOutput]
) -> None:
    assert accuracy(written) >= 0.84
    assert accuracy(thought) >= accuracy(written) - 0.01
    assert positions(thought, HOPS) < 0.8 * positions(written, 0)


def test_a_thought_is_one_row_and_one_forward() -> None:
    with LLM(MODELS / "prosqa-coconut") as llm:
        (alone,) = llm.generate(ITEMS[0][0], GREEDY, strategy=THOUGHT | {"readout": 0})
        (told,) = llm.generate(ITEMS[0][0], GREEDY, strategy=THOUGHT)
    tokens, prompt = len(alone.outputs[0].token_ids), len(alone.prompt_token_ids)
    # The prompt's forward gives the first thought, that of the last thought the first token.
    assert alone.usage.forwards == HOPS + tokens
    assert alone.usage.rows == prompt + 2 + HOPS + tokens - 1
    # A thought runs no head, unless it is read out.
    assert (alone.usage.head_rows, told.usage.head_rows) == (tokens, tokens + HOPS)
    assert alone.outputs[0].token_ids == told.outputs[0].token_ids


def test_thoughts_are_read_out(thought: list[RequestOutput]) -> None:
    """The head's view of every thought is in the result, and means something: nodes on the way are among it."""
    met = 0
    for (question, _), output in zip(ITEMS, thought):
        notes = output.outputs[0].notes
        assert [note.label for note in notes] == ["thought"] * HOPS
        assert [note.place for note in notes] == [len(output.prompt_token_ids) + 1 + i for i in range(HOPS)]
        assert all(len(note.tokens) == 3 and note.tokens[0][1] >= note.tokens[1][1] for note in notes)
        edges, query = question.split(":")
        way = climb(edges.split(","), query[0])
        met += any(text in way for note in notes for _, _, text in note.tokens)
    assert met >= 0.5 * len(ITEMS)


def test_without_thoughts_it_fails(thought: list[RequestOutput]) -> None:
    """What the thoughts are for: the same model that may think nothing is far worse."""
    assert accuracy(ask("prosqa-coconut", THOUGHT | {"latents": 0})) < accuracy(thought) - 0.3
