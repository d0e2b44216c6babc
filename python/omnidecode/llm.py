"""``LLM``: a model on a device, and everything that can be asked of it."""

from __future__ import annotations

import itertools
import json
import os
import random
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias

from . import _core
from ._companion import LogitsProcessor, resolve_companion
from ._judge import Judge, resolve_judge
from ._strategy import Strategy, registry, resolve
from .errors import ModelError, RequestError
from .hub import locate
from .outputs import RequestOutput
from .rerank import Ranking, rerank
from .sampling import SamplingParams
from .streaming import AsyncTextStream, Job, TextStream, gather_async, gather_blocking

__all__ = ["LLM"]

Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]
Message: TypeAlias = Mapping[str, Any]
StrategyLike: TypeAlias = str | Mapping[str, Any] | Strategy | None
CompanionLike: TypeAlias = str | Mapping[str, Any] | LogitsProcessor
JudgeLike: TypeAlias = str | Judge | None


class LLM:
    """A model, ready to decode with any strategy per request.

    ``model``: a folder with safetensors, a GGUF file, or a hub name (``"org/name"``, ``"org/name/file.gguf"``; needs
    ``omnidecode[hub]`` unless it is in the cache); ``None`` opens the embedded default. ``draft``: a second model with
    the same vocabulary, for strategies that need one. ``beside``: further models of that vocabulary by the role that
    strategies ask for, ``{"expert": ..., "adapter": ..., "value": ..., "judge": ...}``; ``draft=`` is short for the role
    ``"draft"``. ``device``: ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` (``omnidecode doctor`` says what is missing for
    a GPU, see ``docs/cuda.md``). ``row_invariant=False``: on a GPU, products of many rows in bf16 run in cuBLASLt where
    it is found: faster prompts, but what a row gives depends on how many rows there are, and every answer's guarantee is
    ``approximate``. ``threads``: worker threads, by default ``OMNIDECODE_NUM_THREADS``, ``OMP_NUM_THREADS``,
    ``RAYON_NUM_THREADS`` or the cores that this process may use; each is kept on one of them where
    ``OMNIDECODE_PIN_THREADS`` is 1. ``context``: longest sequence in tokens, by default the model's. ``kv_tokens``:
    positions of key/value cache that all requests share; by default two contexts, more where they are small, within a
    quarter of the free memory. ``prefix_cache=False``: no request finds what others have computed of the same beginning, so
    that each runs its whole prompt, as measurements want.
    ``kv_dtype``: ``"f32"``, ``"f16"``, ``"bf16"``, or ``"auto"``: f32 for a model in f32, f16 for one that norms queries
    and keys (Gemma 3, Qwen3), else bf16 where the processor multiplies it (AVX-512 BF16), else f16.
    ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as in ``huggingface_hub``. ``trust_remote_code`` is
    refused: code from a model repository is never run.

    Raises :class:`ModelError` when the model cannot be found, read or held in memory.

    Safe to use from several threads; requests of all of them are batched together. Use it as a context manager, or
    call :meth:`close`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        draft: str | os.PathLike[str] | None = None,
        beside: Mapping[str, str | os.PathLike[str]] | None = None,
        device: str = "cpu",
        row_invariant: bool = True,
        threads: int | None = None,
        context: int | None = None,
        kv_tokens: int | None = None,
        kv_dtype: str = "auto",
        prefix_cache: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        if trust_remote_code:
            raise ModelError(
                "trust_remote_code: expected False, found True; code from a model repository is never run here, "
                "convert the model to a supported architecture instead"
            )
        if not isinstance(device, str):
            raise ModelError(f"device: expected 'cpu', 'cuda' or 'cuda:' with a number, found {device!r}")
        if kv_dtype not in ("auto", "f32", "f16", "bf16"):
            raise ModelError(f"kv_dtype: expected 'auto', 'f32', 'f16' or 'bf16', found {kv_dtype!r}")
        for name, value in (("threads", threads), ("context", context), ("kv_tokens", kv_tokens)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ModelError(f"{name}: expected a positive integer or None, found {value!r}")
        hub: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        self.path = locate(model, **hub)
        #: Models beside the main one, by role.
        self.beside = {role: locate(path, **hub) for role, path in _roles(draft, beside).items()}
        self._engine = _core.Engine(
            str(self.path),
            beside=[(role, str(path)) for role, path in self.beside.items()],
            threads=threads,
            context=context,
            kv_tokens=kv_tokens,
            kv_dtype=None if kv_dtype == "auto" else kv_dtype,
            device=device,
            row_invariant=row_invariant,
            prefix_cache=prefix_cache,
        )
        # Also at exit, while the interpreter still runs: strategies written in Python may have to end.
        self._finalizer = weakref.finalize(self, self._engine.close)
        self._numbers = itertools.count()

    # Decoding

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        strategy: StrategyLike | Sequence[StrategyLike] = None,
        companions: Sequence[CompanionLike] = (),
        judge: JudgeLike | Sequence[JudgeLike] = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Decode one or many prompts, all in one batch; the answers come in the order of the prompts.

        ``prompts``: texts, lists of token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``; one or many.
        ``sampling_params``: one for all or one per prompt; ``None`` takes the model's ``generation_config.json``, or
        vLLM's defaults where there is none. ``strategy``: a name, dictionary or object, one for all or one per prompt.
        ``companions``: what bends the law of all these requests, in order: names, ``{"name": ..., parameter: ...}``, or
        logits processors ``f(token_ids, logits)``.
        ``judge``: who scores the texts that a search finds, ``f(candidates)`` or a registered name, one for all or one per
        prompt; a strategy that asks no judge refuses it.
        ``progress(finished, total)`` is called after each prompt.

        Raises :class:`RequestError` before anything runs if one of the requests is impossible. When a request fails
        while it runs, the others go on; then the first error is raised, and its ``outputs`` holds for each prompt its
        :class:`RequestOutput` or its error.
        """
        jobs = self._jobs(self._prompts(prompts), sampling_params, strategy, companions, judge)
        return gather_blocking(self._engine, jobs, progress)

    async def agenerate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        strategy: StrategyLike | Sequence[StrategyLike] = None,
        companions: Sequence[CompanionLike] = (),
        judge: JudgeLike | Sequence[JudgeLike] = None,
    ) -> list[RequestOutput]:
        """:meth:`generate` for asyncio. Cancelling the task cancels its requests."""
        jobs = self._jobs(self._prompts(prompts), sampling_params, strategy, companions, judge)
        return await gather_async(self._engine, jobs)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        strategy: StrategyLike | Sequence[StrategyLike] = None,
        companions: Sequence[CompanionLike] = (),
        judge: JudgeLike | Sequence[JudgeLike] = None,
        **template: Any,
    ) -> list[RequestOutput]:
        """:meth:`generate` for one conversation, or many, through the model's chat template.

        A message is ``{"role": ..., "content": ...}``. ``template``: ``chat_template`` (another template's source),
        ``add_generation_prompt`` (default True), ``continue_final_message``, ``tools``, ``documents``, and any variable
        of the template (``enable_thinking=False``).
        """
        jobs = self._jobs(self._conversations(messages, template), sampling_params, strategy, companions, judge)
        return gather_blocking(self._engine, jobs, None)

    async def achat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        strategy: StrategyLike | Sequence[StrategyLike] = None,
        companions: Sequence[CompanionLike] = (),
        judge: JudgeLike | Sequence[JudgeLike] = None,
        **template: Any,
    ) -> list[RequestOutput]:
        """:meth:`chat` for asyncio."""
        jobs = self._jobs(self._conversations(messages, template), sampling_params, strategy, companions, judge)
        return await gather_async(self._engine, jobs)

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        strategy: StrategyLike = None,
        companions: Sequence[CompanionLike] = (),
        judge: JudgeLike = None,
        watch: bool = False,
        **template: Any,
    ) -> TextStream:
        """Decode one prompt (or one conversation), giving each :class:`Delta` as it is committed::

            for delta in llm.stream("Once upon a time"):
                print(delta.text, end="", flush=True)

        The first delta comes as soon as there is one. Later ones gather what was committed within 5 ms, as waking a reader
        takes as long as a step of a very small model.

        ``watch``: deltas carry the changes of a diffusion strategy's canvas as they are made (:attr:`Delta.marks`).
        The text of a delta is never revoked. Afterwards ``.result`` is the :class:`RequestOutput`. Closing the stream,
        or leaving its ``with`` block, cancels the request.
        """
        (job,) = self._jobs([self._one(prompt, template)], sampling_params, strategy, companions, judge)
        job.watch = watch
        return TextStream(self._engine, job)

    def astream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        strategy: StrategyLike = None,
        companions: Sequence[CompanionLike] = (),
        judge: JudgeLike = None,
        watch: bool = False,
        **template: Any,
    ) -> AsyncTextStream:
        """:meth:`stream` for asyncio: ``async for delta in llm.astream(prompt)``."""
        (job,) = self._jobs([self._one(prompt, template)], sampling_params, strategy, companions, judge)
        job.watch = watch
        return AsyncTextStream(self._engine, job)

    # Reading the model

    def score(self, prompt: Prompt, label_ids: Sequence[int]) -> list[float]:
        """The log-probability of each token of ``label_ids`` as the next token after ``prompt``: one forward."""
        _, ids = self._tokens(prompt)
        return self._engine.score(ids, _ids("label_ids", label_ids))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        window: int = 20,
        stride: int = 10,
        method: str = "first",
        words: int = 300,
        system: str | None = None,
    ) -> Ranking:
        """Order documents by how relevant they are to a query: ``.order`` holds their places, the best first. A window
        slides from the last to the first; ``method``: ``"first"`` (one forward a window), ``"generate"`` or
        ``"constrained"``, as in :func:`omnidecode.rerank.rerank`, which takes many queries in one batch.
        """
        settings: dict[str, Any] = {
            "window": window,
            "stride": stride,
            "method": method,
            "words": words,
            "system": system,
        }
        return rerank(self, [query], [documents], **settings)[0]

    def score_canvas(self, prompt: Prompt, answer_ids: Sequence[int], *, draws: int = 128, seed: int = 0) -> float:
        """Estimate the log-likelihood, in nats, of ``answer_ids`` behind ``prompt`` under a masked diffusion model.

        LLaDA's Monte Carlo bound (arXiv:2502.09992): the mean over ``draws`` forwards, each with other places of the
        answer masked. For one token, 1 draw is exact. The same seed gives the same estimate. Raises
        :class:`RequestError` for an empty answer or no draws, :class:`StrategyError` for a model that does not denoise
        whole canvases.
        """
        if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
            raise RequestError(f"draws: expected a positive integer, found {draws!r}")
        answer = _ids("answer_ids", answer_ids)
        if not answer:
            raise RequestError("answer_ids: expected at least one token, found none")
        _, ids = self._tokens(prompt)
        return self._engine.score_canvas(ids, answer, draws, seed)

    def logits(self, token_ids: Sequence[int]) -> _core.Array:
        """The logits of every row: float32 [rows, vocabulary], on the host.

        The array speaks DLPack: ``numpy.from_dlpack(a)``, ``torch.from_dlpack(a)``; without either there are
        ``a.shape``, ``a.row(i)`` and ``a.tolist()``.
        """
        return self._engine.logits(_ids("token_ids", token_ids))

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, with what the tokenizer adds around it unless ``add_special_tokens`` is False."""
        return self._engine.tokenize(text, add_special_tokens)

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._engine.detokenize(_ids("token_ids", token_ids), skip_special_tokens)

    def apply_chat_template(self, messages: Sequence[Message], **template: Any) -> str:
        """The prompt text of a conversation; ``template`` as in :meth:`chat`."""
        return self._render(messages, template)

    @property
    def card(self) -> dict[str, Any]:
        """The model's facts: sizes, special tokens, parameters, bytes of weights that a row reads, context."""
        card: dict[str, Any] = json.loads(self._engine.card())
        return card

    def stats(self) -> dict[str, Any]:
        """What the engine did since it started (``forwards``, ``rows``, ``steps``, seconds in networks and in turns), and what
        it holds now: ``running`` and ``waiting`` requests, ``pages_used`` by sequences, ``tail_used`` rows in flight."""
        stats: dict[str, Any] = json.loads(self._engine.stats())
        return stats

    def get_default_sampling_params(self) -> SamplingParams:
        """What ``sampling_params=None`` means for this model."""
        config = self._engine.generation_config()
        if config is None:
            return SamplingParams()
        known: dict[str, Any] = json.loads(config)
        known.pop("eos_token_id", None)  # on the card already, so that ignore_eos covers it
        return SamplingParams.from_generation_config(known)

    # Life

    def close(self) -> None:
        """Cancel what runs, stop the engine, free the memory. Further use raises :class:`Closed`; closing twice is
        fine."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({str(self.path)!r})"

    def __reduce__(self) -> Any:
        raise TypeError("an LLM holds an engine and cannot be pickled; open one in each process")

    # Requests in the forms that users write them

    def _prompts(self, prompts: Prompt | Iterable[Prompt]) -> list[tuple[str | None, list[int]]]:
        if isinstance(prompts, (str, Mapping)):
            return [self._tokens(prompts)]
        listed = list(prompts)
        if listed and all(isinstance(item, int) for item in listed):
            return [self._tokens(listed)]  # type: ignore[arg-type]
        return [self._tokens(prompt) for prompt in listed]  # type: ignore[arg-type]

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self._engine.tokenize(prompt, True)
        if isinstance(prompt, Mapping):
            keys = set(prompt)
            if keys == {"prompt"} and isinstance(prompt["prompt"], str):
                return self._tokens(prompt["prompt"])
            if keys in ({"prompt_token_ids"}, {"prompt_token_ids", "prompt"}):
                return prompt.get("prompt"), _ids("prompt_token_ids", prompt["prompt_token_ids"])
            raise RequestError(
                f"prompt: expected a dictionary with 'prompt' or 'prompt_token_ids', found keys {sorted(map(str, keys))}"
            )
        return None, _ids("prompt", prompt)

    def _conversations(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], template: dict[str, Any]
    ) -> list[tuple[str | None, list[int]]]:
        if not messages:
            raise RequestError("messages: expected at least one message, found none")
        many = messages if not isinstance(messages[0], Mapping) else [messages]
        texts = [self._render(conversation, template) for conversation in many]  # type: ignore[arg-type]
        # A template writes the special tokens itself.
        return [(text, self._engine.tokenize(text, False)) for text in texts]

    def _one(self, prompt: Prompt | Sequence[Message], template: dict[str, Any]) -> tuple[str | None, list[int]]:
        if not isinstance(prompt, (str, Mapping)) and prompt and isinstance(prompt[0], Mapping):
            return self._conversations(prompt, template)[0]  # type: ignore[arg-type]
        if template:
            raise TypeError(f"{', '.join(template)}: expected only with a conversation, found a plain prompt")
        return self._tokens(prompt)  # type: ignore[arg-type]

    def _render(self, messages: Sequence[Message], template: dict[str, Any]) -> str:
        try:
            return self._engine.render(json.dumps(list(messages)), json.dumps(template))
        except TypeError as error:
            raise RequestError(f"messages: expected what JSON can say, found {error}") from None

    def _jobs(
        self,
        prompts: Sequence[tuple[str | None, list[int]]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        strategy: StrategyLike | Sequence[StrategyLike],
        companions: Sequence[CompanionLike],
        judge: JudgeLike | Sequence[JudgeLike] = None,
    ) -> list[Job]:
        if params is None:
            params = self.get_default_sampling_params()
        each_params = _spread("sampling_params", params, SamplingParams, len(prompts))
        each_strategy: list[Strategy] = _each("strategy", resolve, strategy, len(prompts))
        each_judge: list[Judge | None] = _each("judge", resolve_judge, judge, len(prompts))
        if isinstance(companions, (str, Mapping)):
            raise RequestError(f"companions: expected a list, found {companions!r}; put it in a list")
        rides = [resolve_companion(item) for item in companions]
        jobs = []
        for (text, ids), sampling, chosen, by in zip(prompts, each_params, each_strategy, each_judge, strict=True):
            seed = random.SystemRandom().getrandbits(63) if sampling.seed is None else sampling.seed
            job = Job(str(next(self._numbers)), text, ids, sampling, seed, chosen, rides, by)
            job.check(self._engine)
            jobs.append(job)
        return jobs


def _roles(
    draft: str | os.PathLike[str] | None, beside: Mapping[str, str | os.PathLike[str]] | None
) -> dict[str, str | os.PathLike[str]]:
    """Models beside the main one, by role; a role that no strategy asks for is an error."""
    given = dict(beside or {})
    known = [role for role, _ in _core.roles()]
    if not set(given) <= set(known):  # packages that bring strategies are looked at only then
        facts = ("mask", "block")  # what strategies need of the main model
        known += [need for spec in registry() for need in spec["needs"] if need not in (*facts, *known)]
    for role in given:
        if role not in known:
            raise ModelError(f"beside: expected roles among {', '.join(known)}; found {role!r}")
    if draft is not None:
        if "draft" in given:
            raise ModelError("draft: expected one draft model, found one here and one under beside['draft']")
        given["draft"] = draft
    return given


def _each(name: str, resolve: Callable[[Any], Any], given: Any, count: int) -> list[Any]:
    """What was given once for all, or in a list one for each prompt."""
    if not isinstance(given, (list, tuple)):
        return [resolve(given)] * count
    if len(given) != count:
        raise RequestError(f"{name}: expected one or {count} (one per prompt), found {len(given)}")
    return [resolve(item) for item in given]


def _spread(name: str, given: Any, kind: type, count: int) -> list[Any]:
    if isinstance(given, kind):
        return [given] * count
    if not isinstance(given, (list, tuple)) or not all(isinstance(item, kind) for item in given):
        raise RequestError(f"{name}: expected {kind.__name__} or a list of them, found {given!r}")
    return _each(name, lambda item: item, given, count)


def _ids(name: str, given: Any) -> list[int]:
    if hasattr(given, "tolist"):
        given = given.tolist()
    ids = list(given)
    for id in ids:
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < 2**32:
            raise RequestError(f"{name}: expected token ids, found {id!r}")
    return ids
