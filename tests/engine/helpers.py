"""Requests and waits that the engine tests share."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from polargrid_local import Engine
from polargrid_local.native.core import core, guidance_library

HOLD = "of the " * 60_000  # a prompt for `busy_model`: it holds a stream's place until it is cancelled


def chat(text: str, **options: Any) -> dict[str, Any]:
    """A greedy chat request with one user message."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24, **options}


def content_of(response: dict[str, Any]) -> str:
    return response["choices"][0]["message"]["content"]


def stats_of(engine: Any) -> dict[str, int]:
    """Of the engine's only model."""
    [stats] = engine.stats().values()
    return stats


def wait_until_idle(engine: Engine, timeout_s: float = 120) -> dict[str, int]:
    """A cancel takes effect on the engine's own thread: waits for it. Returns the stats."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        stats = stats_of(engine)
        if stats["n_running"] == stats["n_waiting"] == 0 and stats["n_requests"] == sum(
            stats[name] for name in ("n_finished", "n_cancelled", "n_failed")
        ):
            return stats
        threading.Event().wait(0.01)
    raise AssertionError(f"still busy: {engine.stats()}")


class Native:
    """The border itself, with one outbox for all requests. Close it, or delete it."""

    def __init__(self, path: str | Path, **options: Any) -> None:
        defaults = {"n_ctx": 512, "max_streams": 4, "guidance": guidance_library()}
        self.engine = core().Engine(str(path), {**defaults, **options})
        self.outbox: Any = self.engine.outbox(False, False)
        loaded = False
        while not loaded:
            for event in self.engine.loading.wait(1000):
                assert event.kind in ("progress", "loaded"), event.text
                loaded = event.kind == "loaded"

    def submit(self, prompt: str, **fields: Any) -> int:
        return self.engine.submit({"prompt": [(prompt, False)], **fields}, self.outbox)

    def events(self, *ids: int) -> list[Any]:
        """What comes until all of these have ended, in its order."""
        open_ids, events = set(ids), []
        while open_ids:
            for event in self.outbox.wait(1000):
                events.append(event)
                if event.kind in ("finished", "error"):
                    open_ids.discard(event.id)
        return events

    def ask(self, prompt: str, **fields: Any) -> list[Any]:
        return self.events(self.submit(prompt, **fields))
