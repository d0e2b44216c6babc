"""Strategies written in Python: the same verbs, in the same batch, and what happens when they go wrong."""

from __future__ import annotations

import asyncio
import gc

import pytest

import omnidecode
from omnidecode import LLM, Plan, RequestError, SamplingParams, StrategyError, Tree

PROMPT = "1, 2, 3, 4,"
PARAMS = SamplingParams(temperature=0, max_tokens=16)


@omnidecode.strategy("python-plain", guarantee="exact")
async def python_plain(seq):
    """One token a forward."""
    while not seq.finished:
        seen = await seq.forward()
        seq.push(seen.root.choice)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_plain_in_python_is_plain(llm: LLM, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=16, stop="!")
    ours, plain, named = llm.generate([PROMPT] * 3, params, strategy=[python_plain(), "plain", "python-plain"])
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids == named.outputs[0].token_ids
    assert ours.usage.forwards == plain.usage.forwards
    assert (ours.strategy, ours.guarantee) == ("python-plain", "exact")


def test_tree_accept_and_readouts(llm: LLM) -> None:
    plain = llm.generate(PROMPT, PARAMS)[0].outputs[0].token_ids
    notes: dict[str, object] = {}

    @omnidecode.strategy("oracle-tree")
    async def oracle_tree(seq, *, wide: int = 2):
        start = len(seq.tokens)
        seq.push((await seq.forward(Plan(top=4, stats=True))).root.choice)
        while not seq.finished:
            done = len(seq.tokens) - start
            tree = Tree()
            node = None
            for token in plain[done : done + 3]:
                tree.add(0, parent=node)  # a wrong sibling
                node = tree.add(token, parent=node)
            seen = await seq.forward(Plan.tree(tree, top=wide))
            row = seen.root
            assert row.top[0][0] == row.choice and len(row.top) == wide
            path, next_token = tree.match(seen)
            notes.setdefault("path", path)
            seq.accept(path)
            seq.push(next_token)

    (output,) = llm.generate(PROMPT, PARAMS, strategy=oracle_tree(wide=3))
    assert output.outputs[0].token_ids == plain
    assert notes["path"] == [1, 3, 5]
    assert output.usage.forwards < 8 and output.usage.accepted > 6 and output.usage.drafted >= output.usage.accepted


def test_fork_gather_adopt_rollback(llm: LLM) -> None:
    @omnidecode.strategy("best-of-two")
    async def best_of_two(seq):
        seq.push((await seq.forward()).root.choice)
        trial = seq.fork()
        trial.push((await trial.forward()).root.choice)
        trial.rollback(len(seq))
        assert trial.tokens == seq.tokens
        with pytest.raises(StrategyError, match="handed to the reader"):
            seq.rollback(1)
        twins = [seq.fork(role) for role in (1, 2)]
        while not all(twin.finished for twin in twins):
            going = [twin for twin in twins if not twin.finished]
            for twin, seen in zip(going, await omnidecode.gather(*(twin.forward() for twin in going))):
                twin.push(seen.root.choice)
        assert twins[0].tokens != twins[1].tokens  # forks draw their own noise
        seq.adopt(max(twins, key=lambda twin: twin.tokens))

    params = SamplingParams(temperature=1.0, seed=9, max_tokens=12)
    first, again = (llm.generate(PROMPT, params, strategy="best-of-two")[0] for _ in range(2))
    assert first.outputs[0].token_ids == again.outputs[0].token_ids
    assert len(first.outputs[0].token_ids) == 12 and first.guarantee == "approximate"
    assert first.outputs[0].text == llm.detokenize(first.outputs[0].token_ids)


def test_logits_and_hidden_reach_python(llm: LLM) -> None:
    shapes = []

    @omnidecode.strategy("reader")
    async def reader(seq):
        seen = await seq.forward(Plan(logits=True, logprobs=[5, 6]))
        row = seen.root
        shapes.append((row.logits.shape, len(row.logprobs)))
        seq.push(max(range(row.logits.shape[1]), key=row.logits.row(0).__getitem__))

    output = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=1), strategy="reader")[0]
    assert output.outputs[0].token_ids == llm.generate(PROMPT, PARAMS)[0].outputs[0].token_ids[:1]
    assert shapes == [((1, llm.card["vocab"]), 2)]


def test_a_bad_plan_is_raised_at_the_await(llm: LLM) -> None:
    caught = []

    @omnidecode.strategy("careful")
    async def careful(seq):
        try:
            await seq.forward(Plan.chain([10**9]))
        except RequestError as error:
            caught.append(str(error))
        await python_plain.__wrapped__(seq)

    (output,) = llm.generate(PROMPT, PARAMS, strategy="careful")
    assert output.outputs[0].token_ids == llm.generate(PROMPT, PARAMS)[0].outputs[0].token_ids
    assert len(caught) == 1 and str(10**9) in caught[0]


def test_errors_keep_their_cause_and_hurt_one_request(llm: LLM) -> None:
    class Mine(Exception):
        pass

    @omnidecode.strategy("mine")
    async def mine(seq):
        await seq.forward()
        raise Mine("no")

    with pytest.raises(StrategyError, match="Mine: no") as error:
        llm.generate(PROMPT, PARAMS, strategy="mine")
    assert isinstance(error.value.__cause__, Mine) and error.value.__cause__.__traceback__ is not None

    @omnidecode.strategy("sleeps")
    async def sleeps(seq):
        await asyncio.sleep(0)

    with pytest.raises(StrategyError, match="await"):
        llm.generate(PROMPT, PARAMS, strategy="sleeps")
    assert llm.generate(PROMPT, PARAMS)[0].finished


def test_a_sequence_dies_with_its_request(llm: LLM) -> None:
    kept = []

    @omnidecode.strategy("leaks")
    async def leaks(seq):
        kept.extend([seq, seq.fork(1)])
        seq.push((await seq.forward()).root.choice)

    llm.generate(PROMPT, PARAMS, strategy="leaks")
    for seq in kept:
        with pytest.raises(StrategyError, match="while its request runs"):
            seq.push(1)
        with pytest.raises(StrategyError):
            seq.tokens  # noqa: B018
    kept.clear()
    gc.collect()
    assert llm.generate(PROMPT, PARAMS)[0].finished


def test_finally_runs_when_cancelled(llm: LLM) -> None:
    ended = []

    @omnidecode.strategy("tidy")
    async def tidy(seq):
        try:
            while seq.push((await seq.forward()).root.choice) is not None:
                pass
        finally:
            ended.append(True)

    params = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
    with llm.stream(PROMPT, params, strategy="tidy") as stream:
        next(stream)
    llm.generate(PROMPT, PARAMS)
    assert ended == [True]


def test_registration_errors() -> None:
    with pytest.raises(RequestError, match="engine's own"):
        omnidecode.strategy("plain")
    with pytest.raises(RequestError, match="guarantee"):
        omnidecode.strategy("x", guarantee="perfect")
    with pytest.raises(RequestError, match="async def"):
        omnidecode.strategy("x")(lambda seq: None)
    with pytest.raises(RequestError, match="keyword-only"):

        @omnidecode.strategy("x")
        async def positional(seq, k=3): ...

    @omnidecode.strategy("typed")
    async def typed(seq, *, k: int = 3, mode: str | None = None): ...

    assert [(p["name"], p["type"], p["default"]) for p in typed.spec["parameters"]] == [
        ("k", "int", 3),
        ("mode", "str?", None),
    ]
    with pytest.raises(RequestError, match="`k` expects int, found 'a'"):
        typed(k="a")
    with pytest.raises(TypeError, match="no parameter 'z'"):
        typed(z=1)
