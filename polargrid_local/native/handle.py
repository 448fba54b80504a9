"""Handle: one native engine as its readers see it, and the pump that serves those of event loops.

Readers and the pump hold a handle, never the LoadedModel: that one closes the engine when its last user lets go of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from polargrid_local.errors import EngineClosed, EngineCrashed, ForkedEngineError, PolarGridError, ValidationError
from polargrid_local.native.core import NativeEngine, translated

BUSY_WAIT_MS, IDLE_WAIT_MS = 100, 500
LOG_EVERY_S = 0.1

log = logging.getLogger("polargrid_local.llama")
logging.getLogger("polargrid_local").addHandler(logging.NullHandler())  # without it, warnings would go to stderr

Drain = Callable[[], Sequence[tuple[int, str]]]  # lines of a native log since the last call: (level, text)


_here = threading.local()  # `waits`: the handle whose engine waits for a function of Python in this thread


class LoopReader(Protocol):
    """A reader that an event loop drives."""

    loop: asyncio.AbstractEventLoop

    def rouse(self) -> None:
        """In the loop's own thread: there is something to read."""


class Handle:
    """One native engine, the process it belongs to, and how it ended."""

    def __init__(self, native: NativeEngine, drain_common: Drain | None) -> None:
        self.native = native
        self.pid = os.getpid()
        self.closed = False
        self.failure: Exception | None = None  # set once the pump has ended: why
        self.loop_readers: weakref.WeakValueDictionary[int, LoopReader] = (
            weakref.WeakValueDictionary()
        )  # by the id of their outbox
        # The engine's own log lines, then those of llama.cpp that belong to no engine.
        self.drains = [drain for drain in (getattr(native, "drain_log", None), drain_common) if drain is not None]
        self.pump = threading.Thread(target=_pump, args=(self,), name="polargrid-pump", daemon=True)

    @property
    def ours(self) -> bool:
        """Whether there is anything left to act on: not closed, and not inherited through fork()."""
        return not self.closed and os.getpid() == self.pid

    def check_process(self) -> None:
        """Raises ForkedEngineError. A forked child has no engine thread: a stream it inherited would never say a
        word."""
        if os.getpid() != self.pid:
            raise ForkedEngineError("this engine belongs to the parent process; open a new one after fork()")

    def check(self) -> None:
        """Raises EngineClosed or ForkedEngineError."""
        self.check_process()
        if self.closed:
            raise EngineClosed("the engine is closed")

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """For a thread of the engine, which does nothing else meanwhile."""
        _here.waits = self
        try:
            return function(*arguments)
        finally:
            _here.waits = None

    @property
    def waits_here(self) -> bool:
        """Whether the engine waits for what this thread does."""
        return getattr(_here, "waits", None) is self

    def check_free(self) -> None:
        """Raises ValidationError in a function that the engine waits for: each would wait for the other."""
        if self.waits_here:
            raise ValidationError.at("logits_processor", "cannot ask the engine that waits for it")

    def cancel(self, ids: Iterable[int]) -> None:
        """Idempotent; a no-op after the end, after close() and in a forked child. Takes no lock of ours: for finalizers
        too."""
        if self.ours:
            for id in ids:
                try:
                    self.native.cancel(id)
                except Exception:
                    if not self.closed:
                        raise

    def pass_log_on(self) -> None:
        """Never raises: whatever a host's log handlers do, no request may suffer for it."""
        for drain in self.drains:
            for level, text in drain():
                with contextlib.suppress(Exception):
                    log.log(level, "%s", text)

    def close(self) -> None:
        """Also a finalizer, in any thread and at interpreter exit: takes no lock of ours; never acts in a forked
        child."""
        if not self.ours:
            return
        self.closed = True
        if self.waits_here:  # in a function that the engine waits for nobody can wait for its end
            threading.Thread(target=self.native.close, name="polargrid-close", daemon=True).start()
            return
        self.native.close()
        if threading.current_thread() is not self.pump and self.pump.ident is not None:
            self.pump.join(timeout=10)


def ring(readers: Iterable[LoopReader]) -> None:
    """Tells event loops, from any thread, that these readers have news: one call per loop, however many they are."""
    loops: dict[asyncio.AbstractEventLoop, list[LoopReader]] = {}
    for reader in readers:
        loops.setdefault(reader.loop, []).append(reader)
    for loop, group in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: its streams are cancelled when they are collected
            loop.call_soon_threadsafe(_rouse, group)


def _rouse(readers: Iterable[LoopReader]) -> None:
    for reader in readers:
        reader.rouse()


def _pump(handle: Handle) -> None:
    """Rings the loops that have news, once per step of the engine, and passes its log on, until the engine ends."""
    readers, next_log = handle.loop_readers, 0.0
    try:
        while True:
            ready = handle.native.listen(BUSY_WAIT_MS if readers else IDLE_WAIT_MS)
            if ready:
                ring([reader for id in ready if (reader := readers.get(id)) is not None])
            now = time.monotonic()
            if now >= next_log:
                next_log = now + LOG_EVERY_S
                handle.pass_log_on()
    except Exception as error:  # engine_closed is the ordinary end
        error = translated(error)
        handle.failure = error if isinstance(error, PolarGridError) else EngineCrashed(str(error) or repr(error))
        # Each of them reads what is left for it, and is then told why there is no more.
        ring([reader for reference in readers.valuerefs() if (reader := reference()) is not None])
    handle.pass_log_on()
