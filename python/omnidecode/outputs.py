"""What a request gives back, in vLLM's shape, with what only this engine knows: ``usage`` and ``guarantee``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["CompletionOutput", "Delta", "Logprob", "Mark", "Note", "Origin", "RequestOutput", "Usage"]


@dataclass(slots=True)
class Logprob:
    """A token's log-probability under the raw distribution of the model, before temperature and penalties.

    ``rank`` counts from 1; it is ``None`` for a chosen token outside of the ``logprobs`` largest (vLLM counts on).
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class Origin:
    """Where a committed token came from; reports are drawn from it.

    ``source``: ``"target"`` (the model's own next token), ``"draft"`` (proposed and accepted) or ``"canvas"`` (decided in
    place by a diffusion strategy). ``forward``: :attr:`Usage.forwards` when it was committed, from 1. ``depth``: steps
    below the root of the draft, from 1; 0 otherwise. ``branch``: which fork found it, 0 for the answer itself.
    ``confidence``: what the strategy thought of a canvas position, on its own scale. ``text``: what the token completed,
    special tokens by name; empty if it ends inside a character.
    """

    source: str
    forward: int
    depth: int = 0
    branch: int = 0
    confidence: float | None = None
    text: str = ""


@dataclass(slots=True)
class Note:
    """What a strategy saw on its way and did not say, such as the reading of a latent thought (``label``
    ``"thought"``). ``place``: its position, prompt included. ``tokens``: (id, weight, text), the largest weight first."""

    label: str
    place: int
    tokens: list[tuple[int, float, str]]


@dataclass(slots=True)
class Usage:
    """What a sequence cost, counted exactly.

    ``forwards``: batched forwards that ran rows of this sequence, prefill included. ``nfe``: evaluations of its branches
    (two branches in one batched forward count two). ``target_forwards``: ``forwards`` of the main model alone, without those of
    a draft model. ``rows``: positions computed; ``row_layers``: the same, times the layers that each passed; ``head_rows``:
    those whose logits were computed. ``drafted`` and ``accepted``: proposed tokens, and how many of them were kept.
    ``host_reads``: read-backs to the host. ``prompt_tokens``, and of those ``cached_tokens``, whose keys and values were found
    in the prefix cache. ``judge_calls``: batches of texts that a judge was given; ``judged``: texts in them.
    ``python_steps`` and ``python_seconds``: how often the engine called Python code of the request (steps of a strategy, a
    judge, a logits processor), and the time in it, waiting for the GIL included.
    """

    forwards: int = 0
    rows: int = 0
    drafted: int = 0
    accepted: int = 0
    host_reads: int = 0
    nfe: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    judge_calls: int = 0
    judged: int = 0
    target_forwards: int = 0
    row_layers: int = 0
    head_rows: int = 0
    python_steps: int = 0
    python_seconds: float = field(default=0.0, compare=False)

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(slots=True)
class CompletionOutput:
    """One of the ``n`` answers to a prompt, or a text that was found beside one.

    ``finish_reason``: ``"stop"`` (an end token, a stop token or a stop string; ``stop_reason`` is the id or the
    string, ``None`` for the model's own end token) or ``"length"``. ``token_ids`` holds every committed token, those of
    a stop string too; ``text`` ends before it unless ``include_stop_str_in_output``. ``origins`` has one entry a token.
    ``score`` is what a search thinks of it, on the strategy's own scale; more is better. ``notes`` come with the end, from
    strategies that have some.

    ``beside``: the index of the answer that this text was found beside, ``None`` for the answers themselves. Such texts
    (best-of-n, beam, superposed and self-consistency tell as many as their parameters say) follow the ``n`` answers, in
    the strategy's order; their cost is counted in the answer's ``usage``, and they have no origins.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    seed: int = 0
    usage: Usage = field(default_factory=Usage)
    origins: list[Origin] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    score: float | None = None
    beside: int | None = None


@dataclass(slots=True)
class RequestOutput:
    """The answers to one prompt: ``outputs`` holds the ``n`` answers, then the texts that were found beside them.

    ``guarantee`` is ``"exact"`` (token for token what plain decoding gives under the same seed), ``"distribution"``
    (the same law) or ``"approximate"``.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    strategy: str
    guarantee: str

    @property
    def usage(self) -> Usage:
        """The sum over the outputs."""
        return sum((output.usage for output in self.outputs), Usage())

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for JSON."""
        return {**asdict(self), "usage": asdict(self.usage)}

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        from .report import framed

        return framed([self])


@dataclass(slots=True)
class Mark:
    """One change of a canvas: ``token_id`` (``text``) stands at ``place`` (prompt included) since the forward ``forward``
    (as in :class:`Origin`); the mask token where it is undecided. ``confidence``: what the strategy thought of it."""

    place: int
    token_id: int
    forward: int
    confidence: float
    text: str


@dataclass(slots=True)
class Delta:
    """What one answer gained since the last time: ``text`` never ends inside a character or a possible stop string.

    ``marks``: changes of the canvas in their order, with ``watch=True``; unlike the rest they may be taken back.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    marks: list[Mark] = field(default_factory=list)
