"""Judges written in Python, and the texts that searches find beside their answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import omnidecode
from omnidecode import LLM, Candidate, RequestError, SamplingParams, StrategyError
from omnidecode.testing import wait_until_idle

PROMPT = "The sea"
SAMPLED = SamplingParams(temperature=1, seed=5, max_tokens=12)
SEARCHES = [
    {"name": "best-of-n", "n": 3},
    {"name": "particle", "n": 3, "step_tokens": 4},
    {"name": "judge-beam", "n": 4, "width": 2, "step_tokens": 4},
    {"name": "a-star", "k": 2, "step_tokens": 4, "budget_tokens": 60},
]


def vowels(candidates: list[Candidate]) -> list[float]:
    return [sum(c in "aeiou" for c in x.text) / max(len(x.text), 1) for x in candidates]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search["name"])
def test_searches_ask_it(llm: LLM, search: dict) -> None:
    batches: list[list[Candidate]] = []

    def judge(candidates: list[Candidate]) -> list[float]:
        batches.append(list(candidates))
        return vowels(candidates)

    (output,) = llm.generate(PROMPT, SAMPLED, strategy=search, judge=judge)
    usage, answer = output.usage, output.outputs[0]
    assert usage.judge_calls == len(batches) > 0 and usage.judged == sum(map(len, batches))
    assert usage.python_steps == len(batches) and usage.python_seconds > 0
    for batch in batches:
        for candidate in batch:
            assert candidate.prompt == PROMPT and candidate.prompt_token_ids == output.prompt_token_ids
            assert candidate.text == llm.detokenize(candidate.token_ids)
    told = {tuple(c.token_ids): score for batch in batches for c, score in zip(batch, vowels(batch))}
    assert answer.score == pytest.approx(told[tuple(answer.token_ids)], abs=1e-6)
    assert all(c.finished for c in batches[-1] if len(c.token_ids) == 12)
    # The judge decides: its contrary finds another text or the same score.
    (other,) = llm.generate(PROMPT, SAMPLED, strategy=search, judge=lambda cs: [1 - v for v in vowels(cs)])
    assert other.outputs[0].score == pytest.approx(1 - vowels([Candidate([], "", [], other.outputs[0].text, True)])[0])
    assert vowels([Candidate([], "", [], other.outputs[0].text, True)])[0] <= answer.score + 1e-6


def test_best_of_n_takes_the_best_and_tells_the_others(llm: LLM) -> None:
    search = {"name": "best-of-n", "n": 4, "texts": 4}
    params = SamplingParams(temperature=1, seed=5, max_tokens=12, n=2, stop="e")
    (output,) = llm.generate(PROMPT, params, strategy=search, judge=vowels)
    answers = [one for one in output.outputs if one.beside is None]
    assert [one.index for one in output.outputs] == list(range(8)) and [one.index for one in answers] == [0, 1]
    for answer in answers:
        beside = [one for one in output.outputs if one.beside == answer.index]
        scores = [one.score for one in (answer, *beside)]
        assert len(beside) == 3 and scores == sorted(scores, reverse=True)
        for one in (answer, *beside):
            assert one.score == pytest.approx(vowels([Candidate([], "", [], one.text, True)])[0], abs=1e-6)
            assert "e" not in one.text and (one.finish_reason, one.stop_reason) in (("length", None), ("stop", "e"))
            assert one.token_ids and one.seed == answer.seed


@pytest.mark.parametrize(
    "search",
    [{"name": "beam", "width": 3, "texts": 3}, {"name": "superposed", "k": 3}],
    ids=lambda search: search["name"],
)
def test_other_texts_of_searches_without_a_judge(llm: LLM, search: dict) -> None:
    (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=8), strategy=search)
    scores = [one.score for one in output.outputs]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert [one.beside for one in output.outputs] == [None, 0, 0]
    assert all(one.text == llm.detokenize(one.token_ids) for one in output.outputs)
    assert len({one.text for one in output.outputs}) == 3


def test_votes_of_self_consistency(llm: LLM) -> None:
    search = {"name": "self-consistency", "n": 5, "texts": 5, "answer": r"(\d)"}
    (output,) = llm.generate("2, 4, 6,", SamplingParams(temperature=1, seed=2, max_tokens=6), strategy=search)
    votes = [one.score for one in output.outputs]
    assert len(votes) == 5 and votes == sorted(votes, reverse=True) and votes[0] >= 1


def test_a_strategy_that_asks_no_judge_refuses_it(llm: LLM) -> None:
    for strategy in ("plain", "beam", "self-consistency", {"name": "best-of-n", "judge": "confidence"}):
        with pytest.raises(RequestError, match="a judge was given"):
            llm.generate(PROMPT, SAMPLED, strategy=strategy, judge=vowels)
    with pytest.raises(RequestError, match="expected a function"):
        llm.generate(PROMPT, SAMPLED, strategy="best-of-n", judge="nobody")
    with pytest.raises(RequestError, match="judge: expected one or 1"):
        llm.generate(PROMPT, SAMPLED, strategy="best-of-n", judge=[vowels, vowels])


def test_its_exception_fails_its_request_only(llm: LLM) -> None:
    def broken(candidates: list[Candidate]) -> list[float]:
        raise ValueError("out of taste")

    with pytest.raises(StrategyError, match="ValueError: out of taste") as caught:
        llm.generate([PROMPT] * 3, SAMPLED, strategy=["best-of-n", "plain", "best-of-n"], judge=[broken, None, vowels])
    error = caught.value
    assert isinstance(error.__cause__, ValueError)
    assert "in broken" in error.traceback and 'raise ValueError("out of taste")' in error.traceback
    _, plain, judged = error.outputs
    assert plain.finished and judged.outputs[0].score is not None
    wait_until_idle(llm)


@pytest.mark.parametrize("answer", [None, [1.0], [1.0, float("nan")], ["a", "b"], 3.0])
def test_what_it_must_answer(llm: LLM, answer: object) -> None:
    with pytest.raises((RequestError, StrategyError), match=r"expected|finite numbers"):
        llm.generate(PROMPT, SAMPLED, strategy={"name": "best-of-n", "n": 2}, judge=lambda candidates: answer)


def test_the_engine_never_waits_for_itself(llm: LLM) -> None:
    for call in (
        lambda: llm.generate(PROMPT, SAMPLED),
        lambda: llm.score(PROMPT, [1]),
        lambda: llm.logits([1]),
        lambda: llm.score_canvas(PROMPT, [1]),
    ):
        with pytest.raises(StrategyError, match="from outside"):
            llm.generate(PROMPT, SAMPLED, strategy="best-of-n", judge=lambda candidates, call=call: call())
    assert llm.generate(PROMPT, SAMPLED, strategy="best-of-n", judge=vowels)[0].finished


def test_numpy_answers(llm: LLM) -> None:
    numpy = pytest.importorskip("numpy")
    plain, ours = (
        llm.generate(PROMPT, SAMPLED, strategy="best-of-n", judge=judge)[0]
        for judge in (vowels, lambda candidates: numpy.array(vowels(candidates), dtype=numpy.float32))
    )
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids


def test_strategies_in_python_ask_too(llm: LLM) -> None:
    @omnidecode.strategy("better-of-two", judged=True)
    async def better_of_two(seq):
        await seq.prefill()
        twins = [seq.fork(role) for role in (1, 2)]
        while not all(twin.finished for twin in twins):
            going = [twin for twin in twins if not twin.finished]
            for twin, seen in zip(going, await omnidecode.gather(*(twin.forward() for twin in going))):
                twin.push(seen.root.choice)
        scores = seq.judge(twins)
        best = scores.index(max(scores))
        tokens = twins[1 - best].generated
        seq.adopt(twins[best])
        seq.rate(scores[best])
        seq.offer(tokens, scores[1 - best])

    (output,) = llm.generate(PROMPT, SAMPLED, strategy="better-of-two", judge=vowels)
    first, second = output.outputs
    assert first.score >= second.score and second.beside == 0 and output.usage.judge_calls == 1
    with pytest.raises(RequestError, match="a request with a judge"):
        llm.generate(PROMPT, SAMPLED, strategy="better-of-two")


def test_shell(tmp_path: Path) -> None:
    plugin = tmp_path / "taste.py"
    plugin.write_text(
        "import omnidecode\n"
        "@omnidecode.judge('longest')\n"
        "def longest(candidates):\n"
        "    return [len(c.text) for c in candidates]\n"
        "@omnidecode.judge('sour')\n"
        "def sour(candidates):\n"
        "    raise OSError('no taste')\n"
    )
    model = str(Path(__file__).resolve().parent.parent / "models" / "countdown-ar")

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "omnidecode",
            "generate",
            "3,4,5>12=",
            "--model",
            model,
            "--plugin",
            str(plugin),
        ]
        return subprocess.run([*command, "--max-tokens", "8", *flags], capture_output=True, text=True, timeout=300)

    search = ("--strategy", "best-of-n", "--param", "texts=4", "--temperature", "1", "--seed", "1")
    found = run(*search, "--judge", "longest", "--json")
    assert found.returncode == 0, found.stderr
    outputs = json.loads(found.stdout)[0]["outputs"]
    assert [one["score"] for one in outputs] == sorted((len(one["text"]) for one in outputs), reverse=True)
    assert [one["beside"] for one in outputs] == [None, 0, 0, 0]
    failed = run(*search, "--judge", "sour")
    assert failed.returncode == 1 and "in sour" in failed.stderr and "OSError: no taste" in failed.stderr
    refused = run("--judge", "longest")
    assert refused.returncode == 2 and "asks none" in refused.stderr
