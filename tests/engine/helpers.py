"""Requests and waits that the engine tests share."""

from __future__ import annotations

import threading
import time
from typing import Any

from polargrid_local import Engine

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
