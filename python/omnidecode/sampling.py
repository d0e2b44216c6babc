"""How tokens are drawn: vLLM's names and defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import RequestError

__all__ = ["SamplingParams"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling parameters with vLLM's names and defaults.

    =============================  ===========  ======================================================================
    name                           default      meaning
    =============================  ===========  ======================================================================
    ``n``                          1            answers per prompt, each with its own seed derived from ``seed``
    ``temperature``                1.0          0 is greedy (lowest id on a tie)
    ``top_k``                      0            keep the k most probable tokens; 0 or -1 keeps all
    ``top_p``                      1.0          keep the smallest set with this mass
    ``min_p``                      0.0          keep what has this share of the largest probability
    ``typical_p``                  1.0          locally typical mass (not in vLLM)
    ``seed``                       None         0 ... 2**64 - 1; None draws one, reported as ``output.seed``
    ``repetition_penalty``         1.0          over prompt and answer
    ``presence_penalty``           0.0          over the answer, -2 ... 2
    ``frequency_penalty``          0.0          over the answer, -2 ... 2
    ``logit_bias``                 None         token id to what is added to its logit
    ``allowed_token_ids``          None         only these tokens may be drawn
    ``bad_words``                  None         texts that may not appear
    ``max_tokens``                 16           most tokens in an answer
    ``min_tokens``                 0            no end token, stop token or stop string before this many
    ``stop``                       None         a text or texts that end the answer
    ``stop_token_ids``             None         tokens that end the answer
    ``ignore_eos``                 False        go on after the model's own end tokens
    ``include_stop_str_in_output`` False        leave the stop string in the text
    ``skip_special_tokens``        True         leave special tokens out of the text
    ``logprobs``                   None         report the k largest raw log-probabilities and the chosen one
    =============================  ===========  ======================================================================

    Differences from vLLM:

    - Noise is keyed by (seed, absolute position): a seeded answer does not depend on the batch, the strategy (if its
      guarantee is exact) or the device's scheduling. Seeds give other tokens than vLLM's.
    - ``seed=None`` draws a fresh seed for each request and reports it; vLLM draws from the engine's stream.
    - ``Logprob.rank`` is known for the ``logprobs`` largest only.
    - ``prompt_logprobs``, ``structured_outputs``, ``detokenize``, ``output_kind``, ``extra_args`` and
      ``truncate_prompt_tokens`` do not exist here. An unknown name is a :class:`TypeError`, never ignored.

    Impossible values raise :class:`RequestError` (a :class:`ValueError`).
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None

    # What the engine reads: the same facts without the optional shapes.
    _stop: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, 1024)
        _number("temperature", self.temperature, 0.0, 100.0)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("typical_p", self.typical_p, 0.0, 1.0, open_low=True)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens: expected at most max_tokens ({self.max_tokens}), found {self.min_tokens}; lower it"
            )
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, 1024)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name}: expected True or False, found {getattr(self, name)!r}")
        for name in ("stop_token_ids", "allowed_token_ids"):
            for id in getattr(self, name) or ():
                _integer(name, id, 0, 2**32 - 1)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids: expected at least one token id, found none; pass None to allow all")
        for id, bias in (self.logit_bias or {}).items():
            _integer("logit_bias", id, 0, 2**32 - 1)
            _number("logit_bias", bias, -1e4, 1e4)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        _texts("stop", stop)
        if isinstance(self.bad_words, str):
            raise RequestError("bad_words: expected a list of texts, found one text; put it in a list")
        _texts("bad_words", tuple(self.bad_words or ()))
        object.__setattr__(self, "_stop", stop)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any], **overrides: Any) -> SamplingParams:
        """The parameters that a transformers ``GenerationConfig`` (its dictionary, or ``generation_config.json``) means.

        What changes the result and has no counterpart here (beams, contrastive search, guidance, ...) raises
        :class:`RequestError` when it is switched on; bookkeeping fields (``transformers_version``, pad tokens,
        caches, ``output_*``) mean nothing here. ``do_sample`` absent or false is temperature 0, as in transformers.
        """
        values: dict[str, Any] = {}
        for name, value in config.items():
            if value is None or name in _BOOKKEEPING or name.startswith(("_", "output_")):
                continue
            if name in _NEUTRAL:
                if value != _NEUTRAL[name]:
                    raise RequestError(
                        f"generation config: {name}={value!r} has no counterpart in SamplingParams; "
                        f"remove it, or leave it at {_NEUTRAL[name]!r}"
                    )
            elif name in _RENAMED:
                values[_RENAMED[name]] = value
            else:
                raise RequestError(f"generation config: expected a known field, found {name!r}; remove it")
        if not config.get("do_sample", False):
            for name in ("temperature", "top_k", "top_p", "min_p", "typical_p"):
                values.pop(name, None)
            values["temperature"] = 0.0
        elif config.get("top_k") is None:
            values["top_k"] = 50  # what transformers does when nothing is said
        if isinstance(values.get("stop_token_ids"), int):
            values["stop_token_ids"] = [values["stop_token_ids"]]
        values.update(overrides)
        return cls(**values)

    def to_generation_config(self) -> dict[str, Any]:
        """The dictionary of the transformers ``GenerationConfig`` that means the same; the reverse of
        :meth:`from_generation_config`. Raises :class:`RequestError` for what transformers has no word for."""
        plain = SamplingParams()
        back = {ours: theirs for theirs, ours in _RENAMED.items()}
        sample = self.temperature > 0
        config: dict[str, Any] = {"do_sample": sample, "max_new_tokens": self.max_tokens}
        if sample:
            config |= {"temperature": self.temperature, "top_k": max(self.top_k, 0)}
        for spec in fields(self):
            name, value = spec.name, getattr(self, spec.name)
            if name in ("temperature", "top_k", "max_tokens", "seed", "_stop") or value == getattr(plain, name):
                continue
            if name not in back:
                raise RequestError(f"{name}={value!r} has no counterpart in a GenerationConfig; leave it out")
            if name == "stop":
                value = list(self._stop)
            if sample or name not in ("top_p", "min_p", "typical_p"):
                config[back[name]] = value
        return config

    def with_seed(self, seed: int) -> SamplingParams:
        """The same parameters under another seed."""
        return replace(self, seed=seed)


_RENAMED = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "num_return_sequences": "n",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
}
_BOOKKEEPING = {
    "do_sample",
    "transformers_version",
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_dict_in_generate",
    "max_length",
    "min_length",
    "trust_remote_code",
    "chat_format",
    "remove_invalid_values",
    "renormalize_logits",
    "compile_config",
    "disable_compile",
    "low_memory",
}
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "early_stopping": False,
    "guidance_scale": 1.0,
    "token_healing": False,
    "watermarking_config": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "prompt_lookup_num_tokens": None,
    "max_time": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "is_assistant": False,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_early_exit": None,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
}


def _integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {value!r}")


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not good or (open_low and value == low):
        above = f"above {low:g}" if open_low else f"from {low:g}"
        joint = " and at most " if open_low else " to "
        raise RequestError(f"{name}: expected a number {above}{joint}{high:g}, found {value!r}")


def _texts(name: str, texts: tuple[object, ...]) -> None:
    for text in texts:
        if not isinstance(text, str) or not text:
            raise RequestError(f"{name}: expected texts that are not empty, found {text!r}")
