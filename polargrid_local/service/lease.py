"""Lease: one request's hold on a loaded model, which is not unloaded for idleness meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable


class Lease:
    """`model`: the id in memory. `asked`: what the engine is asked by, that id or one of its adapters. `alias`: the
    name in replies, as the request had it."""

    # How long the model then stays in memory, in seconds; negative: always; None: as before.
    keep_alive_s: float | None = None

    def __init__(self, model: str, asked: str, alias: str, on_release: Callable[[Lease, int, float], None]) -> None:
        self.model = model
        self.asked = asked
        self.alias = alias
        self.started = time.monotonic()
        self._on_release = on_release
        self._held = True

    def release(self, tokens: int = 0) -> None:
        """Calls `on_release` once: this lease, the `tokens` of prompt and answer, the milliseconds it was held."""
        if self._held:
            self._held = False
            self._on_release(self, tokens, (time.monotonic() - self.started) * 1e3)
