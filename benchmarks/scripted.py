"""A native engine that says a fixed text at a steady pace, to measure what our own Python costs per chunk."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PAUSE_S = 0.001
QUIET = {
    "text": "",
    "code": "",
    "details": {},
    "reason": "",
    "progress": 0.0,
    "n_prompt": 10,
    "n_cached": 0,
    "n_generated": 1,
    "n_accepted": 0,
    "n_rejected": 0,
    "queue_ms": 0.0,
    "prefill_ms": 1.0,
    "first_token_ms": 1.0,
    "total_ms": 1.0,
    "logprobs": [],
    "embedding": None,
}


class Outbox:
    """One event of each of its requests per wait, a pause before them."""

    id = 0

    def __init__(self) -> None:
        self.running: dict[int, list[Any]] = {}  # id -> events still to come, the last one first

    def wait(self, timeout_ms: int) -> list[Any]:
        time.sleep(PAUSE_S)
        events = [left.pop() for left in self.running.values()]
        for event in events:
            if event.kind in ("finished", "loaded"):
                del self.running[event.id]
        return events

    def wake(self) -> None:
        pass


class Scripted:
    """The verbs of the native engine, as far as streams in threads need them."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self._next_id, self._closed = 1, False
        self.loading = Outbox()
        self.loading.running[0] = [SimpleNamespace(id=0, kind="loaded", **QUIET)]

    def outbox(self, quiet: bool = False, rings: bool = False) -> Outbox:
        return Outbox()

    def submit(self, request: dict[str, Any], outbox: Outbox) -> int:
        self._next_id += 1
        word = SimpleNamespace(id=self._next_id, kind="text", **{**QUIET, "text": " word"})
        last = SimpleNamespace(id=self._next_id, kind="finished", **{**QUIET, "reason": "length"})
        outbox.running[self._next_id] = [last] + [word] * request["max_tokens"]
        return self._next_id

    def listen(self, timeout_ms: int) -> list[int]:
        if self._closed:
            raise RuntimeError("engine_closed", "the engine is closed", {})
        time.sleep(timeout_ms / 1000)
        return []

    def cancel(self, id: int) -> None:
        pass

    def tokenize(self, spans: Any, add_bos: bool = True) -> list[int]:
        return [1] * 10

    def info(self) -> dict[str, Any]:
        return {"n_ctx": 100_000, "n_vocab": 1000, "max_streams": 8, "chat_template": "{{ messages[0]['content'] }}"}

    def stats(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._closed = True


def cost_per_chunk(model: Path, n: int = 500) -> dict[str, float]:
    """Process CPU microseconds per chunk, less what the scripted engine itself takes, for one and for eight streams."""
    from polargrid_local import Engine

    def bare(streams: int) -> float:
        engine = Scripted("", {})
        outboxes = [engine.outbox() for _ in range(streams)]
        for outbox in outboxes:
            engine.submit({"max_tokens": n}, outbox)
        start = time.process_time()
        said = [True]
        while any(said):
            said = [bool(outbox.wait(0)) for outbox in outboxes]  # every one waits its turn, as when they are read
        return time.process_time() - start

    costs = {}
    with Engine(model, engine_factory=Scripted) as engine:
        for n_streams in (1, 8):
            own = bare(n_streams)
            streams = [
                engine.chat_completion_stream(messages=[{"role": "user", "content": "x"}], max_tokens=n)
                for _ in range(n_streams)
            ]
            start = time.process_time()
            chunks = sum(1 for together in zip(*streams, strict=True) for _ in together)
            costs[f"{n_streams} streams (us)"] = 1e6 * (time.process_time() - start - own) / chunks
    return costs
