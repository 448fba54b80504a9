"""Loaded models: one native engine each, and the ways its events take to their readers.

The only importer of `_core`. A thread waits for its events itself, in a native outbox of its own. Tasks cannot wait there:
one pump thread per engine crosses into native code once per step for all of them, files the events into mailboxes and
wakes each asyncio loop once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from polargrid_local.api.events import Event, TokenLogprob
from polargrid_local.api.replies import FileSummary, ModelStats, NativeInfo, SystemInfo
from polargrid_local.errors import (
    EngineClosed,
    ForkedEngineError,
    InvalidModelError,
    ModelFileChanged,
    NotFoundError,
    PolarGridError,
    ServerError,
    ValidationError,
    from_code,
)
from polargrid_local.native.file_kind import HEAD_BYTES, file_kind
from polargrid_local.shards import model_files, shard_of

SLICE_MS = 50  # a blocked reader looks up this often, so that Ctrl-C is delivered on every platform
BUSY_WAIT_MS, IDLE_WAIT_MS = 100, 500
MAX_PENDING = 256  # events per mailbox; beyond them the text of one request is gathered into one
TERMINAL = frozenset(("finished", "embedding", "error"))

log = logging.getLogger("polargrid_local.llama")
logging.getLogger("polargrid_local").addHandler(logging.NullHandler())  # without it, warnings would go to stderr
_MISSING: Any = object()
_NEWS: Any = object()  # no event: a reader that finds it looks at its own state again


class NativeOutbox(Protocol):
    def wait(self, timeout_ms: int, /) -> Sequence[Event]: ...
    def wake(self) -> None: ...


class NativeEngine(Protocol):
    """The verbs of `_core.Engine`, which a factory's engine has too."""

    def outbox(self, quiet: bool, /) -> Any: ...
    def submit(self, request: dict[str, Any], outbox: Any, /) -> int: ...
    def cancel(self, id: int, /) -> None: ...
    def wait_events(self, timeout_ms: int, /) -> Sequence[Event]: ...
    def tokenize(self, spans: Sequence[tuple[str, bool]], add_bos: bool, /) -> list[int]: ...
    def info(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Core(Protocol):
    """The native module."""

    def Engine(self, path: str, options: dict[str, Any], /) -> NativeEngine: ...
    def inspect(self, path: str, /) -> dict[str, Any]: ...
    def system(self) -> dict[str, Any]: ...
    def drain_log(self) -> list[tuple[int, str]]: ...


def core() -> Core:
    """The native module, imported when first needed."""
    # ggml would otherwise run gdb on this process when it aborts.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    # libgomp reads its settings when it is loaded. Its default is milliseconds of spinning at each of hundreds of
    # barriers per token when another program holds a core; a thousand rounds lose nothing on a quiet machine. "Active"
    # keeps those thousand when a second engine in this process makes more threads than there are CPUs: the default is
    # then a hundred, which sleep and wake at nearly every barrier.
    brief = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "active"}
    if brief.keys() & os.environ.keys():
        brief = {}  # the user chose
    os.environ.update(brief)
    try:
        from polargrid_local import _core
    finally:
        for name in brief:
            del os.environ[name]  # the host's other programs choose for themselves
    return _core


def system() -> SystemInfo:
    """Devices, CPU features and build of the native module."""
    return cast(SystemInfo, core().system())


def inspect(path: str | bytes | os.PathLike[str]) -> FileSummary:
    """What a GGUF file says about itself, without loading it. Raises InvalidModelError, NotFoundError, ValidationError."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise ValidationError(f"path: must be a path, got {type(path).__name__}", param="path")
    place = Path(os.fsdecode(path))
    if not os.path.isfile(place):
        raise NotFoundError(f"no model file at {str(place)[:200]!r}", param="path", path=str(place))
    text = _native_path(place)
    try:
        return cast(FileSummary, core().inspect(text))
    except Exception as error:
        raise _refused(error, place) from None


def _native_path(path: Path) -> str:
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidModelError(
            f"{text}: the path of a model must be UTF-8: rename it", param="model", path=text
        ) from None
    return text


def _refused(error: Exception, path: Path, adapters: Sequence[str] = ()) -> Exception:
    """A native refusal of a model file, saying which file and what that looks like."""
    error = _translate(error)
    if not isinstance(error, (InvalidModelError, NotFoundError, ServerError)) or error.code == "cancelled":
        return error
    message = f"{' with adapter '.join([str(path), *adapters])}: {error.message}"
    if isinstance(error, InvalidModelError):
        for file in (path, *map(Path, adapters)):
            if kind := _looks_like(file, error.details or {}):
                message += f"; {file.name if adapters else 'this'} looks like {kind}"
                break
    error.message, error.args, error.path = message, (message,), str(path)
    return error


def _looks_like(path: Path, why: dict[str, Any]) -> str | None:
    """`why`: the details of a refusal."""
    try:
        with open(path, "rb") as file:
            head, n_bytes = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    kind = file_kind(head, n_bytes, path.name)
    # A splitter puts the keys of the model into the first file alone.
    if kind is None and why.get("key") in ("split.no", "general.architecture") and b"split.no" in head:
        shard = shard_of(path.name)
        return f"a later shard of a split model: open its first file{', ' + shard.names()[0] if shard else ''}"
    if kind is None and str(why.get("value")).startswith(("cut short", "larger than the file")):
        return "a partial download: let it end, or begin it anew"
    return kind


def _translate(error: Exception) -> Exception:
    """Native errors are (code, message, details); anything else is passed on."""
    if len(error.args) == 3 and isinstance(error.args[0], str) and not isinstance(error, PolarGridError):
        code, message, details = error.args
        return from_code(code, message, dict(details or {}))
    return error


def rest_if_leaving() -> None:
    """Does not return in a daemon thread of an interpreter that is on its way out. Such a thread is about to be frozen
    wherever it is; the EngineClosed it would raise first could only print a traceback over the program's last words."""
    if not threading.main_thread().is_alive() and threading.current_thread().daemon:
        threading.Event().wait()


# --- inboxes and mailboxes --------------------------------------------------------------------------------------------


class Ended:
    """An event of our own making: the request failed on this side of the border."""

    kind, reason, progress = "error", "", 0.0
    n_prompt = n_cached = n_generated = 0
    queue_ms = prefill_ms = first_token_ms = total_ms = -1.0
    embedding = None

    def __init__(self, code: str, text: str, id: int = 0) -> None:
        self.id, self.code, self.text = id, code, text
        self.details: dict[str, str] = {}
        self.logprobs: list[TokenLogprob] = []


class Burst:
    """Text events of one request that a slow reader let pile up, read as a single one."""

    kind, code, reason = "text", "", ""

    def __init__(self, event: Event) -> None:
        self._parts = [event.text]
        self._lock = threading.Lock()
        self._taken = False
        self.last = event
        self.logprobs = list(event.logprobs)

    def add(self, event: Event) -> bool:
        """False when the reader has it already."""
        with self._lock:
            if not self._taken:
                self._parts.append(event.text)
                self.logprobs += event.logprobs
                self.last = event
            return not self._taken

    def take(self) -> None:
        with self._lock:
            self._taken = True

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.last, name)


class Inbox:
    """Events of one call, in order, for a thread: the engine's own thread wakes it, none of ours stands between.

    `quiet` wakes the reader for terminal events only, for calls that want the whole answer."""

    __slots__ = ("_events", "_hub", "_indices", "_woken", "outbox")

    def __init__(self, model: LoadedModel, *, quiet: bool = False) -> None:
        self._hub = model._hub
        self._events: deque[Any] = deque()
        self._indices: dict[int, int] = {}  # of requests whose last event has not been read
        self._woken = False
        self.outbox = self._hub.native.outbox(quiet)

    def register(self, id: int, index: int) -> None:
        self._indices[id] = index

    def get(self) -> tuple[int, Any]:
        """Blocks; KeyboardInterrupt gets through."""
        while True:
            while self._events:
                event = self._events.popleft()
                index = self._indices.get(event.id)
                if index is not None:
                    if event.kind in TERMINAL:
                        del self._indices[event.id]
                    return index, event
            if self._woken:
                self._woken = False
                return 0, _NEWS
            failure = self._hub.failure
            try:
                self._events.extend(self.outbox.wait(SLICE_MS if failure is None else 0))
            except Exception as error:
                raise _translate(error) from None
            if failure is not None and not self._events and self._indices:
                id, index = self._indices.popitem()
                return index, Ended(*failure, id)

    def wake(self) -> None:
        """From any thread: make the reader look up, without news."""
        self._woken = True
        self.outbox.wake()

    def abandon(self) -> None:
        """For finalizers, in any thread: the native engine calls no Python, so none of its locks can be ours."""
        if self._hub.closed or os.getpid() != self._hub.pid:
            return
        for id in self._indices:
            with contextlib.suppress(Exception):  # closed meanwhile
                self._hub.native.cancel(id)


class Mailbox:
    """Events of one call, in order, from the pump to a task of `loop`. `quiet` as for Inbox."""

    __slots__ = ("_bursts", "_events", "_waiter", "loop", "quiet")
    outbox = None  # the engine's own, which the pump reads

    def __init__(self, loop: asyncio.AbstractEventLoop, *, quiet: bool = False) -> None:
        self._events: deque[tuple[int, Any]] = deque()
        self._bursts: dict[int, Burst] = {}
        self._waiter: asyncio.Future[None] | None = None
        self.loop = loop
        self.quiet = quiet

    def push(self, index: int, event: Any) -> bool:
        """Pump side. True when the reader must be woken."""
        if len(self._events) >= MAX_PENDING and event.kind == "text":
            burst = self._bursts.get(index)
            if burst is not None and burst.add(event):
                return False
            self._bursts[index] = event = Burst(event)
        elif self._bursts:
            self._bursts.pop(index, None)  # no longer this request's last event
        self._events.append((index, event))
        return not self.quiet or event.kind in TERMINAL

    async def get(self) -> tuple[int, Any]:
        while not self._events:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        entry = self._events.popleft()
        if entry[1].__class__ is Burst:
            entry[1].take()
        return entry

    def wake(self) -> None:
        """From any thread: make the reader look up, without news."""
        self._events.append((0, _NEWS))
        _wake_loops({self})

    def rouse(self) -> None:
        """In the loop's own thread."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _rouse(boxes: Iterable[Mailbox]) -> None:
    for box in boxes:
        box.rouse()


# --- one engine and its pump ------------------------------------------------------------------------------------------


class _Hub:
    """What readers and the pump thread need, and no more: they must not keep the model that users hold alive."""

    def __init__(self, native: NativeEngine, drain_common: Callable[[], list[tuple[int, str]]] | None) -> None:
        self.native = native
        self.pid = os.getpid()
        self.closed = False
        self.failure: tuple[str, str] | None = (
            None  # the native engine has ended: code and text for whoever still waits
        )
        self.lock = threading.Lock()  # guards routes, early, failure
        self.routes: dict[int, tuple[Mailbox, int] | None] = {}  # None: nobody reads it any more
        self.early: dict[int, list[Event]] = {}  # events that came before submit() returned their id
        self.abandoned: deque[int] = deque()  # ids left by finalizers, which may take no lock
        # Lines of the native engine's own, then those that no engine can be told from.
        self.drains = [drain for drain in (getattr(native, "drain_log", None), drain_common) if drain is not None]
        self.thread = threading.Thread(target=_pump, args=(self,), name="polargrid-pump", daemon=True)

    def check_process(self) -> None:
        if os.getpid() != self.pid:
            raise ForkedEngineError("this engine belongs to the parent process; open a new one after fork()")

    def check(self) -> None:
        self.check_process()
        if self.closed:
            raise EngineClosed("the engine is closed")

    def register(self, id: int, box: Mailbox, index: int) -> None:
        with self.lock:
            early = self.early.pop(id, [])
            if self.failure and not (early and early[-1].kind in TERMINAL):
                early.append(Ended(*self.failure, id))
            if not (early and early[-1].kind in TERMINAL):
                self.routes[id] = (box, index)
            wake = [box.push(index, event) for event in early]
        if any(wake):
            _wake_loops({box})

    def drop(self, ids: Sequence[int]) -> None:
        """Nobody reads these any more; their last event clears the entry."""
        with self.lock:
            for id in ids:
                if id in self.routes:
                    self.routes[id] = None

    def file(self, events: Sequence[Event]) -> None:
        wake: set[Mailbox] = set()
        with self.lock:
            routes = self.routes
            for event in events:
                route = routes.get(event.id, _MISSING)
                if route is None:
                    if event.kind in TERMINAL:
                        del routes[event.id]
                elif route is _MISSING:
                    self.early.setdefault(event.id, []).append(event)
                else:
                    if event.kind in TERMINAL:
                        del routes[event.id]
                    if route[0].push(route[1], event):
                        wake.add(route[0])
        if wake:
            _wake_loops(wake)

    def finish(self, error: Exception) -> None:
        """The native engine will say no more: whoever still waits is told."""
        error = _translate(error)
        with self.lock:
            self.failure = (getattr(error, "code", "engine_crashed"), str(error) or repr(error))
            left = [(box, index, id) for id, route in self.routes.items() if route for box, index in (route,)]
            self.routes.clear()
            wake = {box for box, index, id in left if box.push(index, Ended(*self.failure, id))}
        _wake_loops(wake)

    def cancel_abandoned(self) -> None:
        while self.abandoned:
            id = self.abandoned.popleft()
            self.drop((id,))
            self.native.cancel(id)

    def log(self) -> None:
        """Never raises: whatever a host's log handlers do, no request may suffer for it."""
        for drain in self.drains:
            for level, text in drain():
                with contextlib.suppress(Exception):
                    log.log(level, "%s", text)

    def close(self) -> None:
        """Also a finalizer, in any thread and at interpreter exit: takes no lock of ours; never acts in a forked child."""
        if os.getpid() != self.pid or self.closed:
            return
        self.closed = True
        self.native.close()
        if threading.current_thread() is not self.thread and self.thread.ident is not None:
            self.thread.join(timeout=10)


def _wake_loops(boxes: set[Mailbox]) -> None:
    """One callback per loop, however many of its streams have news."""
    loops: dict[Any, list[Mailbox]] = {}
    for box in boxes:
        loops.setdefault(box.loop, []).append(box)
    for loop, group in loops.items():
        try:
            loop.call_soon_threadsafe(_rouse, group)
        except RuntimeError:
            pass  # the loop is closed: its streams are cancelled when they are collected


def _pump(hub: _Hub) -> None:
    native, next_log = hub.native, 0.0
    try:
        while True:
            events = native.wait_events(BUSY_WAIT_MS if hub.routes else IDLE_WAIT_MS)
            if events:
                hub.file(events)
            if hub.abandoned:
                hub.cancel_abandoned()
            now = time.monotonic()
            if now >= next_log:
                next_log = now + 0.1
                hub.log()
    except Exception as error:  # engine_closed is the ordinary end
        hub.finish(error)
    hub.log()


# --- what the facade holds --------------------------------------------------------------------------------------------


class LoadedModel:
    """A native engine with one model. Safe from any thread. `load()` before anything else."""

    def __init__(
        self, path: str | Path, options: dict[str, Any], factory: Callable[..., NativeEngine] | None = None
    ) -> None:
        self.path = Path(path)
        self.info = cast(NativeInfo, {})  # until it is loaded
        drain_common = None
        if factory is None:
            factory, drain_common = core().Engine, core().drain_log
        self._adapters = [str(adapter) for adapter, _ in options.get("lora", ())]
        text = _native_path(self.path)
        self._stamp = self._stat()
        try:
            native = factory(text, options)
        except Exception as error:
            raise _refused(error, self.path, self._adapters) from None
        self._hub = _Hub(native, drain_common)
        self._finalizer = weakref.finalize(
            self, self._hub.close
        )  # collected, or at exit: while threads can still be joined

    def load(self, on_progress: Callable[[float], Any] | None = None) -> LoadedModel:
        """Waits until the model is usable. Any exception in here, Ctrl-C included, aborts the load and closes."""
        hub = self._hub
        try:
            while not self.info:
                for event in hub.native.wait_events(SLICE_MS):
                    if event.kind == "loaded":
                        self.info = cast(NativeInfo, hub.native.info())
                    elif event.kind != "progress":
                        raise from_code(event.code, event.text, dict(event.details))
                    elif on_progress is not None:
                        on_progress(event.progress)
                hub.log()
            try:
                hub.thread.start()
            except RuntimeError as error:  # "can't start new thread"
                raise from_code("out_of_memory", f"{error}: this process's limit on threads is reached") from None
        except BaseException as error:
            self.abort()
            self.close()
            hub.log()
            if isinstance(error, Exception):
                raise _refused(error, self.path, self._adapters) from None
            raise
        return self

    def abort(self) -> None:
        """From any thread: a running load ends with an error soon."""
        if not self._hub.closed and os.getpid() == self._hub.pid:
            self._hub.native.cancel(0)

    def submit(self, requests: Sequence[dict[str, Any]], box: Inbox | Mailbox, first: int = 0) -> list[int]:
        """All of them or, with an error, none: events of `requests[i]` come to `box` with index first + i."""
        self._check_file()
        ids: list[int] = []
        try:
            for index, request in enumerate(requests, first):
                ids.append(self._hub.native.submit(request, box.outbox))
                if isinstance(box, Inbox):
                    box.register(ids[-1], index)
                else:
                    self._hub.register(ids[-1], box, index)
        except BaseException as error:
            self.cancel(ids)
            if isinstance(error, Exception):
                raise _translate(error) from None
            raise
        return ids

    def cancel(self, ids: Sequence[int]) -> None:
        """Idempotent; a no-op after the end, after close() and in a forked child."""
        hub = self._hub
        if not ids or hub.closed or os.getpid() != hub.pid:
            return
        hub.drop(ids)
        for id in ids:
            try:
                hub.native.cancel(id)
            except Exception:
                if not hub.closed:
                    raise

    def abandon(self, ids: Iterable[int], box: Inbox | Mailbox) -> None:
        """cancel() for finalizers."""
        if isinstance(box, Inbox):
            box.abandon()
        else:
            self._hub.abandoned.extend(ids)  # a note for the pump, which may hold our lock just now

    def tokenize(self, spans: Sequence[tuple[str, bool]], add_bos: bool = True) -> list[int]:
        self._hub.check()
        try:
            return list(self._hub.native.tokenize(list(spans), add_bos))
        except Exception as error:
            raise _translate(error) from None

    def stats(self) -> ModelStats:
        self._hub.check()
        return cast(ModelStats, self._hub.native.stats())

    def check(self) -> None:
        """Raises EngineClosed or ForkedEngineError."""
        self._hub.check()

    def check_process(self) -> None:
        """Raises ForkedEngineError. A forked child has no pump: a stream it inherited would never say a word."""
        self._hub.check_process()

    @property
    def closed(self) -> bool:
        return self._hub.closed

    @property
    def running(self) -> bool:
        """False once the native engine has ended, closed or by a failure."""
        return not self._hub.closed and self._hub.failure is None

    def close(self) -> None:
        """Running streams end with EngineClosed. Idempotent."""
        self._hub.check_process()
        self._hub.close()
        self._finalizer.detach()

    def _stat(self) -> list[tuple[int, int, int]]:
        """Of every file of the model."""
        try:
            stats = [os.stat(path) for path in model_files(self.path)]
        except OSError as error:
            message = f"cannot read the model file {error.filename}: {error.strerror}"
            raise NotFoundError(message, param="model", path=str(error.filename)) from None
        return [(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats]

    def _check_file(self) -> None:
        self._hub.check()
        try:
            stamp: Any = self._stat()
        except NotFoundError:
            stamp = None
        if stamp != self._stamp:
            what = "is gone" if stamp is None else "was replaced or written to"
            raise ModelFileChanged(
                f"{self.path} {what} since it was loaded; load the model again",
                details={"path": str(self.path)},
                path=str(self.path),
            )
