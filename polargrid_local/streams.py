"""The streams that engines return: one call to one model, as an iterator of its chunks."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from polargrid_local.api.assemble import Assembler
from polargrid_local.api.events import Event
from polargrid_local.api.prepare import Job
from polargrid_local.api.replies import FinishReason, Timings, ToolCallReply, Usage
from polargrid_local.errors import EngineClosed, ValidationError
from polargrid_local.native.delivery import Reader, TaskReader, ThreadReader, rest_if_leaving
from polargrid_local.native.loaded_model import LoadedModel

C = TypeVar("C", bound=Mapping[str, Any])  # a chunk
R = TypeVar("R")  # the whole answer


class Call(Generic[C]):
    """One call to one model: its native requests, their events, the answer so far."""

    _model: LoadedModel
    _reader: Reader
    prefill: tuple[int, int] | None = None  # tokens of a long prompt read so far, and all; None before and after

    def __init__(self) -> None:
        # Until there is a job: nothing said, nothing counted.
        self._assembler: Assembler[C, Any] = Assembler("", "", 0, 0, 1)
        self._ids: list[int] = []
        self._chunks: deque[C] = deque()  # made, not yet read
        self._over = False  # no more events are wanted
        self._cancelled = False
        self._turn = threading.Lock()  # held by whoever reads

    def _submit(self, model: LoadedModel, job: Job[C, Any], reader: Reader) -> None:
        self._model, self._reader, self._assembler = model, reader, job.assembler
        self._ids = model.submit(job.requests, reader)
        self._chunks.extend(job.assembler.start())

    def _take_turn(self) -> None:
        """Two readers would take each other's events, and one of them wait for ever: the second is refused."""
        if not self._turn.acquire(blocking=False):
            if self._ids:
                self._model.check_process()  # the reader may have stayed in the parent
            raise ValidationError(
                "this stream has a reader already: one thread or task at a time", code="stream_in_use"
            )

    def _feed(self, index: int, event: Event) -> None:
        """Raises what the event says, or a filter of the caller's; who reads then cancels."""
        if self._over:
            return  # cancelled while we waited
        self.prefill = (round(event.progress * event.n_prompt), event.n_prompt) if event.kind == "progress" else None
        assembler = self._assembler
        self._chunks.extend(assembler.feed(event, index))
        if assembler.to_cancel:
            self._model.cancel([self._ids[i] for i in assembler.to_cancel])
            assembler.to_cancel.clear()
        if assembler.done:
            self._over = True

    def cancel(self) -> None:
        """From any thread: the request stops computing and its iteration ends, without a finish reason. Idempotent."""
        if self._over:
            return
        self._over = self._cancelled = True
        if self._ids:
            self._model.cancel(self._ids)
            self._reader.wake()

    def __del__(self) -> None:
        if not self._over and self._ids:
            self._reader.abandon()

    @property
    def id(self) -> str:
        return self._assembler.id

    @property
    def seed(self) -> int:
        """The seed in use; given again with the same prompt it gives the same text."""
        return self._assembler.seed

    @property
    def system_fingerprint(self) -> str:
        """Of all that fixes the answer's bits beside the request: equal in every run of one set-up."""
        return self._assembler.fingerprint

    @property
    def text(self) -> str:
        """All text so far (of the first choice)."""
        return self._assembler.text

    @property
    def reasoning(self) -> str:
        """The reasoning so far, where it is no part of the text."""
        return self._assembler.reasoning

    @property
    def tool_calls(self) -> list[ToolCallReply]:
        """The calls so far, as a message has them."""
        return self._assembler.tool_calls

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._assembler.finish_reason

    @property
    def parsed(self) -> Any:
        """The answer as the class that `response_format` was; None without one, and until the answer is complete."""
        return self._assembler.parsed

    @property
    def dropped_keywords(self) -> list[str]:
        """Paths in the schema of a `response_format` that is not `strict` that the answer is not held to."""
        return list(self._assembler.dropped_keywords)

    @property
    def ignored_fields(self) -> list[str]:
        """Fields of its request that change no answer of this model."""
        return list(self._assembler.ignored_fields)

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def usage(self) -> Usage:
        """Token counts; true once the stream has ended. Where the request had a `prediction`, with what became of the
        drafts, as `completion_tokens_details`."""
        return self._assembler.usage

    @property
    def timings(self) -> Timings:
        """queue_ms, prefill_ms, first_token_ms (since submit; None = not reached), total_ms (until its last event
        so far), tokens_per_second, cached_tokens; accepted_draft_tokens and rejected_draft_tokens, which came true and
        which did not, of all drafts, whether taken from a `prediction` or from text that was said before."""
        return self._assembler.timings

    @property
    def assembler(self) -> Assembler[C, Any]:
        return self._assembler

    def __repr__(self) -> str:
        if self._cancelled:
            state = "cancelled"
        elif self._over:
            state = f"finished: {self.finish_reason}" if self.finish_reason else "failed"
        elif not self._ids:
            state = "not started"
        elif self.prefill is not None:
            state = "reading, %d of %d prompt tokens" % self.prefill
        else:
            state = "running"
        text = self.text
        shown = repr(text) if len(text) <= 40 else f"...{text[-37:]!r}"
        name = " ".join(filter(None, (type(self).__name__, self.id)))
        return f"<{name} {state}, {self.usage['completion_tokens']} tokens: {shown}>"


class ChatStream(Call[C], Iterator[C]):
    """Chunk dicts, one per piece of text, as they are produced; a context manager too: leaving it cancels what still
    runs.

    `next()` raises what ended the stream early: EngineClosed, NumericError, ... For one reader at a time: another gets
    a ValidationError, code stream_in_use, and does not disturb the first. `cancel()` may come from any thread."""

    _reader: ThreadReader

    def __init__(self, model: LoadedModel, job: Job[C, Any], *, quiet: bool = False) -> None:
        super().__init__()
        try:
            self._submit(model, job, ThreadReader(model.handle, quiet=quiet))
        except EngineClosed:
            rest_if_leaving()
            raise

    def __iter__(self) -> ChatStream[C]:
        return self

    def __next__(self) -> C:
        self._take_turn()
        try:
            return self._step()
        finally:
            self._turn.release()

    def _step(self) -> C:
        chunks = self._chunks
        while not chunks:
            if self._over:
                raise StopIteration
            self._model.check_process()
            try:
                if (entry := self._reader.get()) is not None:
                    self._feed(*entry)
            except BaseException as error:  # Ctrl-C, the engine's end, what an event says
                self.cancel()
                if isinstance(error, EngineClosed):
                    rest_if_leaving()
                raise
        if self._cancelled:
            raise StopIteration
        return chunks.popleft()

    def close(self) -> None:
        self.cancel()

    def __enter__(self) -> ChatStream[C]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()


class AsyncChatStream(Call[C], AsyncIterator[C]):
    """ChatStream for `async for`. `start()` checks, tokenizes and queues the request off the loop; the first step calls
    it if nobody has. A cancelled step cancels the request. For one task at a time, as ChatStream, and one event
    loop."""

    _reader: TaskReader

    def __init__(self, begin: Callable[[], tuple[LoadedModel, Job[C, Any]]], *, quiet: bool = False) -> None:
        super().__init__()
        self._begin = begin
        self._quiet = quiet
        self._starting: asyncio.Future[None] | None = None

    async def start(self) -> AsyncChatStream[C]:
        """Raises what the checks of the request raise. Idempotent."""
        self._check_loop()
        if self._starting is None:
            loop = asyncio.get_running_loop()
            self._starting = loop.run_in_executor(None, self._start, loop)
            # An exception counts as seen, also when nobody waits any more because we were cancelled.
            self._starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            self.cancel()
            raise
        except BaseException:
            self._over = True
            raise
        return self

    def _check_loop(self) -> None:
        if self._starting is not None and self._starting.get_loop() is not asyncio.get_running_loop():
            raise ValidationError("this stream belongs to another event loop, which began it", code="stream_in_use")

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._over:
            return
        model, job = self._begin()
        self._submit(model, job, TaskReader(model.handle, loop, quiet=self._quiet and not job.assembler.watches))
        if self._over:  # cancelled meanwhile, when there was nothing to cancel yet
            self._model.cancel(self._ids)

    def __aiter__(self) -> AsyncChatStream[C]:
        return self

    async def __anext__(self) -> C:
        self._check_loop()
        self._take_turn()
        try:
            return await self._step()
        finally:
            self._turn.release()

    async def _step(self) -> C:
        chunks = self._chunks
        if not self._ids and not self._over:
            await self.start()
        while not chunks:
            if self._over:
                raise StopAsyncIteration
            self._model.check_process()
            try:
                if (entry := await self._reader.get()) is not None:
                    self._feed(*entry)
            except BaseException:  # our task was cancelled, the engine has ended, what an event says
                self.cancel()
                raise
        if self._cancelled:
            raise StopAsyncIteration
        return chunks.popleft()

    async def aclose(self) -> None:
        self.cancel()

    async def __aenter__(self) -> AsyncChatStream[C]:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()


class BulkCall(Call[dict[str, Any]]):
    """Many small requests, a window of them at a time, for a whole answer: `run()` blocks."""

    _reader: ThreadReader

    def run(self, model: LoadedModel, job: Job[dict[str, Any], R]) -> R:
        """The whole answer. Raises what any of the requests raises, after cancelling the rest."""
        self._take_turn()  # for good: a batch runs once
        self._model, self._assembler = model, job.assembler
        self._reader = ThreadReader(model.handle, quiet=True)
        window = max(1, model.info.get("max_streams", 1))
        try:
            for first in range(0, len(job.requests), window):
                part = job.requests[first : first + window]
                self._ids = model.submit(part, self._reader, first)
                for _ in part:
                    if entry := self._reader.get():
                        self._feed(*entry)
                    if self._cancelled:
                        raise EngineClosed("the request was cancelled")
        except BaseException:
            self.cancel()
            raise
        return job.assembler.response()
