"""Prompts in, answers out."""

from __future__ import annotations

import math
import threading

import pytest

import omnidecode
from omnidecode import LLM, RequestError, RequestOutput, SamplingParams, TokenRecycling

CHAT = [{"role": "user", "content": "List five animals that live in the sea, one per line."}]


def ids(output: RequestOutput, index: int = 0) -> list[int]:
    return output.outputs[index].token_ids


def test_one_prompt_many_prompts_text_and_ids(llm: LLM, greedy: SamplingParams) -> None:
    text = "The capital of France is"
    (one,) = llm.generate(text, greedy)
    as_ids = llm.generate(llm.tokenize(text), greedy)[0]
    listed = llm.generate([text, "1, 2, 3, 4,", llm.tokenize(text), {"prompt": text}], greedy)
    assert "Paris" in one.outputs[0].text
    assert one.prompt == text and one.prompt_token_ids == llm.tokenize(text)
    assert as_ids.prompt is None
    assert [ids(o) for o in (as_ids, listed[0], listed[2], listed[3])] == [ids(one)] * 4
    assert one.finished and len(ids(one)) == 24 and one.outputs[0].finish_reason == "length"
    assert listed[1].outputs[0].text.startswith(" 5, 6")


def test_strategies_agree_and_say_what_they_cost(llm: LLM) -> None:
    for params in (SamplingParams(temperature=0, max_tokens=40), SamplingParams(temperature=1, seed=5, max_tokens=40)):
        recycling = TokenRecycling(adaptive=False, max_nodes=12)  # drafts whatever the machine is busy with
        llm.chat(CHAT, params, strategy=recycling)  # fills its table
        plain, recycled, looked = llm.chat([CHAT] * 3, params, strategy=["plain", recycling, "prompt-lookup"])
        assert ids(recycled) == ids(plain) == ids(looked)
        assert plain.outputs[0].text == recycled.outputs[0].text
        assert {o.guarantee for o in (plain, recycled, looked)} == {"exact"}
        assert [o.strategy for o in (plain, recycled)] == ["plain", "token-recycling"]
        assert plain.usage.forwards == len(ids(plain)) and plain.usage.drafted == 0
        assert recycled.usage.forwards < plain.usage.forwards and recycled.usage.accepted > 0
        assert recycled.usage.accepted <= recycled.usage.drafted < recycled.usage.rows
        assert plain.usage.host_reads >= 1


def test_parameters_one_per_prompt(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (3, 7)]
    assert [len(ids(o)) for o in llm.generate(["Once", "Twice"], params)] == [3, 7]
    with pytest.raises(RequestError, match="one per prompt"):
        llm.generate(["Once"], params)
    with pytest.raises(RequestError, match="one per prompt"):
        llm.generate(["Once"], params[0], strategy=["plain", "plain"])


def test_n_answers_with_derived_seeds(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=11, max_tokens=12)
    (first,), (again,) = llm.generate("My favourite colour is", params), llm.generate("My favourite colour is", params)
    assert [o.index for o in first.outputs] == [0, 1, 2]
    assert [ids(first, i) for i in range(3)] == [ids(again, i) for i in range(3)]
    assert len({tuple(ids(first, i)) for i in range(3)}) == 3
    # Each answer is what its own seed gives alone.
    for one in first.outputs:
        alone = llm.generate("My favourite colour is", SamplingParams(temperature=1.0, seed=one.seed, max_tokens=12))[0]
        assert ids(alone) == one.token_ids
    assert first.outputs[0].seed == 11
    assert first.usage.forwards == sum(o.usage.forwards for o in first.outputs)


def test_no_seed_is_a_fresh_seed_that_is_reported(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12)
    a, b = llm.generate(["Once upon a time"] * 2, params)
    assert a.outputs[0].seed != b.outputs[0].seed and ids(a) != ids(b)
    again = llm.generate("Once upon a time", params.with_seed(a.outputs[0].seed))[0]
    assert ids(again) == ids(a)


@pytest.mark.parametrize("strategy", ["plain", "token-recycling"])
def test_stop_strings(llm: LLM, strategy: str) -> None:
    base = SamplingParams(temperature=0, max_tokens=24)
    full = llm.generate("1, 2, 3, 4,", base, strategy=strategy)[0].outputs[0]
    assert ", 9, 10" in full.text
    cut = llm.generate("1, 2, 3, 4,", SamplingParams(temperature=0, max_tokens=24, stop=["9, 1"]), strategy=strategy)
    kept = llm.generate(
        "1, 2, 3, 4,",
        SamplingParams(temperature=0, max_tokens=24, stop="9, 1", include_stop_str_in_output=True),
        strategy=strategy,
    )
    assert cut[0].outputs[0].text == full.text[: full.text.index("9, 1")]
    assert kept[0].outputs[0].text == full.text[: full.text.index("9, 1") + 4]
    for output in (cut[0].outputs[0], kept[0].outputs[0]):
        assert (output.finish_reason, output.stop_reason) == ("stop", "9, 1")
        assert output.token_ids == full.token_ids[: len(output.token_ids)] and len(output.token_ids) < 24


def test_stop_tokens_min_tokens_and_eos(llm: LLM) -> None:
    full = llm.generate("1, 2, 3, 4,", SamplingParams(temperature=0, max_tokens=24))[0].outputs[0]
    stop = full.token_ids[4]
    at = full.token_ids.index(stop)
    ended = llm.generate("1, 2, 3, 4,", SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[stop]))[0].outputs[
        0
    ]
    assert ended.token_ids == full.token_ids[: at + 1]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", stop)
    short = SamplingParams(temperature=0, max_tokens=64)
    hello = [{"role": "user", "content": "Say only the word yes."}]
    natural = llm.chat(hello, short)[0].outputs[0]
    assert natural.finish_reason == "stop" and natural.stop_reason is None
    assert natural.token_ids[-1] in llm.card["eos"]
    longer = llm.chat(hello, SamplingParams(temperature=0, max_tokens=64, min_tokens=40))[0].outputs[0]
    assert len(longer.token_ids) >= 40 and not set(longer.token_ids[:40]) & set(llm.card["eos"])
    ignored = llm.chat(hello, SamplingParams(temperature=0, max_tokens=64, ignore_eos=True))[0].outputs[0]
    assert len(ignored.token_ids) == 64 and ignored.finish_reason == "length"


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3)
    for strategy in ("plain", "token-recycling"):
        (output,) = llm.generate("The capital of France is", params, strategy=strategy)
        one = output.outputs[0]
        assert one.logprobs is not None and len(one.logprobs) == 6
        rows = llm.logits(output.prompt_token_ids + one.token_ids)
        for step, (token, entry) in enumerate(zip(one.token_ids, one.logprobs, strict=True)):
            row = rows.row(len(output.prompt_token_ids) - 1 + step)
            top = max(row)
            lse = top + math.log(sum(math.exp(x - top) for x in row))
            assert entry[token].rank == 1 and len(entry) == 3
            assert entry[token].decoded_token == llm.detokenize([token])
            for id, logprob in entry.items():
                assert logprob.logprob == pytest.approx(row[id] - lse, abs=1e-3)
        assert one.cumulative_logprob == pytest.approx(sum(e[t].logprob for t, e in zip(one.token_ids, one.logprobs)))
    sampled = llm.generate("Once", SamplingParams(temperature=2.0, seed=1, max_tokens=8, logprobs=0))[0].outputs[0]
    assert sampled.logprobs is not None and all(set(e) == {t} for t, e in zip(sampled.token_ids, sampled.logprobs))


def test_bias_allowed_bad_words_and_penalties(llm: LLM) -> None:
    prompt = "The capital of France is"
    paris = ids(llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1))[0])[0]
    for params in (
        SamplingParams(temperature=0, max_tokens=8, logit_bias={paris: -100}),
        SamplingParams(temperature=0, max_tokens=8, bad_words=["Paris"]),
    ):
        for strategy in ("plain", "token-recycling"):
            assert paris not in ids(llm.generate(prompt, params, strategy=strategy)[0])
    only = SamplingParams(temperature=1, seed=0, max_tokens=8, allowed_token_ids=[paris])
    assert set(ids(llm.generate(prompt, only)[0])) == {paris}
    loop = "la la la la la la la la"
    free = llm.generate(loop, SamplingParams(temperature=0, max_tokens=16))[0].outputs[0]
    held = llm.generate(loop, SamplingParams(temperature=0, max_tokens=16, frequency_penalty=2.0))[0].outputs[0]
    assert len(set(held.token_ids)) > len(set(free.token_ids))


def test_companions_in_python(llm: LLM) -> None:
    prompt = "The capital of France is"
    paris = ids(llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1))[0])[0]
    seen: list[list[int]] = []

    def forbid(token_ids, logits):
        seen.append(list(token_ids))
        logits[paris] = -math.inf

    params = SamplingParams(temperature=0, max_tokens=8)
    plain = llm.generate(prompt, params, companions=[forbid])[0]
    assert paris not in ids(plain)
    prompt_ids = llm.tokenize(prompt)
    assert [s for s in seen if len(s) >= len(prompt_ids)] == [prompt_ids + ids(plain)[:i] for i in range(len(seen))]
    recycled = llm.generate(prompt, params, strategy="token-recycling", companions=[forbid])[0]
    assert ids(recycled) == ids(plain)

    @omnidecode.companion("forbid")
    def named(token_ids, logits, *, token: int = 0):
        logits[token] = -math.inf
        return logits

    by_name = llm.generate(prompt, params, companions=[{"name": "forbid", "token": paris}])[0]
    assert ids(by_name) == ids(plain)
    for bad, message in (
        ("unknown", "found 'unknown'"),
        ({"name": "forbid", "k": 1}, "no parameter 'k'"),
        (3, "expected"),
    ):
        with pytest.raises(RequestError, match=message):
            llm.generate(prompt, params, companions=[bad])

    def wrong(token_ids, logits):
        raise KeyError("my mistake")

    with pytest.raises(Exception, match="my mistake"):
        llm.generate(prompt, params, companions=[wrong])
    assert ids(llm.generate(prompt, params)[0])[0] == paris  # the engine lives on


def test_logits_and_score(llm: LLM) -> None:
    np = pytest.importorskip("numpy")
    tokens = llm.tokenize("The capital of France is")
    array = llm.logits(tokens)
    rows = np.from_dlpack(array)
    assert rows.shape == array.shape == (len(tokens), llm.card["vocab"]) and rows.dtype == np.float32
    assert np.array_equal(np.asarray(array)[-1], np.array(array.row(-1), np.float32))
    greedy = llm.generate(tokens, SamplingParams(temperature=0, max_tokens=1))[0]
    assert int(rows[-1].argmax()) == ids(greedy)[0]
    labels = [int(rows[-1].argmax()), 5, 100]
    last = rows[-1].astype(np.float64)
    wanted = last[labels] - (last.max() + np.log(np.exp(last - last.max()).sum()))
    assert np.allclose(llm.score("The capital of France is", labels), wanted, atol=1e-3)
    del array
    assert np.isfinite(rows).all()  # the memory outlives its first owner


def test_tokenize_round_trip(llm: LLM) -> None:
    for text in ("Hello, world!", "  spaces\tand\nlines ", "naïve café, 東京 🐋", ""):
        assert llm.detokenize(llm.tokenize(text)) == text
    rendered = llm.apply_chat_template(CHAT)
    assert rendered.endswith("<|im_start|>assistant\n")
    assert llm.detokenize(llm.tokenize(rendered, add_special_tokens=False), skip_special_tokens=False) == rendered


def test_from_several_threads(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    prompts = [f"{i}, {i + 1}, {i + 2}," for i in range(6)]
    alone = [ids(o) for o in llm.generate(prompts, params)]
    found: dict[int, list[int]] = {}

    def work(index: int) -> None:
        strategy = "token-recycling" if index % 2 else "plain"
        found[index] = ids(llm.generate(prompts[index], params, strategy=strategy)[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == alone


def test_a_prompt_that_was_met_before_costs_one_row_if_prefixes_are_kept(llm: LLM) -> None:
    text = "The quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly. Then"
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)

    def twice(of: LLM) -> list[RequestOutput]:
        return [of.generate(text, params)[0] for _ in range(2)]

    first, again = twice(llm)
    assert ids(first) == ids(again)
    assert first.usage.prompt_tokens % 32 > 2, "the prompt ends within a page"
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, again.usage.prompt_tokens - 1)
    assert first.usage.rows - again.usage.rows == again.usage.cached_tokens
    with LLM(llm.path, prefix_cache=False) as bare:
        outputs = twice(bare)
    assert [ids(o) for o in outputs] == [ids(first)] * 2
    assert [o.usage.cached_tokens for o in outputs] == [0, 0]
