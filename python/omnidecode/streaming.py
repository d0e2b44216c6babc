"""Following requests while they run: blocking, streamed and for asyncio. One job is one prompt with its ``n`` answers."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from . import _core
from ._companion import Ride
from ._judge import Judge
from ._strategy import Strategy
from .errors import OmnidecodeError
from .outputs import CompletionOutput, Delta, Logprob, Mark, Note, Origin, RequestOutput, Usage
from .sampling import SamplingParams

__all__ = ["AsyncTextStream", "Job", "TextStream", "gather_async", "gather_blocking"]


@dataclass
class Job:
    """One prompt on its way: what was asked, and what has come so far."""

    id: str
    prompt: str | None
    prompt_ids: list[int]
    sampling: SamplingParams
    seed: int
    strategy: Strategy
    companions: list[Ride]
    judge: Judge | None = None
    #: Whether deltas carry the changes of a canvas.
    watch: bool = False
    #: Whether nothing is to be sent before the end.
    whole: bool = False
    outputs: list[CompletionOutput] = field(default_factory=list)
    #: Texts found beside the answers.
    found: list[CompletionOutput] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The strategy's."""
        return self.strategy.name

    @property
    def parameters(self) -> str:
        """Those of a strategy of the registry, as JSON."""
        return "{}" if self.function else json.dumps(self.strategy.parameters)

    @property
    def function(self) -> tuple[Any, dict[str, Any], str, bool] | None:
        """A strategy in Python: function, keyword arguments, guarantee, whether it asks the judge."""
        decode = type(self.strategy).__wrapped__
        if decode is None:
            return None
        return decode, self.strategy.parameters, self.strategy.guarantee, bool(self.strategy.spec["judged"])

    def check(self, engine: _core.Engine) -> None:
        """Raise what can be known before anything runs."""
        engine.check(self)

    def start(self, engine: _core.Engine) -> _core.Ticket:
        """Hand it to the engine."""
        ticket = engine.submit(self)
        self.outputs = [CompletionOutput(index, "", [], seed=seed) for index, seed in enumerate(ticket.seeds)]
        if self.sampling.logprobs is not None:
            for output in self.outputs:
                output.logprobs, output.cumulative_logprob = [], 0.0
        return ticket

    def take(self, chunk: _core.Chunk) -> Delta:
        """Add a chunk to its output."""
        output = self.outputs[chunk.index]
        logprobs = None
        if output.logprobs is not None and output.cumulative_logprob is not None:
            logprobs = [
                {id: Logprob(logprob, rank, text) for id, logprob, rank, text in entries} for entries in chunk.logprobs
            ]
            output.logprobs += logprobs
            for id, entry in zip(chunk.token_ids, logprobs, strict=True):
                output.cumulative_logprob += entry[id].logprob
        output.text += chunk.text
        output.token_ids += chunk.token_ids
        for (source, forward, depth, branch, confidence), text in zip(chunk.origins, chunk.pieces, strict=True):
            output.origins.append(Origin(source, forward, depth, branch, confidence, text))
        for ids, words, score, reason, stop in chunk.others:
            beside = CompletionOutput(0, words, ids, finish_reason=reason, stop_reason=stop, seed=output.seed)
            beside.score, beside.beside = score, chunk.index
            self.found.append(beside)
        output.notes += [Note(*found) for found in chunk.notes]
        output.finish_reason, output.stop_reason = chunk.finish_reason, chunk.stop_reason
        if chunk.usage is not None:
            output.usage, output.score = Usage(**chunk.usage), chunk.score
            output.usage.python_steps, output.usage.python_seconds = chunk.python or (0, 0.0)
        marks = [Mark(*mark) for mark in chunk.marks]
        ends = output.finish_reason, output.stop_reason
        return Delta(chunk.index, chunk.text, chunk.token_ids, logprobs, *ends, marks)

    def result(self) -> RequestOutput:
        """What there is now."""
        found = sorted(self.found, key=lambda output: output.beside or 0)  # stable: each answer's in their order
        for index, output in enumerate(found, len(self.outputs)):
            output.index = index
        return RequestOutput(
            request_id=self.id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_ids,
            outputs=self.outputs + found,
            finished=bool(self.outputs) and all(output.finish_reason is not None for output in self.outputs),
            strategy=self.strategy.name,
            guarantee=self.strategy.guarantee,
        )


class TextStream(Iterator[Delta]):
    """The deltas of one job, as they are committed. ``result`` is the :class:`RequestOutput` so far."""

    def __init__(self, engine: _core.Engine, job: Job) -> None:
        self._job = job
        self._ticket = job.start(engine)

    def __next__(self) -> Delta:
        try:
            chunk = self._ticket.next()
        except BaseException:  # Ctrl-C too: nobody will ask for more
            self._ticket.cancel()
            raise
        if chunk is None:
            raise StopIteration
        return self._job.take(chunk)

    @property
    def result(self) -> RequestOutput:
        """Complete once the stream has ended."""
        return self._job.result()

    def close(self) -> None:
        """Cancel what is left of the request."""
        self._ticket.cancel()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def gather_blocking(
    engine: _core.Engine, jobs: Sequence[Job], progress: Callable[[int, int], None] | None
) -> list[RequestOutput]:
    """Run all jobs in one batch. The first error is raised when all are done; see :meth:`LLM.generate`."""
    tickets = []
    found: list[RequestOutput | OmnidecodeError] = []
    try:
        for job in jobs:
            job.whole = True
            tickets.append(job.start(engine))
        for job, ticket in zip(jobs, tickets, strict=True):
            try:
                while (chunk := ticket.next()) is not None:
                    job.take(chunk)
                found.append(job.result())
            except OmnidecodeError as error:
                found.append(error)
            if progress is not None:
                progress(len(found), len(jobs))
    finally:
        for ticket in tickets:
            ticket.cancel()
    return _all_or_first_error(found)


async def gather_async(engine: _core.Engine, jobs: Sequence[Job]) -> list[RequestOutput]:
    """:func:`gather_blocking` for asyncio."""
    for job in jobs:
        job.whole = True
    streams = [AsyncTextStream(engine, job) for job in jobs]
    try:
        found = [await stream.finish() for stream in streams]
    finally:
        for stream in streams:
            stream.close()
    return _all_or_first_error(found)


def _all_or_first_error(found: Sequence[RequestOutput | OmnidecodeError]) -> list[RequestOutput]:
    for error in found:
        if isinstance(error, OmnidecodeError):
            error.outputs = list(found)  # type: ignore[attr-defined]
            raise error
    return [output for output in found if isinstance(output, RequestOutput)]


class AsyncTextStream(AsyncIterator[Delta]):
    """:class:`TextStream` for asyncio. Cancelling the task that waits for a delta cancels the request."""

    def __init__(self, engine: _core.Engine, job: Job) -> None:
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._ticket = job.start(engine)
        self._key = _LISTENER.attach(self._ticket, self._ring)

    def _ring(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._ticket.cancel()

    async def __anext__(self) -> Delta:
        try:
            while True:
                self._news.clear()
                chunk, ended = self._ticket.poll()
                if chunk is not None:
                    return self._job.take(chunk)
                if ended:
                    _LISTENER.forget(self._key)
                    raise StopAsyncIteration
                await self._news.wait()
        except (asyncio.CancelledError, OmnidecodeError):
            self.close()
            raise

    async def finish(self) -> RequestOutput | OmnidecodeError:
        """Everything, or the error that ended it."""
        try:
            async for _ in self:
                pass
            return self.result
        except OmnidecodeError as error:
            return error

    @property
    def result(self) -> RequestOutput:
        """Complete once the stream has ended."""
        return self._job.result()

    def close(self) -> None:
        """Cancel what is left of the request."""
        self._ticket.cancel()
        _LISTENER.forget(self._key)

    async def aclose(self) -> None:
        """:meth:`close`, as asynchronous generators call it."""
        self.close()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Listener:
    """One thread that waits for news of all asynchronous requests, so that the engine never waits for Python."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bell: _core.Bell | None = None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0

    def attach(self, ticket: _core.Ticket, callback: Callable[[], None]) -> int:
        """Call ``callback`` on news of ``ticket``; returns the key to forget it by."""
        with self._lock:
            if self._bell is None:
                self._bell = _core.Bell()
                threading.Thread(target=self._listen, args=(self._bell,), name="omnidecode", daemon=True).start()
            self._next += 1
            key = self._next
            self._callbacks[key] = callback
            bell = self._bell
        ticket.attach(bell, key)
        return key

    def forget(self, key: int) -> None:
        """Nobody listens to this ticket any more."""
        with self._lock:
            self._callbacks.pop(key, None)

    def _listen(self, bell: _core.Bell) -> None:
        while True:
            for key in bell.wait():
                with self._lock:
                    callback = self._callbacks.get(key)
                if callback is not None:
                    callback()


_LISTENER = _Listener()


def _forked() -> None:
    """A forked child has the lock and the callbacks, but not the thread."""
    global _LISTENER
    _LISTENER = _Listener()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
