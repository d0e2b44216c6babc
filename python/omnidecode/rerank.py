"""Listwise reranking (FIRST, arXiv:2406.15657, sheet 01): a window slides over the candidates from the last to the first;
the model is shown each window's passages under letters, and the order is read off the logits of the first letter.

    llm.rerank("capital of France", ["Paris is ...", "Rome is ..."]).order

One pass a window (``usage.host_reads``; a long prompt is prefilled in several forwards), and the head of a query's prompts is
prefilled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from . import _core
from ._strategy import Strategy, resolve
from .errors import RequestError
from .outputs import Note, RequestOutput, Usage
from .sampling import SamplingParams
from .streaming import gather_blocking

if TYPE_CHECKING:
    from .llm import LLM

__all__ = ["METHODS", "Ranking", "rerank"]

METHODS = ("first", "generate", "constrained")


@dataclass(slots=True)
class Ranking:
    """A query's documents in their new order.

    ``order``: places in the old list, the best first; a permutation. ``windows``: how many were asked. ``scores``: for each
    window, the last places first, its documents (places in the old list) by falling score; with ``generate`` they have none.
    """

    order: list[int]
    windows: int
    usage: Usage
    scores: list[list[tuple[int, float]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def rerank(
    llm: LLM,
    queries: Sequence[str],
    documents: Sequence[Sequence[str]],
    *,
    window: int = 20,
    stride: int = 10,
    method: str = "first",
    words: int = 300,
    system: str | None = None,
) -> list[Ranking]:
    """Order each query's documents; the queries run in one batch, the windows of one query after another.

    ``documents``: for each query its candidates, the best first as another stage left them. ``method``: ``first`` orders a
    window by the logits of its letters, one pass; ``generate`` lets the model write the list, greedily, and reads it;
    ``constrained`` writes letter after letter, each the likeliest of those left. ``words``: cap for each passage, lowered
    where a prompt would not fit. ``system``: a system message.

    Raises :class:`RequestError` when ``1 <= stride <= window <= 26`` does not hold, or a query does not fit.
    """
    if method not in METHODS:
        raise RequestError(f"method: expected one of {', '.join(METHODS)}; found {method!r}")
    if len(queries) != len(documents):
        raise RequestError(f"documents: expected one list a query ({len(queries)}), found {len(documents)}")
    if not isinstance(words, int) or words < 1:
        raise RequestError(f"words: expected a positive whole number, found {words!r}")
    tasks = []
    for query, candidates in zip(queries, documents, strict=True):
        if isinstance(candidates, str):
            raise RequestError(f"documents: expected lists of texts, found the text {candidates[:40]!r}")
        spans = _core.listwise_windows(len(candidates), window, stride) if len(candidates) > 1 else []
        tasks.append(_Task(query, list(candidates), spans, words))
    largest = max((end - start for task in tasks for start, end in task.spans), default=0)
    labels = _core.listwise_labels(llm._engine, largest)
    while True:
        due = [task for task in tasks if task.spans]
        if not due:
            return [Ranking(task.order, task.asked, task.usage, task.scores) for task in tasks]
        prompts, params, strategies = zip(*(task.question(llm, method, labels, system) for task in due), strict=True)
        jobs = llm._jobs(list(prompts), params, strategies, ())
        for task, output in zip(due, gather_blocking(llm._engine, jobs, None), strict=True):
            task.take(output, method, labels)


@dataclass
class _Task:
    """One query on its way: the order so far, and the windows that are left."""

    query: str
    documents: list[str]
    spans: list[tuple[int, int]]
    words: int
    asked: int = 0
    usage: Usage = field(default_factory=Usage)
    scores: list[list[tuple[int, float]]] = field(default_factory=list)
    order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.order = list(range(len(self.documents)))

    def question(
        self, llm: LLM, method: str, labels: list[int], system: str | None
    ) -> tuple[tuple[str, list[int]], SamplingParams, Strategy]:
        """What is asked of the next window."""
        start, end = self.spans[0]
        shown = self.order[start:end]
        n = len(shown)
        answer = 4 * n if method == "generate" else n
        context = llm.card["context"]
        words = self.words
        while True:
            question = _core.listwise_question(self.query, [self.documents[i] for i in shown], words)
            messages = [{"role": "system", "content": system}] if system else []
            prompt = llm.apply_chat_template([*messages, {"role": "user", "content": question}]) + "["
            ids = llm.tokenize(prompt, add_special_tokens=False)
            # `constrained` writes up to four tokens a letter too, on a fork of its own.
            excess = len(ids) + max(answer, 4 * n if method == "constrained" else 0) + 1 - context
            if excess <= 0:
                break
            if words == 1:
                raise RequestError(
                    f"rerank: expected a window that fits in {context} tokens, found {n} passages of one word in {len(ids)}; "
                    "take a smaller window or a shorter query"
                )
            words = max(1, words - max(1, excess // (4 * n)))
        sampling = SamplingParams(temperature=0.0, max_tokens=answer, seed=0)
        return (prompt, ids), sampling, _strategy(llm, method, labels[:n])

    def take(self, output: RequestOutput, method: str, labels: list[int]) -> None:
        start, end = self.spans.pop(0)
        shown = self.order[start:end]
        (answer,) = output.outputs
        if method == "generate":
            places = _core.listwise_order("[" + answer.text, len(shown))
        else:
            place = {label: at for at, label in enumerate(labels)}
            note: Note = next(note for note in answer.notes if note.label == "scores")
            places = [place[id] for id, _, _ in note.tokens]
            self.scores.append([(shown[place[id]], score) for id, score, _ in note.tokens])
        self.order[start:end] = [shown[at] for at in places]
        self.asked += 1
        self.usage = self.usage + output.usage


def _strategy(llm: LLM, method: str, labels: list[int]) -> Strategy:
    if method == "generate":
        return resolve("plain")
    if method == "first":
        return resolve({"name": "first", "labels": labels})
    separator = llm.tokenize("[A] > [", add_special_tokens=False)[len(llm.tokenize("[A", add_special_tokens=False)) :]
    return resolve({"name": "first", "labels": labels, "mode": "generate", "separator": separator})
