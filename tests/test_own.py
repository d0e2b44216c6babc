"""Strategies of one's own: drafters, unmaskers and canvases in Python, found by name, held to the laws."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import omnidecode
from omnidecode import LLM, Drafter, Plan, RequestError, SamplingParams, StrategyError, Tree, Unmasker
from omnidecode.testing import LawBroken, check_laws, wait_until_idle

MODELS = Path(__file__).resolve().parent.parent / "models"
QUESTIONS = ["3+4-2+3;5-1;", "1+1+1;9-3-2;", "7-5+2;"]
SUDOKU = ["0030400002000004=", "1034030002104002="]


@pytest.fixture(scope="module")
def chains() -> Iterator[LLM]:
    with LLM(MODELS / "chains-ar") as model:
        yield model


@pytest.fixture(scope="module")
def sudoku() -> Iterator[LLM]:
    with LLM(MODELS / "sudoku-diffusion") as model:
        yield model


@omnidecode.drafter("own-echo")
class Echo(Drafter):
    """Drafts what followed the last token when it was last seen."""

    def __init__(self, *, length: int = 4):
        self.length = length

    def draft(self, token_ids, room):
        *before, last = token_ids
        if last not in before:
            return []
        at = len(before) - before[::-1].index(last)
        return token_ids[at : at + min(self.length, room)]


@omnidecode.drafter("own-tree")
class TopTree(Drafter):
    """Drafts the two likeliest tokens of the last row, in a tree that learns from every forward."""

    top = 2

    def __init__(self):
        self.guess, self.seen = [], 0

    def draft(self, token_ids, room):
        tree = Tree()
        for token in self.guess:
            below = tree.add(token)
            tree.add(token, below)
        return tree

    def learn(self, tree, seen):
        self.guess = [token for token, _ in seen.root.top]
        assert all(len(seen[node].top) == 2 for node in range(len(tree)))
        self.seen += 1


@pytest.mark.parametrize("name", ["own-echo", "own-tree"])
def test_drafters_hold_the_laws(chains: LLM, name: str) -> None:
    laws = check_laws(name, chains, prompts=QUESTIONS, seeds=[0, 1])
    assert laws.guarantee == "exact" and laws.held["exact"] == 24 and laws.held["cancel"] == 6
    drafted = chains.generate(QUESTIONS[0], SamplingParams(temperature=0, max_tokens=24), strategy=name)[0].usage
    assert drafted.drafted > 0


def test_a_useless_drafter_costs_no_rows(chains: LLM) -> None:
    @omnidecode.drafter("own-nonsense")
    class Nonsense(Drafter):
        def draft(self, token_ids, room):
            return [2] * room

    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    plain, ours = (chains.generate(QUESTIONS[0], params, strategy=name)[0] for name in ("plain", "own-nonsense"))
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
    assert ours.usage.drafted < 128, "of two thousand that it offers: one at a time after a few rejected drafts"


def test_built_in_strategies_hold_them_too(chains: LLM) -> None:
    for strategy in ("plain", "token-recycling", {"name": "beam", "width": 2}, {"name": "best-of-n", "n": 2}):
        laws = check_laws(
            strategy, chains, prompts=QUESTIONS, judge=lambda candidates: [len(c.text) for c in candidates]
        )
        assert set(laws.held) >= {"parameters", "same seed", "length", "stop", "cancel", "usage"}
    with LLM(MODELS / "chains-ar", draft=MODELS / "countdown-ar") as pair:
        laws = check_laws({"name": "rsd-s"}, pair, prompts=QUESTIONS[:1])
        assert laws.held["distribution"] == 400


def broken(name: str, guarantee: str, decode) -> str:
    decode.__name__ = name
    omnidecode.strategy(name, guarantee=guarantee)(decode)
    return name


def test_what_is_wrong_is_flagged(chains: LLM) -> None:
    async def second(seq):
        while not seq.finished:
            seq.push((await seq.forward(Plan(top=2))).root.top[1][0])

    async def dice(seq):
        while not seq.finished:
            seq.push((await seq.forward(Plan(top=3))).root.top[random.randrange(3)][0])

    async def flat(seq):
        while not seq.finished:
            await seq.forward(Plan(top=3))
            seen = (await seq.forward(Plan(top=3))).root
            seq.push(seen.top[(seq.seed + 7 * len(seq)) % 3][0])

    for name, guarantee, decode, law in (
        ("own-second", "exact", second, "exact, token_ids"),
        ("own-dice", "approximate", dice, "same seed"),
        ("own-flat", "distribution", flat, "distribution: expected 'χ²"),
    ):
        with pytest.raises(LawBroken, match=law):
            check_laws(broken(name, guarantee, decode), chains, prompts=QUESTIONS)
    right = broken("own-right", "distribution", plain_again)
    assert check_laws(right, chains, prompts=QUESTIONS).held["distribution"] == 400


async def plain_again(seq):
    while not seq.finished:
        seq.push((await seq.forward()).root.choice)


@omnidecode.unmasker("own-surest")
class Surest(Unmasker):
    """Commits the surest guesses."""

    def __init__(self, *, count: int = 1, block: int = 16):
        self.count, self.block = count, block

    def unmask(self, view, masked, canvas):
        return sorted(masked, key=lambda place: -view[place].logprob)[: self.count]


def test_an_unmasker_is_the_static_loop(sudoku: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=16)
    for steps, count in ((16, 1), (8, 2)):
        ours = sudoku.generate(SUDOKU, params, strategy={"name": "own-surest", "count": count})
        theirs = sudoku.generate(SUDOKU, params, strategy={"name": "llada", "block": 16, "steps": steps})
        for one, other in zip(ours, theirs):
            assert one.outputs[0].token_ids == other.outputs[0].token_ids and one.usage.nfe == other.usage.nfe == steps
            assert {o.source for o in one.outputs[0].origins} == {"canvas"}
            assert all(0 < o.confidence <= 1 for o in one.outputs[0].origins)
    check_laws("own-surest", sudoku, prompts=SUDOKU, seeds=[0])


def test_a_block_causal_model_goes_block_by_block() -> None:
    with LLM(MODELS / "chains-block") as llm:
        params = SamplingParams(temperature=0, max_tokens=32)
        ours, theirs = (llm.generate(QUESTIONS[0], params, strategy=name)[0] for name in ("own-surest", "sdar"))
    assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids and ours.usage.nfe == theirs.usage.nfe


def test_every_verb_of_a_canvas(sudoku: LLM) -> None:
    seen: dict[str, object] = {}

    @omnidecode.strategy("own-canvas", needs=["mask"])
    async def own_canvas(seq):
        prompt, end = len(seq), len(seq) + 8
        with seq.canvas(0, end) as canvas:
            assert canvas.places == (0, end) and canvas.open_places == (prompt, end)
            assert canvas.masked() == list(range(prompt, end))
            with pytest.raises(StrategyError, match="open canvas"):
                seq.push(5)
            with pytest.raises(StrategyError, match="open canvas"):
                await seq.forward()
            assert len(seq) == end and seq.tokens[-1] == canvas.mask_token
            view = await canvas.look(top=2, logprob=True)
            first = view[prompt].choice
            twice = await canvas.look(about=[prompt], drafts=[{}, {prompt + 1: view[prompt + 1].choice}])
            seen["drafts"] = (twice.at(prompt).choice, twice.at(prompt, 1).choice)
            with pytest.raises(RequestError, match="were read"):
                twice.at(prompt + 1, 5)
            with pytest.raises(RequestError, match="look: expected one of mask"):
                canvas.look(kv="discard")
            canvas.ban([first])
            again = await canvas.look(about=[prompt])
            seen["banned"] = again[prompt].choice != first
            canvas.commit(prompt, first, 0.5)
            canvas.remask(prompt)
            assert prompt in canvas.masked((prompt, prompt + 1))
            with pytest.raises(StrategyError, match="undecided"):
                canvas.settle(end)
            canvas.fill(prompt, first)
            canvas.expand(2)
            canvas.truncate(end + 1)
            assert canvas.places == (0, end + 1) and [mark[0] for mark in canvas.history][:2] == [prompt] * 2
            assert canvas.settle(prompt + 4)
        seq.push(first)

    output = sudoku.generate(SUDOKU[0], SamplingParams(temperature=0, max_tokens=16), strategy="own-canvas")[0]
    ids = output.outputs[0].token_ids
    assert len(ids) == 5 and len(set(ids)) == 1 and seen["banned"] is True and len(seen["drafts"]) == 2
    assert [o.source for o in output.outputs[0].origins] == ["canvas"] * 4 + ["target"]
    wait_until_idle(sudoku)


def test_a_canvas_left_open_leaves_nothing(sudoku: LLM, chains: LLM) -> None:
    @omnidecode.strategy("own-left")
    async def own_left(seq):
        canvas = seq.canvas(0)
        await canvas.look()
        if seq.temperature > 0:
            raise KeyError("left")

    assert sudoku.generate(SUDOKU[0], SamplingParams(temperature=0), strategy="own-left")[0].outputs[0].token_ids == []
    with pytest.raises(StrategyError, match="left"):
        sudoku.generate(SUDOKU[0], SamplingParams(temperature=1), strategy="own-left")
    with pytest.raises((RequestError, StrategyError), match="no mask token"):
        chains.generate(QUESTIONS[0], strategy="own-left")
    wait_until_idle(sudoku)


def test_an_unmasker_that_decides_nothing_is_stopped(sudoku: LLM) -> None:
    @omnidecode.unmasker("own-idle")
    class Idle(Unmasker):
        def unmask(self, view, masked, canvas):
            return []

    with pytest.raises(StrategyError, match="at least one place"):
        sudoku.generate(SUDOKU[0], SamplingParams(temperature=0, max_tokens=16), strategy="own-idle")


def test_an_unmasker_may_write_and_take_back(sudoku: LLM) -> None:
    taken: list[int] = []

    @omnidecode.unmasker("own-doubts")
    class Doubts(Unmasker):
        """Writes everything at once, then takes back the least sure place, then writes it for good."""

        def __init__(self):
            self.step = 0

        def unmask(self, view, masked, canvas):
            self.step += 1
            if self.step == 1:
                choice = {place: view[place].choice for place in masked}
                last = min(masked, key=lambda place: view[place].logprob)
                taken.append(last)
                for place, token in choice.items():
                    canvas.commit(place, token)
                return {last: None}
            assert masked == taken
            return {taken[0]: view[taken[0]].choice}

    output = sudoku.generate(SUDOKU[0], SamplingParams(temperature=0, max_tokens=16), strategy="own-doubts")[0]
    forwards = [origin.forward for origin in output.outputs[0].origins]
    prompt = len(output.prompt_token_ids)
    assert output.usage.nfe == 2 and len(output.outputs[0].token_ids) == 16
    assert [at + prompt for at, forward in enumerate(forwards) if forward == 2] == taken


def test_registration() -> None:
    with pytest.raises(RequestError, match="derived from omnidecode.Drafter"):
        omnidecode.drafter("x")(object)
    with pytest.raises(RequestError, match="derived from omnidecode.Unmasker"):
        omnidecode.unmasker("x")(Echo)
    with pytest.raises(RequestError, match="engine's own"):
        omnidecode.drafter("plain")(Drafter)
    spec = next(entry for entry in omnidecode.registry() if entry["name"] == "own-echo")
    assert (
        spec["guarantee"] == "exact"
        and spec["parameters"][0]["name"] == "length"
        and spec["summary"].startswith("Drafts")
    )


def test_a_failure_hurts_one_request(chains: LLM) -> None:
    @omnidecode.drafter("own-fails")
    class Fails(Drafter):
        def draft(self, token_ids, room):
            raise ZeroDivisionError("no draft")

    def bend(token_ids, logits):
        raise LookupError("no law")

    for strategies, companions, text in ((["own-fails", "plain"], (), "no draft"), (["plain"] * 2, [bend], "no law")):
        with pytest.raises(StrategyError, match=text) as caught:
            chains.generate(QUESTIONS[:2], strategy=strategies, companions=companions)
        assert text in caught.value.traceback and ", line " in caught.value.traceback
        if not companions:
            assert caught.value.outputs[1].finished
    wait_until_idle(chains)


def test_closing_from_inside_ends_it() -> None:
    with LLM(MODELS / "chains-ar") as model:

        @omnidecode.strategy("own-closes")
        async def own_closes(seq):
            seq.push((await seq.forward()).root.choice)
            model.close()
            while not seq.finished:
                seq.push((await seq.forward()).root.choice)

        with pytest.raises(omnidecode.Closed, match="shut down"):
            model.generate(QUESTIONS[0], strategy="own-closes")


def test_a_package_brings_them(tmp_path: Path) -> None:
    """As an installed package would: by entry points, in a fresh process, from Python and from the shell."""
    (tmp_path / "own_package.py").write_text(
        textwrap.dedent("""
        from omnidecode import Drafter, Unmasker

        async def slow(seq, *, wait: int = 0):
            "One token a forward."
            while not seq.finished:
                seq.push((await seq.forward()).root.choice)

        class Nothing(Drafter):
            "Drafts nothing."
            def draft(self, token_ids, room):
                return []

        class First(Unmasker):
            "From left to right."
            def unmask(self, view, masked, canvas):
                return masked[:1]

        def even(token_ids, logits, *, by: float = 100.0):
            for token in range(1, len(logits), 2):
                logits[token] -= by

        def longest(candidates):
            return [len(c.text) for c in candidates]
        """)
    )
    info = tmp_path / "own_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[omnidecode.strategies]\nslow = own_package:slow\nnothing = own_package:Nothing\nfirst = own_package:First\n"
        "gone = own_package:gone\n[omnidecode.companions]\neven = own_package:even\n"
        "[omnidecode.judges]\nlongest = own_package:longest\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", "omnidecode", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    def answer(*flags: str) -> list[int]:
        flags = ("--model", str(MODELS / "chains-ar"), "--temperature", "0", "--max-tokens", "8", "--json", *flags)
        found = run("generate", QUESTIONS[0], *flags)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)[0]["outputs"][0]["token_ids"]

    assert answer("--strategy", "slow", "--param", "wait=3") == answer("--strategy", "nothing") == answer()
    assert all(token % 2 == 0 for token in answer("--companion", "even:by=1000", "--strategy", "slow"))
    assert len(answer("--strategy", "best-of-n", "--judge", "longest")) > 0
    listed = {entry["name"] for entry in json.loads(run("strategies", "--json").stdout)}
    assert {"slow", "nothing", "first"} <= listed and "gone" not in listed
    refused = run("generate", "x", "--model", str(MODELS / "chains-ar"), "--strategy", "gone")
    assert refused.returncode == 2 and "cannot be loaded" in refused.stderr
    bench = run("bench", "--model", str(MODELS / "chains-ar"), "--strategies", "slow", "--completion", "--rounds", "1",
                "--max-tokens", "4", "--limit", "1", "--json")  # fmt: skip
    assert json.loads(bench.stdout)["rows"][1]["identical"] is True, bench.stderr
