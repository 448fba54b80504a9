"""Backend: a Service in a thread of its own, for callers in this process from any thread and any event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from polargrid_local.api.parse import parse_request
from polargrid_local.errors import ForkedEngineError
from polargrid_local.service.service import Service
from polargrid_local.service.settings import ServiceSettings

if TYPE_CHECKING:
    from polargrid_local.engine import AsyncEngine
    from polargrid_local.service.chunks import Chunk, ChunkStream
    from polargrid_local.service.service import Kind, Reply

T = TypeVar("T")


class OpenStream:
    """A started generation: chunk dicts by `async for`, on the loop that opened it.

    `close` from any thread, any number of times."""

    def __init__(self, chunks: ChunkStream, release: Callable[[int], Any]) -> None:
        self._chunks = chunks
        self._steps = chunks.__aiter__()
        self._release = release

    def __aiter__(self) -> OpenStream:
        return self

    async def __anext__(self) -> Chunk:
        return await self._steps.__anext__()

    async def step(self) -> Chunk | None:
        """The next chunk, None after the last."""
        return await anext(self, None)

    def close(self) -> None:
        self._chunks.cancel()
        self._release(self._chunks.usage["total_tokens"])


class Backend:
    """Models are loaded once for all clients with the same settings, as they would be behind one address.

    Closed when the last client that refers to it is gone."""

    # Weak references: a backend lives as long as its clients, and finding it here must not prolong that.
    _shared: ClassVar[weakref.WeakValueDictionary[str, Backend]] = weakref.WeakValueDictionary()
    _sharing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: ServiceSettings, engine: AsyncEngine | None = None) -> None:
        if engine is None:  # this one is never closed here: its models close when nobody refers to them
            from polargrid_local import AsyncEngine

            engine = AsyncEngine(**settings.engine_options())
        self.service = Service(engine, settings)
        self.service.ready = True
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="polargrid-backend", daemon=True)
        self._thread.start()
        weakref.finalize(self, _stop, self._loop, self._thread, self._pid)

    @classmethod
    def shared(cls, settings: ServiceSettings) -> Backend:
        key = settings.model_dump_json()
        with cls._sharing:
            backend = cls._shared.get(key)
            if backend is None or backend._pid != os.getpid():
                backend = cls._shared[key] = cls(settings)
            return backend

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs `work` on the backend's loop."""
        if self._pid != os.getpid():
            work.close()
            raise ForkedEngineError("this client belongs to the parent process; make a new one after fork()")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, run on the backend's loop, awaited on the caller's; a cancelled caller cancels it."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(self.submit(work))

    async def answer(self, kind: Kind, body: dict[str, Any]) -> Reply:
        """`body`: the fields of a request. Raises what `parse_request`, a lease and the engine raise."""
        return await self.wait(self._answer(kind, body))

    async def _answer(self, kind: Kind, body: dict[str, Any]) -> Reply:
        asked = parse_request(kind, body)
        lease = await self.service.lease(asked.model)
        tokens = 0
        try:
            reply = await self.service.answer(kind, asked, lease)
            tokens = reply["usage"]["total_tokens"]
            return reply
        finally:
            lease.release(tokens)

    async def open(self, kind: Kind, body: dict[str, Any]) -> OpenStream:
        """Raises what is wrong with the request; then the answer has begun, on the caller's loop."""
        asked = parse_request(kind, body)
        lease = await self.wait(self.service.lease(asked.model))
        chunks = self.service.stream(kind, asked, lease)
        loop = self._loop

        def release(tokens: int) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lease.release, tokens)

        try:
            await chunks.start()
        except BaseException:
            release(0)
            raise
        return OpenStream(chunks, release)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    """A finalizer: it may run in any thread, also the backend's own."""
    if os.getpid() == pid and not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
        if threading.current_thread() is not thread:
            thread.join(timeout=10)
