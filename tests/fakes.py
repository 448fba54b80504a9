"""A scripted native engine: the verbs of `_core.Engine` without a model, for everything above the border.

A request's answer comes from `script(request) -> Iterable[step]`. A step is a str (a text event), a number (seconds of
pretended work), a dict (an event's fields), or a callable run on the engine thread. Each engine has one thread, as the
real one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy

WORDS = ("Hello", ",", " wörld", "! ", "👩‍🚀", " It", " works", ".")


class Error(Exception):
    """As `_core.Error`: args are (code, message, details)."""


class Event:
    def __init__(self, id: int, kind: str = "text", text: str = "", **fields: Any) -> None:
        self.id, self.kind, self.text = id, kind, text
        self.mark, self.code, self.details, self.reason, self.progress = "", "", {}, "", 0.0
        self.n_prompt = self.n_cached = self.n_generated = self.n_accepted = self.n_rejected = 0
        self.queue_ms = self.prefill_ms = self.first_token_ms = self.total_ms = -1.0
        self.logprobs: list[dict[str, Any]] = []
        self.prompt_logprobs: list[dict[str, Any]] = []
        self.stop, self.stop_token = "", -1
        self.tokens: list[int] = []
        self.prompt_tokens: list[int] = []
        self.embedding: Any = None
        for name, value in fields.items():
            assert hasattr(self, name), name
            setattr(self, name, value)


def words(request: dict[str, Any]) -> Iterator[Any]:
    yield from WORDS


def echo(request: dict[str, Any]) -> Iterator[Any]:
    """The prompt's own text, a character at a time."""
    yield from "".join(text for text, _ in request["prompt"])


def endless(request: dict[str, Any]) -> Iterator[Any]:
    while True:
        yield "word "
        yield 0.001


INFO = {
    "n_ctx": 4096,
    "n_ctx_train": 4096,
    "n_vocab": 1000,
    "n_embd": 4,
    "max_streams": 4,
    "tasks": ["generate", "embed"],
    "add_bos": False,
    "chat_template": "",
    "bos_text": "<s>",
    "eos_text": "</s>",
    "devices": [],
    "metadata": {},
    "load_ms": 1.0,
    "description": "a script",
}


class Outbox:
    """As `_core.Outbox`, without its gathering; `push` and `close` are the engine's. All of them share one
    condition."""

    def __init__(self, changed: threading.Condition, quiet: bool = False, id: int = 0) -> None:
        self.id, self._changed, self._quiet = id, changed, quiet
        self._events: list[Event] = []
        self._ready = self._closed = False

    def push(self, event: Event) -> bool:
        """True when its reader, told of nothing yet, has something to read."""
        with self._changed:
            told = self._ready
            self._events.append(event)
            self._ready |= not self._quiet or event.kind in ("finished", "embedding", "error")
            self._changed.notify_all()
            return self._ready and not told

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, timeout_ms: int) -> list[Event]:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed, timeout_ms / 1000)
            return self.drain()

    def drain(self) -> list[Event]:
        with self._changed:
            if self._closed and not self._events:
                raise Error("engine_closed", "the engine is closed", {})
            if not self._ready and not self._closed:
                return []
            self._ready = False
            events, self._events = self._events, []
            return events

    def wake(self) -> None:
        with self._changed:
            self._ready = True
            self._changed.notify_all()


class Engine:
    """`options["script"]` is not a real option: use `factory(script, ...)`."""

    made: list[Engine]

    def __init__(
        self,
        path: str,
        options: dict[str, Any],
        script: Callable[[dict[str, Any]], Iterable[Any]] = words,
        info: dict[str, Any] | None = None,
        load: Iterable[Any] = (0.5, 1.0),
        max_running: int = 4,
    ) -> None:
        self.path, self.options, self.script = path, options, script
        self.pid = os.getpid()
        self.requests: list[dict[str, Any]] = []
        self.cancelled: list[int] = []
        self._info = {**INFO, "path": path, **(info or {})}
        self._load = load
        self._max_running, self._max_queue = max_running, options.get("max_queue", 32)
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._running: dict[int, tuple[dict[str, Any], Iterator[Any], list[int]]] = {}
        self._changed = threading.Condition()
        self.loading = Outbox(self._changed)
        self._addresses: dict[int, Outbox] = {}  # of requests, by their id
        self._outboxes: list[Outbox] = []  # to be closed with the engine
        self._rung: list[int] = []
        self._stop = self.closed = self.ended = False
        self._abort_load = False
        self._n = 0
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fake-engine")
        self._thread.start()

    # the verbs

    def outbox(self, quiet: bool = False, rings: bool = False) -> Outbox:
        with self._changed:
            made = Outbox(self._changed, quiet, len(self._outboxes) + 1 if rings else 0)
            self._outboxes.append(made)
            if self.ended:
                made.close()
            return made

    def submit(self, request: dict[str, Any], outbox: Outbox) -> int:
        assert os.getpid() == self.pid, "native handle touched in a forked child"
        known = {
            "task",
            "prompt",
            "max_tokens",
            "stop",
            "filter",
            "marks",
            "sampling",
            "ignore_eos",
            "constraint",
            "prediction",
            "prompt_tokens",
            "keep_tokens",
            "n_prompt_logprobs",
            "min_tokens",
            "stop_token_ids",
            "include_stop",
            "lora",
            "show_special",
            "logits_processor",
            "return_tokens",
        }
        assert not set(request) - known, set(request) - known
        n_prompt = sum(len(text.split()) for text, _ in request["prompt"])
        with self._changed:
            if self._stop:
                raise Error("engine_closed", "the engine is closed", {})
            if n_prompt > self._info["n_ctx"]:
                raise Error(
                    "context_length_exceeded",
                    f"prompt of {n_prompt} tokens",
                    {"n_prompt": str(n_prompt), "n_ctx": str(self._info["n_ctx"])},
                )
            if len(self._waiting) + len(self._running) >= self._max_queue + self._max_running:
                raise Error(
                    "queue_full", f"{self._max_queue} requests are waiting already", {"max_queue": str(self._max_queue)}
                )
            self._n += 1
            self._addresses[self._n] = outbox
            self.requests.append(request)
            self._waiting.append((self._n, request))
            self._changed.notify_all()
            return self._n

    def compile(self, constraint: dict[str, str]) -> None:
        if "refuse me" in constraint["text"]:
            raise Error("invalid_grammar", "the text asks for it", {})

    def cancel(self, id: int) -> None:
        assert os.getpid() == self.pid, "native handle touched in a forked child"
        with self._changed:
            self.cancelled.append(id)
            if id == 0:
                self._abort_load = True
            elif id in self._running:
                del self._running[id]
                self._say(Event(id, "error", "cancelled", code="cancelled"))
            elif any(waiting == id for waiting, _ in self._waiting):
                self._waiting = deque(item for item in self._waiting if item[0] != id)
                self._say(Event(id, "error", "cancelled", code="cancelled"))
            self._changed.notify_all()

    def listen(self, timeout_ms: int) -> list[int]:
        with self._changed:
            self._changed.wait_for(lambda: self._rung or self.ended, timeout_ms / 1000)
            if self.ended and not self._rung:
                raise Error("engine_closed", "the engine is closed", {})
            rung, self._rung = self._rung, []
            return rung

    def tokenize(self, spans: list[tuple[str, bool]], add_bos: bool = True) -> list[int]:
        return [len(text) for text, _ in spans]

    def info(self) -> dict[str, Any]:
        return dict(self._info)

    def stats(self) -> dict[str, Any]:
        with self._changed:
            return {"n_running": len(self._running), "n_waiting": len(self._waiting), "n_requests": self._n}

    def close(self) -> None:
        assert os.getpid() == self.pid, "native handle touched in a forked child"
        with self._changed:
            self._stop = self.closed = True
            self._changed.notify_all()
        self._thread.join()

    # the engine thread

    def _say(self, event: Event) -> None:
        outbox = self.loading if event.id == 0 else self._addresses[event.id]
        if outbox.push(event) and outbox.id:
            with self._changed:
                self._rung.append(outbox.id)
                self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._work()
        except ZeroDivisionError:
            pass  # a script that ends the engine's thread as a fault would
        finally:
            with self._changed:
                self.ended = True
                for outbox in (self.loading, *self._outboxes):
                    outbox.close()

    def _work(self) -> None:
        for step in self._load:
            with self._changed:
                if self._abort_load or self._stop:
                    break
                if isinstance(step, Error):
                    code, text, details = step.args
                    self._say(Event(0, "error", text, code=code, details=details))
                    break
                self._say(Event(0, "progress", progress=step))
            if callable(step):
                step()
        else:
            with self._changed:
                self._say(Event(0, "loaded"))
        with self._changed:
            if self._abort_load:
                self._say(Event(0, "error", "cancelled", code="cancelled"))
        while self._step():
            pass

    def _step(self) -> bool:
        with self._changed:
            while not (self._stop or self._running or self._waiting):
                self._changed.wait()
            if self._stop:
                for id in [*self._running, *(id for id, _ in self._waiting)]:
                    self._say(Event(id, "error", "the engine was closed", code="engine_closed"))
                self._running.clear()
                self._waiting.clear()
                return False
            while self._waiting and len(self._running) < self._max_running:
                id, request = self._waiting.popleft()
                self._running[id] = (request, iter(self.script(request)), [0])
            running = list(self._running.items())
        for id, (request, steps, count) in running:
            step = next(steps, None) if request["task"] == "generate" else None
            if callable(step):
                step()
                continue
            with self._changed:
                if isinstance(step, float):
                    self._changed.wait(step)
                    continue
                if id in self._running:
                    self._answer(id, request, step, count)
        return True

    def _answer(self, id: int, request: dict[str, Any], step: Any, count: list[int]) -> None:
        n_prompt = sum(len(text.split()) for text, _ in request["prompt"])
        usage = {"n_prompt": n_prompt, "n_cached": 1, "n_generated": count[0]}
        times = {"queue_ms": 1.0, "prefill_ms": 3.0, "first_token_ms": 4.0, "total_ms": 14.0}
        if request["task"] == "embed":
            vector = numpy.array([len(request["prompt"][0][0]), 0.5, 0, 0], dtype=numpy.float32)
            event = Event(id, "embedding", embedding=vector, **usage, **times)
        elif step is None:
            event = Event(id, "finished", reason="stop", **usage, **times)
        elif isinstance(step, str):
            count[0] += 1
            usage["n_generated"] = count[0]
            event = Event(id, "text", step, **usage)
            if request.get("return_tokens"):
                event.tokens = [count[0]]
                event.prompt_tokens = list(range(n_prompt)) if count[0] == 1 else []
            if request["sampling"]["n_logprobs"] >= 0:
                top = [
                    {"token": k, "logprob": -float(k), "bytes": b"x", "top": []}
                    for k in range(request["sampling"]["n_logprobs"])
                ]
                event.logprobs = [{"token": 7, "logprob": -0.5, "bytes": step.encode(), "top": top}]
            if count[0] >= request["max_tokens"]:
                event.kind, event.reason = "finished", "length"
                event.__dict__.update(times)
        else:
            fields = {**usage, **times, **step} if step.get("kind") in ("finished", "error") else step
            event = Event(id, **fields)
        if event.kind in ("finished", "embedding", "error"):
            del self._running[id]
        self._say(event)


def factory(
    script: Callable[[dict[str, Any]], Iterable[Any]] = words, **options: Any
) -> Callable[[str, dict[str, Any]], Engine]:
    """An engine factory; the engines it made are in its `made`."""

    def make(path: str, native_options: dict[str, Any]) -> Engine:
        engine = Engine(path, native_options, script, **options)
        make.made.append(engine)
        return engine

    make.made = []
    return make
