"""The laws that hold for every strategy, for strategies of your own::

    from omnidecode.testing import check_laws

    def test_my_strategy():
        with LLM("model.gguf") as llm:
            check_laws("my-strategy", llm)

What is checked follows from what the strategy claims. A law that does not hold raises :class:`LawBroken`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._strategy import Strategy, resolve
from .errors import RequestError
from .llm import LLM
from .outputs import RequestOutput
from .sampling import SamplingParams

__all__ = ["LawBroken", "Laws", "check_laws", "wait_until_idle"]

PROMPTS = ("The capital of France is", "1, 2, 3, 4, 5,", "to be or not to be, to be or not")


class LawBroken(AssertionError):
    """A strategy does not do what it claims, or what every strategy must."""


@dataclass
class Laws:
    """What was checked: the number of requests under each law."""

    strategy: str
    guarantee: str
    held: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.strategy} ({self.guarantee}): " + ", ".join(f"{law} {n}" for law, n in self.held.items())


def check_laws(
    strategy: Any,
    llm: LLM,
    *,
    prompts: Sequence[Any] = PROMPTS,
    max_tokens: int = 12,
    seeds: Iterable[int] = (0,),
    companions: Sequence[Any] = (),
    judge: Any = None,
    draws: int = 400,
) -> Laws:
    """Hold a strategy, in any form that ``generate`` takes, to the laws that its guarantee claims.

    * ``exact``: greedy and sampled, token ids, text and end are those of plain decoding with the same seed and companions,
      alone and in one batch with plain decoding and other prompts; also cut by ``max_tokens`` and by stop conditions.
    * ``distribution``: the first two tokens of ``draws`` answers follow the model's law (three likeliest tokens, temperature
      1): a χ² test that a right strategy fails once in ten thousand times.
    * ``approximate`` strategies may refuse to sample, with a :class:`RequestError`; they are run greedily then.
    * every strategy: the same seed gives the same answer, alone and in company; ``max_tokens``, stop strings and stop tokens
      hold inside of multi-token commits; a cancelled request leaves no page and no row behind; ``usage`` is what the engine
      counted; unknown parameters and wrong types are refused, and so is a judge unless the strategy asks one.

    ``llm`` must have nothing else to do meanwhile. ``prompts``: texts or token ids that fit the model. Raises
    :class:`LawBroken`, and whatever a request fails with.
    """
    chosen = resolve(strategy)
    run = _Run(llm, chosen, list(prompts), max_tokens, companions, judge if chosen.spec.get("judged") else None)
    run.may_refuse_sampling()
    laws = Laws(chosen.name, chosen.guarantee)
    checks: list[tuple[str, Callable[[], int]]] = [("exact", run.exact)] if chosen.guarantee == "exact" else []
    checks += [("same seed", run.seeded), ("length", run.length), ("stop", run.stop)]
    checks += [("cancel", run.cancel), ("usage", run.usage)]
    laws.held["parameters"] = run.parameters()
    for seed in seeds:
        run.begin(seed)
        for law, check in checks:
            laws.held[law] = laws.held.get(law, 0) + check()
    if chosen.guarantee == "distribution":
        laws.held["distribution"] = run.distribution(draws)
    return laws


def wait_until_idle(llm: LLM, seconds: float = 5.0) -> dict[str, Any]:
    """:meth:`LLM.stats` once no request runs or waits. Raises :class:`LawBroken` if pages or rows in flight are held then,
    or if something still runs after so many seconds."""
    held = ("running", "waiting", "pages_used", "tail_used")
    end = time.monotonic() + seconds
    while True:
        stats = llm.stats()
        if not any(stats[name] for name in held):
            return stats
        if time.monotonic() > end:
            raise LawBroken(f"cancel: expected nothing held, found { {name: stats[name] for name in held} }")
        time.sleep(0.002)


@dataclass
class _Run:
    llm: LLM
    strategy: Strategy
    prompts: list[Any]
    max_tokens: int
    companions: Sequence[Any]
    judge: Any
    seed: int = 0
    #: A strategy may refuse to sample.
    temperatures: tuple[float, ...] = (0.0, 1.0)
    #: What several laws look at is run once a seed: each prompt alone, with what the engine counted, and all in one batch.
    _alone: dict[float, list[tuple[RequestOutput, dict[str, int]]]] = field(default_factory=dict)
    _crowd: dict[float, list[RequestOutput]] = field(default_factory=dict)

    def begin(self, seed: int) -> None:
        self.seed = seed
        self._alone.clear()
        self._crowd.clear()

    # Requests

    def ask(
        self, prompts: list[Any], params: SamplingParams | list[SamplingParams], strategies: list[Any]
    ) -> list[RequestOutput]:
        judges = [self.judge if strategy is self.strategy else None for strategy in strategies]
        return self.llm.generate(prompts, params, strategy=strategies, companions=self.companions, judge=judges)

    def one(self, prompt: Any, params: SamplingParams) -> RequestOutput:
        return self.ask([prompt], params, [self.strategy])[0]

    def beside_plain(self, prompts: list[Any], params: list[SamplingParams]) -> list[tuple[RequestOutput, Any]]:
        """All requests in one batch, each with plain decoding's answer if the strategy must give that."""
        if self.strategy.guarantee != "exact":
            return [(found, None) for found in self.ask(prompts, params, [self.strategy] * len(prompts))]
        found = self.ask(prompts * 2, params * 2, [self.strategy] * len(prompts) + ["plain"] * len(prompts))
        return list(zip(found, found[len(prompts) :], strict=False))

    def alone(self, temperature: float) -> list[tuple[RequestOutput, dict[str, int]]]:
        if temperature not in self._alone:
            self._alone[temperature] = []
            for prompt in self.prompts:
                before = wait_until_idle(self.llm)
                found = self.one(prompt, self.params(temperature))
                after = wait_until_idle(self.llm)
                counted = {name: after[name] - before[name] for name in ("forwards", "rows")}
                self._alone[temperature].append((found, counted))
        return self._alone[temperature]

    def crowd(self, temperature: float) -> list[RequestOutput]:
        """The answers in one batch, then those of plain decoding in the same batch."""
        if temperature not in self._crowd:
            strategies = [self.strategy] * len(self.prompts) + ["plain"] * len(self.prompts)
            self._crowd[temperature] = self.ask(self.prompts * 2, self.params(temperature), strategies)
        return self._crowd[temperature]

    def params(self, temperature: float, **more: Any) -> SamplingParams:
        return SamplingParams(**{"temperature": temperature, "seed": self.seed, "max_tokens": self.max_tokens, **more})

    def fail(self, law: str, expected: Any, found: Any, where: str) -> None:
        raise LawBroken(f"{self.strategy!r}, {law}: expected {expected!r}, found {found!r} ({where})")

    def same(self, law: str, expected: RequestOutput, found: RequestOutput, where: str) -> None:
        for one, other in zip(expected.outputs, found.outputs, strict=False):
            for name in ("token_ids", "text", "finish_reason", "stop_reason"):
                if getattr(one, name) != getattr(other, name):
                    self.fail(f"{law}, {name}", getattr(one, name), getattr(other, name), where)

    def may_refuse_sampling(self) -> None:
        if self.strategy.guarantee != "approximate":
            return  # what it promises is about sampling too
        try:
            self.one(self.prompts[0], self.params(1.0, max_tokens=1))
        except RequestError:
            self.temperatures = (0.0,)

    # Laws

    def exact(self) -> int:
        for temperature in self.temperatures:
            where = f"temperature {temperature:g}, seed {self.seed}"
            count = len(self.prompts)
            plain = self.ask(self.prompts, self.params(temperature), ["plain"] * count)
            crowd = self.crowd(temperature)
            for at, (prompt, expected) in enumerate(zip(self.prompts, plain)):
                self.same("exact", expected, self.alone(temperature)[at][0], f"{where}, alone, prompt {prompt!r}")
                self.same("exact", expected, crowd[at], f"{where}, in a batch, prompt {prompt!r}")
                self.same("exact", expected, crowd[count + at], f"{where}, plain beside it, prompt {prompt!r}")
        return 2 * len(self.temperatures) * len(self.prompts)

    def seeded(self) -> int:
        for temperature in self.temperatures:
            where = f"temperature {temperature:g}, seed {self.seed}"
            for prompt, (expected, _), found in zip(self.prompts, self.alone(temperature), self.crowd(temperature)):
                self.same("same seed", expected, found, f"{where}, in a batch, prompt {prompt!r}")
            if self.strategy.guarantee != "exact":
                again = self.one(self.prompts[0], self.params(temperature))
                self.same(
                    "same seed", self.alone(temperature)[0][0], again, f"{where}, again, prompt {self.prompts[0]!r}"
                )
        return 2 * len(self.temperatures) * len(self.prompts)

    def length(self) -> int:
        cases = list(itertools.product(self.temperatures, (1, 2, 3, 5)))
        params = [self.params(temperature, max_tokens=most) for temperature, most in cases]
        answers = self.beside_plain([self.prompts[0]] * len(cases), params)
        for (temperature, most), (found, plain) in zip(cases, answers, strict=True):
            where = f"max_tokens {most}, temperature {temperature:g}"
            for answer in found.outputs:
                if len(answer.token_ids) > most:
                    self.fail("length", f"at most {most} tokens", answer.token_ids, where)
            if plain:
                self.same("length", plain, found, where)
        return len(cases)

    def stop(self) -> int:
        cases: list[tuple[Any, dict[str, Any]]] = []
        for prompt, (output, _) in zip(self.prompts, self.alone(0.0)):
            whole = output.outputs[0]
            if whole.token_ids:
                cases.append((prompt, {"stop_token_ids": [whole.token_ids[len(whole.token_ids) // 2]]}))
            if len(whole.text) > 3:
                at = len(whole.text) // 2
                cases.append((prompt, {"stop": whole.text[at - 1 : at + 1]}))
        answers = self.beside_plain([prompt for prompt, _ in cases], [self.params(0.0, **given) for _, given in cases])
        for (prompt, given), (found, plain) in zip(cases, answers, strict=True):
            where = f"{given}, prompt {prompt!r}"
            for answer in found.outputs:
                if given.get("stop", "\0") in answer.text:
                    self.fail("stop", f"a text without {given['stop']!r}", answer.text, where)
                early = set(given.get("stop_token_ids", ())) & set(answer.token_ids[:-1])
                if early:
                    self.fail("stop", f"nothing behind {early}", answer.token_ids, where)
            if plain:
                self.same("stop", plain, found, where)
        return len(cases)

    def cancel(self) -> int:
        wait_until_idle(self.llm)
        params = self.params(self.temperatures[-1], max_tokens=4 * self.max_tokens)
        for deltas in (0, 1, 2):
            with self.llm.stream(
                self.prompts[0], params, strategy=self.strategy, companions=self.companions, judge=self.judge
            ) as stream:
                for _ in range(deltas):
                    next(stream, None)
            wait_until_idle(self.llm)
        return 3

    def usage(self) -> int:
        for prompt, (found, counted) in zip(self.prompts, self.alone(0.0)):
            usage = found.usage
            for name, number in counted.items():
                if number != getattr(usage, name):
                    self.fail(f"usage.{name}", number, getattr(usage, name), f"prompt {prompt!r}")
            if usage.prompt_tokens != len(found.prompt_token_ids) or not usage.accepted <= usage.drafted:
                self.fail(
                    "usage", "the prompt's tokens, and no more accepted than drafted", usage, f"prompt {prompt!r}"
                )
        return len(self.prompts)

    def parameters(self) -> int:
        wrong: list[tuple[str, Any]] = [("no_such_parameter", 1)]
        for parameter in self.strategy.spec["parameters"]:
            if parameter["type"] != "any":
                wrong.append((parameter["name"], {"not": "a value"}))
        for name, value in wrong:
            try:
                resolve({**self.strategy.to_dict(), name: value})
            except RequestError:
                continue
            self.fail("parameters", "a RequestError", "none", f"{name}={value!r}")
        if not self.strategy.spec.get("judged"):
            try:
                self.llm.generate(
                    self.prompts[0], self.params(0.0), strategy=self.strategy, judge=lambda texts: [0.0] * len(texts)
                )
            except RequestError:
                return len(wrong) + 1
            self.fail("parameters", "a RequestError", "none", "a judge that is not asked")
        return len(wrong)

    def distribution(self, draws: int) -> int:
        prompt = self.prompts[0]
        ids = self.llm.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        expected: dict[tuple[int, ...], float] = {}
        for first, p in self.likeliest(ids):
            if first in self.llm.card["eos"]:
                expected[first,] = p
                continue
            for second, q in self.likeliest([*ids, first]):
                expected[first, second] = p * q
        params = self.params(1.0, max_tokens=2, top_k=3, n=draws)
        found = Counter(tuple(answer.token_ids) for answer in self.one(prompt, params).outputs if answer.beside is None)
        if strange := set(found) - set(expected):
            self.fail("distribution", "one of the likeliest continuations", strange, f"prompt {prompt!r}")
        # Cells that are expected less than five times are one.
        cells = [(draws * p, found[key]) for key, p in expected.items() if draws * p >= 5]
        rest = draws - sum(e for e, _ in cells)
        if rest > 1e-9 * draws:
            cells.append((rest, draws - sum(n for _, n in cells)))
        squares = sum((n - e) ** 2 / e for e, n in cells)
        freedom = max(len(cells) - 1, 1)
        # The χ² quantile by Wilson and Hilferty; 3.72 leaves 1e-4 above it.
        bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
        if squares > bound:
            self.fail("distribution", f"χ² below {bound:.1f}", round(squares, 1), f"{dict(found)} for {expected}")
        return draws

    def likeliest(self, ids: list[int]) -> list[tuple[int, float]]:
        """The three likeliest tokens, as ``top_k=3`` keeps them, with their share of each other."""
        row = self.llm.logits(ids).row(len(ids) - 1)
        top = sorted(range(len(row)), key=lambda token: (-row[token], token))[:3]
        shares = [math.exp(row[token] - row[top[0]]) for token in top]
        return [(token, share / sum(shares)) for token, share in zip(top, shares)]
