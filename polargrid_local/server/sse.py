"""EventStream: a generation written as it comes, in its exchange's words, and the watch over clients that leave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from polargrid_local.dialects.exchange import Exchange, with_cached
from polargrid_local.errors import PolarGridError, TimeoutError
from polargrid_local.server.body import ClientGone
from polargrid_local.server.config import ServeConfig
from polargrid_local.server.metrics import Metrics
from polargrid_local.server.replies import DROPPED, FINGERPRINT, IGNORED, internal_error, list_header, refusal_of
from polargrid_local.server.telemetry import RequestSpan
from polargrid_local.service.chunks import Chunk, ChunkStream

log = logging.getLogger(__name__)
T = TypeVar("T")

COMMENT = b": keep-alive\n\n"
PREFILL_TICK_S = 0.2  # how often a comment may tell how much of a long prompt was read
HEADERS = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class EventStream(Response):
    """What the exchange says of each chunk, flushed as it comes.

    Where its words have comments: one when nothing else was written for `heartbeat_s`; `: prefill DONE TOTAL`, in
    tokens, while a long prompt is read. Ends with the exchange's end, or with its failure and no end. The generation is
    cancelled when the client leaves, takes nothing for `write_timeout_s`, or the request exceeds its time.
    `started`: when the request came, monotonic. `on_end` is called once, whatever happened.
    """

    def __init__(
        self,
        exchange: Exchange,
        chunks: ChunkStream,
        started: float,
        config: ServeConfig,
        metrics: Metrics,
        span: RequestSpan,
        request_id: str,
        on_end: Callable[[], None],
    ) -> None:
        self.exchange = exchange
        self.status_code = 200
        self.background = None
        self.chunks = chunks
        self.config = config
        self.metrics = metrics
        self.span = span
        self.request_id = request_id
        self.on_end = on_end
        self.started = started
        self._written = time.monotonic()
        self._writing = False
        self._silent = True  # no text yet
        self._failure: asyncio.Future[PolarGridError] = asyncio.get_running_loop().create_future()

    def fail(self, error: PolarGridError) -> None:
        """End the stream with an error event."""
        if not self._failure.done():
            self._failure.set_result(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.metrics.streams.add(self)
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await self._watch(pump, gone, send)
            if not pump.done():
                self.span.failed(ClientGone())
            if self._stalled():
                # An ordinary close waits until the reader has taken what is buffered, which this one does not do.
                scope.get("state", {}).get("abort", lambda: None)()
                await gone
        finally:
            pump.cancel()
            gone.cancel()
            await asyncio.gather(pump, gone, return_exceptions=True)
            self.metrics.streams.discard(self)
            try:
                await self.chunks.aclose()
            finally:
                self.on_end()

    async def _watch(self, pump: asyncio.Task[None], gone: asyncio.Task[None], send: Send) -> None:
        """Until the pump is done, the client gone, the reader stalled, or the stream failed and said so."""
        config = self.config
        tick = min(config.heartbeat_s, config.write_timeout_s) / 4
        told: tuple[int, int] | None = None
        while not pump.done():
            wait_s = min(tick, PREFILL_TICK_S) if self._silent else tick
            ends: list[asyncio.Future[Any]] = [pump, gone, self._failure]
            await asyncio.wait(ends, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if pump.done() or gone.done() or self._stalled():
                return
            now = time.monotonic()
            if now - self.started > config.request_timeout_s:
                self.fail(TimeoutError(f"the request took longer than {config.request_timeout_s:g} s"))
            if self._failure.done():
                pump.cancel()
                await asyncio.wait({pump})
                last = asyncio.create_task(self._write(send, self._failed(self._failure.result()), more=False))
                await asyncio.wait({last, gone}, timeout=config.write_timeout_s, return_when=asyncio.FIRST_COMPLETED)
                last.cancel()
                return
            prefill = self.chunks.prefill
            if self._writing or not self.exchange.comments:
                continue
            if prefill is not None and prefill != told:
                told = prefill
                await self._write(send, b": prefill %d %d\n\n" % prefill)
            elif now - self._written >= config.heartbeat_s:
                await self._write(send, COMMENT)

    async def _pump(self, send: Send) -> None:
        ignored = self.exchange.all_ignored(self.chunks.ignored_fields)
        first = {"content-type": self.exchange.media_type, **list_header(IGNORED, ignored)}
        first |= list_header(DROPPED, self.chunks.dropped_keywords)
        if fingerprint := self.chunks.system_fingerprint:
            first[FINGERPRINT] = fingerprint
        headers = [(name.encode(), value.encode()) for name, value in first.items()] + HEADERS
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            before = 0.0
            async for chunk in self.chunks:
                self.span.said(chunk)
                text = _carries_text(chunk)
                told = self._with_account(chunk, fingerprint) if chunk.get("usage") else chunk
                if said := b"".join(self.exchange.chunk(told)):
                    await self._write(send, said)
                if text:
                    self._silent = False
                    now = time.monotonic()
                    if before:
                        self.metrics.between_tokens.observe(now - before)
                    else:
                        self.metrics.first_token.observe(now - self.started)
                    before = now
            last = b"".join(self.exchange.end())
        except PolarGridError as error:
            log.warning("stream ended by %s", error.code)
            last = self._failed(error)
        except Exception as error:  # the client is told that something broke; only the log says where
            log_crash(error)
            last = self._failed(internal_error())
        await self._write(send, last, more=False)

    async def _write(self, send: Send, data: bytes, more: bool = True) -> None:
        self._writing = True
        self._written = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._writing = False

    def _with_account(self, chunk: Chunk, fingerprint: str) -> Mapping[str, Any]:
        """A chunk that tells usage, which only clients of OpenAI's kind ask for: with what they look for beside it."""
        timings = self.chunks.timings
        told: dict[str, Any] = {**chunk}
        if self.exchange.timed:
            told["timings"], told["pg_metadata"] = timings, {"seed": self.chunks.seed}
        if self.exchange.timed or not chunk["choices"]:
            told["usage"] = with_cached(chunk["usage"], timings["cached_tokens"])
        if not chunk["choices"]:
            told["system_fingerprint"] = fingerprint
        return told

    def _failed(self, error: PolarGridError) -> bytes:
        self.span.failed(error)
        return b"".join(self.exchange.failure(refusal_of(error, self.request_id)))

    def _stalled(self) -> bool:
        return self._writing and time.monotonic() - self._written > self.config.write_timeout_s


def _carries_text(chunk: Mapping[str, Any]) -> bool:
    choices = chunk["choices"]
    return bool(choices) and bool(choices[0].get("text") or choices[0].get("delta", {}).get("content"))


async def disconnected(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    message: Message = {"type": "http.request"}
    while message["type"] != "http.disconnect":
        message = await receive()


async def while_connected(receive: Receive, work: Awaitable[T], stop: asyncio.Future[PolarGridError]) -> T:
    """The result of `work`. It is cancelled when the client leaves first (ClientGone) or `stop` comes (its error)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(disconnected(receive))
    ends: list[asyncio.Future[Any]] = [task, gone, stop]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        raise stop.result() if stop.done() else ClientGone
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def log_crash(error: BaseException) -> None:
    """Where an unexpected exception came from, without its text: that may quote a prompt."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    log.error("%s at %s", type(error).__name__, " < ".join(reversed(frames)))
