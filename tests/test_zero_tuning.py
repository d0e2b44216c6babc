"""Calibration of ZeroTuning: batches, counters, neutral settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from omnidecode import LLM, RequestError, SamplingParams, report
from omnidecode.zero_tuning import Calibration, Example, calibrate, evaluate

WORDS = {" good": ["wonderful", "superb", "lovely"], " bad": ["awful", "boring", "ugly"]}
LABELS = list(WORDS)
EXAMPLES = [
    Example(f"Review: The film was {word}.\nIs the review good or bad? It is", label)
    for label in WORDS
    for word in WORDS[label]
]


@pytest.fixture(scope="module")
def found(llm: LLM) -> Calibration:
    return calibrate(llm, EXAMPLES, LABELS, gammas=(0.6, 1.0, 2.0))


def test_the_count_of_forwards(llm: LLM, found: Calibration) -> None:
    heads, n = llm.card["heads"], len(EXAMPLES)
    grid = 3 if found.direction != "none" else 1
    assert found.usage.host_reads == (2 * heads + grid) * n, "contract 9: one pass each"
    assert len(found.up) == len(found.down) == heads
    assert [gamma for gamma, _ in found.grid] in ([0.6, 1.0, 2.0], [1.0])


def test_what_is_chosen_is_what_the_grid_says(llm: LLM, found: Calibration) -> None:
    assert found.best.metric == max(score.metric for _, score in found.grid) >= found.base.metric
    (score,), _ = evaluate(llm, EXAMPLES, LABELS, [{k: v for k, v in found.companion.items() if k != "name"}])
    assert score == found.best, "the same setting again, to the bit"
    for head in found.heads:
        gains = (found.up, found.down) if found.direction == "up" else (found.down, found.up)
        assert gains[0][head] > 0 and gains[0][head] >= gains[1][head]
    answer = llm.generate(EXAMPLES[0].prompt, SamplingParams(temperature=0, max_tokens=4), companions=[found.companion])
    assert len(answer[0].outputs[0].token_ids) == 4


def test_a_batch_is_its_settings_one_by_one(llm: LLM) -> None:
    settings = [None, {"gamma": 3.0, "heads": [1, 4]}, {"gamma": 0.25}]
    together, _ = evaluate(llm, EXAMPLES[:4], LABELS, settings)
    alone = [evaluate(llm, EXAMPLES[:4], LABELS, [setting])[0][0] for setting in settings]
    assert together == alone
    assert len({score.entropy for score in together}) == 3, "the settings do something"


def test_neutral_settings_are_absent(llm: LLM) -> None:
    """Contracts 1 and 5: gamma 1, or no head in a calibration that chose none, is the baseline to the bit."""
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=24, logprobs=1)
    plain = llm.generate(EXAMPLES[0].prompt, params)[0].outputs[0]
    neutral = llm.generate(EXAMPLES[0].prompt, params, companions=[{"name": "zero-tuning", "gamma": 1.0, "heads": [2]}])
    assert (neutral[0].outputs[0].token_ids, neutral[0].outputs[0].logprobs) == (plain.token_ids, plain.logprobs)
    (base, one), _ = evaluate(llm, EXAMPLES[:3], LABELS, [None, {"gamma": 1.0}])
    assert base == one


def test_the_unsupervised_search_reads_no_labels(llm: LLM) -> None:
    """Contract 10: wrong answers change nothing, and the metric is the entropy."""
    bare = [Example(example.prompt) for example in EXAMPLES[:3]]
    wrong = [Example(example.prompt, "never read") for example in EXAMPLES[:3]]
    one, two = (calibrate(llm, given, gammas=(0.5, 2.0)) for given in (bare, wrong))
    assert one == two and not one.supervised
    assert one.best.metric == -one.best.entropy and one.best.accuracy is None
    assert one.best.entropy <= one.base.entropy


def test_report_and_shell(llm: LLM, found: Calibration, tmp_path: Path) -> None:
    page = report.render(report.load(json.dumps(found.to_dict())))
    assert "What each head gained alone" in page and "gamma" in page
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps({"prompt": e.prompt, "answer": e.answer}) + "\n" for e in EXAMPLES[::4]))
    command = [sys.executable, "-m", "omnidecode", "calibrate", str(path), "--model", str(llm.path), "--json"]
    said = subprocess.run(
        [*command, "--label", " good", "--label", " bad", "--gamma", "2"], capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, said.stderr
    expected = calibrate(llm, EXAMPLES[::4], LABELS, gammas=(2.0,))
    assert json.loads(said.stdout) == json.loads(json.dumps(expected.to_dict()))


def test_what_does_not_fit_is_refused(llm: LLM) -> None:
    for examples, labels in (
        ([], LABELS),
        ([Example("a")], LABELS),
        ([Example("a", " good")], [" good"]),
        ([Example("a", " good")], [" good", " good"]),
        ([Example("a", "")], ["", " good"]),
    ):
        with pytest.raises(RequestError, match="expected"):
            calibrate(llm, examples, labels)
    with pytest.raises(RequestError, match="above 1"):
        calibrate(llm, EXAMPLES[:1], LABELS, up=0.5)
