"""Delivery: the events of one call, out of a native outbox of its own, to a thread or to a task.

The engine's own thread fills the outbox, gathers text there for a slow reader, and wakes a thread that waits in it. A
task cannot wait there: it is told by the pump, one call per event loop and step, and takes what is there without
waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from polargrid_local.api.events import Event
from polargrid_local.native.core import translated
from polargrid_local.native.handle import Handle, ring

SLICE_MS = 50  # a blocked reader looks up this often, so that Ctrl-C is delivered on every platform
TERMINAL = frozenset(("finished", "embedding", "error"))


class Reader:
    """Events in order, of requests that `register` named. `quiet`: only last events are worth waking for."""

    __slots__ = ("__weakref__", "_events", "_handle", "_indices", "_woken", "outbox")

    def __init__(self, handle: Handle, *, quiet: bool = False, rings: bool = False) -> None:
        self._handle = handle
        self._events: deque[Event] = deque()
        self._indices: dict[int, int] = {}  # of requests whose last event has not been read
        self._woken = False
        self.outbox = handle.native.outbox(quiet, rings)

    def register(self, id: int, index: int) -> None:
        """Events of request `id` come with `index`; those of a request that nobody registered are dropped."""
        self._indices[id] = index

    def abandon(self) -> None:
        """Cancels what still runs. For finalizers, in any thread: the native engine holds none of its locks while it
        calls Python, for a logits processor."""
        self._handle.cancel(tuple(self._indices))

    def wake(self) -> None:
        """From any thread: make the reader look up, without news."""
        self._woken = True

    def _next(self) -> tuple[int, Event] | None:
        while self._events:
            event = self._events.popleft()
            index = self._indices.get(event.id)
            if index is not None:
                if event.kind in TERMINAL:
                    del self._indices[event.id]
                return index, event
        return None


class ThreadReader(Reader):
    """For a thread, which waits in the outbox itself: none of our threads stands between it and the engine's."""

    __slots__ = ()

    def get(self) -> tuple[int, Event] | None:
        """The next event and its index; None after wake(). Blocks; KeyboardInterrupt gets through. Raises EngineClosed
        once the engine has ended and all it said is read, ValidationError where the engine waits for this thread."""
        while (entry := self._next()) is None:
            if self._woken:
                self._woken = False
                return None
            self._handle.check_free()
            try:
                self._events.extend(self.outbox.wait(SLICE_MS))
            except Exception as error:
                raise translated(error) from None
        return entry

    def wake(self) -> None:
        super().wake()
        self.outbox.wake()


class TaskReader(Reader):
    """For a task of `loop`, which the pump rouses."""

    __slots__ = ("_news", "_waiter", "loop")

    def __init__(self, handle: Handle, loop: asyncio.AbstractEventLoop, *, quiet: bool = False) -> None:
        super().__init__(handle, quiet=quiet, rings=True)
        self._news = True  # events may be there before the pump knows this reader: it looks once without being told
        self._waiter: asyncio.Future[None] | None = None
        self.loop = loop
        handle.loop_readers[self.outbox.id] = self

    async def get(self) -> tuple[int, Event] | None:
        """As ThreadReader.get(), and raises what ended the pump."""
        while (entry := self._next()) is None:
            if self._woken:
                self._woken = False
                return None
            if not self._news:
                if self._handle.failure is not None:
                    raise self._handle.failure
                self._waiter = self.loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            self._news = False
            try:
                self._events.extend(self.outbox.drain())
            except Exception as error:
                raise translated(error) from None
        return entry

    def rouse(self) -> None:
        """In the loop's own thread."""
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def wake(self) -> None:
        super().wake()
        ring((self,))


def rest_if_leaving() -> None:
    """Does not return in a daemon thread of an interpreter that is on its way out. Such a thread is about to be frozen
    wherever it is; the EngineClosed it would raise first could only print a traceback over the program's last words."""
    if not threading.main_thread().is_alive() and threading.current_thread().daemon:
        threading.Event().wait()
