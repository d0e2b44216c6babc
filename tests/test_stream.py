"""Deltas while they are committed, blocking and for asyncio; cancelling; Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from omnidecode import LLM, RequestError, SamplingParams

CHAT = [{"role": "user", "content": "List five animals that live in the sea, one per line."}]


@pytest.mark.parametrize("strategy", ["plain", "token-recycling"])
def test_deltas_add_up(llm: LLM, strategy: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=32, logprobs=1)
    whole = llm.chat(CHAT, params, strategy=strategy)[0].outputs[0]
    stream = llm.stream(CHAT, params, strategy=strategy)
    deltas = list(stream)
    assert len(deltas) > 3
    assert "".join(d.text for d in deltas) == whole.text == stream.result.outputs[0].text
    assert [t for d in deltas for t in d.token_ids] == whole.token_ids
    assert [e for d in deltas for e in d.logprobs or []] == whole.logprobs
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == whole.finish_reason
    assert stream.result.finished and stream.result.usage.forwards > 0


def test_a_stop_string_is_never_half_said(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=32, stop="9, 1")
    text = ""
    for delta in llm.stream("1, 2, 3, 4,", params):
        text += delta.text
        assert "9" not in text
    assert text.endswith("8, ")


def test_text_never_splits_a_character(llm: LLM) -> None:
    whales = "🐋🐬🦭🐳" * 3  # each character is several tokens
    deltas = list(llm.stream(whales, SamplingParams(temperature=0, max_tokens=24)))
    text = "".join(delta.text for delta in deltas)
    assert "🐳" in text and "\ufffd" not in text
    assert text == llm.detokenize([token for delta in deltas for token in delta.token_ids])


def test_several_answers_interleave(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", SamplingParams(n=2, temperature=1, seed=3, max_tokens=16))
    texts = {0: "", 1: ""}
    order = []
    for delta in stream:
        texts[delta.index] += delta.text
        order.append(delta.index)
    assert [o.text for o in stream.result.outputs] == [texts[0], texts[1]]
    assert order != sorted(order)  # both run in one batch


def test_leaving_a_stream_cancels_it(llm: LLM) -> None:
    start = time.perf_counter()
    with llm.stream("Once upon a time", SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)) as stream:
        for _, _ in zip(range(3), stream, strict=False):
            pass
    assert not stream.result.finished
    assert list(stream) == []
    assert time.perf_counter() - start < 20
    assert llm.generate("1, 2,", SamplingParams(temperature=0, max_tokens=2))[0].finished


def test_template_arguments_need_a_conversation(llm: LLM) -> None:
    with pytest.raises(TypeError, match="enable_thinking"):
        llm.stream("plain text", enable_thinking=False)


def test_asyncio(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=16)
    prompts = [f"{i}, {i + 1}, {i + 2}," for i in range(8)]
    wanted = [o.outputs[0].text for o in llm.generate(prompts, params)]

    async def follow(prompt: str) -> str:
        return "".join([delta.text async for delta in llm.astream(prompt, params, strategy="token-recycling")])

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticker = asyncio.create_task(tick())
        assert await asyncio.gather(*map(follow, prompts)) == wanted
        assert [o.outputs[0].text for o in await llm.agenerate(prompts, params)] == wanted
        assert (await llm.achat(CHAT, params))[0].finished
        ticker.cancel()
        assert ticks > 5  # the loop was never blocked
        with pytest.raises(RequestError):
            await llm.agenerate([], strategy="no-such")
            await llm.agenerate("x", strategy="no-such")

    asyncio.run(main())


def test_cancelling_a_task_cancels_its_request(llm: LLM) -> None:
    async def main() -> None:
        params = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
        task = asyncio.create_task(llm.agenerate("Once", params))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    start = time.perf_counter()
    asyncio.run(main())
    llm.generate("Once", SamplingParams(temperature=0, max_tokens=2))
    assert time.perf_counter() - start < 20


def test_the_gil_is_free_while_it_runs(llm: LLM) -> None:
    count = 0
    done = threading.Event()

    def spin() -> None:
        nonlocal count
        while not done.is_set():
            count += 1
            time.sleep(0.001)

    thread = threading.Thread(target=spin)
    thread.start()
    llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=32, ignore_eos=True))
    done.set()
    thread.join()
    assert count > 20


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_control_c_within_a_step() -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys, time
        # A runner in the background hands down an ignored SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from omnidecode import LLM, SamplingParams
        llm = LLM(os.environ.get("OMNIDECODE_TEST_GGUF"))
        print("ready", flush=True)
        try:
            llm.generate("Once", SamplingParams(temperature=0, max_tokens=7000, ignore_eos=True))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            print(len(llm.generate("Once", SamplingParams(temperature=0, max_tokens=3))[0].outputs[0].token_ids), flush=True)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert time.perf_counter() - start < 3
    assert process.stdout.readline() == "3\n"
    assert process.wait(30) == 0
