"""ModelPool: the models in memory, loaded when a lease needs them and unloaded when they are idle or in the way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from polargrid_local.errors import (
    DeviceLostError,
    EngineCrashed,
    InvalidModelError,
    NotFoundError,
    PolarGridError,
    ServerError,
    ValidationError,
)
from polargrid_local.service.lease import Lease
from polargrid_local.service.memory import MemoryBudget
from polargrid_local.service.names import ModelNames

if TYPE_CHECKING:
    from polargrid_local.engine import AsyncEngine

log = logging.getLogger(__name__)

POLL_S = 0.1  # how often to ask after a load that another user of the engine began; the engine has no call that waits


class ModelPool:
    """Stays within `budget`, and unloads what was unused for `keep_alive_s`, or as long as the latest lease that said
    how long; negative: never.

    What is loaded or loading is the engine's to say. The pool knows who uses a model, when it was last used, and which
    loads wait for their turn. One event loop at a time uses it. `on_release`: model, tokens, milliseconds of a lease.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        names: ModelNames,
        budget: MemoryBudget,
        keep_alive_s: float,
        on_release: Callable[[str, int, float], None],
    ) -> None:
        self._engine = engine
        self._names = names
        self._budget = budget
        self._keep_alive_s = keep_alive_s
        self._asked_keep_alive_s: dict[str, float] = {}  # by leases, of models in memory
        self._asked = asyncio.Event()  # one of them has been asked to go soon
        self._on_release = on_release
        # Id -> monotonic seconds. A model leaves this before its unloading or reloading begins: from then on no lease
        # takes the copy that is about to close, though the engine still has it.
        self._last_used: dict[str, float] = {}
        self._users: Counter[str] = Counter()
        self._loads: dict[str, asyncio.Task[None]] = {}  # in their turn or waiting for it
        self._reaper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on idle models are unloaded."""
        self._reaper = asyncio.create_task(self._reap())

    async def close(self) -> None:
        """Ends loads and waits; the engine stays open."""
        tasks = [*self._loads.values(), *([self._reaper] if self._reaper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def has(self, model: str) -> bool:
        """Whether a lease would get it at once."""
        if model not in self._last_used:
            return False
        try:
            self._engine.info(model)
        except (NotFoundError, InvalidModelError):  # unloaded by another user of the engine; perhaps its file is broken
            return False
        except (DeviceLostError, EngineCrashed):  # it has ended, which is no matter of the other models
            return False
        return True

    def loaded(self) -> list[str]:
        return [model for model in self._last_used if self.has(model)]

    def loading(self) -> list[str]:
        return list(self._loads)

    def idle_s_left(self, model: str) -> float | None:
        """Until a loaded model is unloaded, if nobody uses it from now on; None: it stays."""
        keep_s = self._keep_s(model)
        if keep_s < 0:
            return None
        now = time.monotonic()
        used = now if self._users[model] else self._last_used.get(model, now)
        return max(0.0, used + keep_s - now)

    def _keep_s(self, model: str) -> float:
        return self._asked_keep_alive_s.get(model, self._keep_alive_s)

    async def lease(self, name: str | None) -> Lease:
        """Loads the model first where needed.

        Raises NotFoundError for an unknown name, MemoryEstimateError, and ServerError, code model_unavailable."""
        asked = self._names.find(name)
        model = self._names.model_of(asked)
        while not self.has(model):  # again, should another load have taken its room before we got here
            try:
                await self.load(model)
            except (ValidationError, NotFoundError) as error:
                if isinstance(error, NotFoundError) and error.param != "lora":  # the model's own file has gone
                    raise
                raise unavailable(model, error) from error  # the file or the settings are at fault, not the request
        self._users[model] += 1
        return Lease(model, asked, name or asked, self._released)

    def _released(self, lease: Lease, tokens: int, latency_ms: float) -> None:
        model = lease.model
        self._users[model] -= 1
        if model in self._last_used:
            self._last_used[model] = time.monotonic()
            if lease.keep_alive_s is not None:
                self._asked_keep_alive_s[model] = lease.keep_alive_s
                self._asked.set()
        self._on_release(model, tokens, latency_ms)

    async def load(self, model: str, force: bool = False) -> None:
        """Waits until it is loaded; many may wait for one load. `force`: again, where it is loaded already.

        The load goes on when those who wait are cancelled, since the next request for the model needs it as well."""
        task = self._loads.get(model)
        if task is None:

            def end(task: asyncio.Task[None]) -> None:
                del self._loads[model]
                if not task.cancelled():
                    task.exception()  # asyncio logs an exception that nobody took, and those who waited may have left

            before = list(self._loads.values())
            task = self._loads[model] = asyncio.create_task(self._load_after(before, model, force))
            task.add_done_callback(end)
        await asyncio.shield(task)

    async def _load_after(self, others: list[asyncio.Task[None]], model: str, force: bool) -> None:
        try:
            if others:  # one at a time: each needs to know what memory the others took
                await asyncio.wait(others)
            if force:
                self._last_used.pop(model, None)
            await self._make_room(model)
            source = self._names.source(model)
            reply = await self._engine.load_model(source, force_reload=force)
            while reply["status"] == "loading":  # another user of the engine began it
                await asyncio.sleep(POLL_S)
                reply = await self._engine.load_model(source)
            self._last_used[model] = time.monotonic()
        except PolarGridError as error:
            log.error("model %s: %s", model, error.message)
            raise

    async def _make_room(self, model: str) -> None:
        """Unloads idle models, the longest unused first, until what the model will take fits into what the budget
        leaves."""
        if not self._budget.binds(bool(self.loaded())):
            return  # without an estimate, which takes some tenths of a second
        need = await self._engine.bytes_to_load(self._names.source(model))
        while True:
            loaded = self.loaded()
            idle = sorted((other for other in loaded if not self._users[other]), key=self._last_used.__getitem__)
            other = self._budget.next_to_unload(model, need, map(self.bytes_held, loaded), idle)
            if other is None:
                return
            await self.unload(other)

    def bytes_held(self, model: str) -> int:
        """Of memory, by a loaded model. Raises what engine.info() does."""
        info = self._engine.info(model)
        held = info.get("weights_bytes", 0) + info.get("cache_bytes", 0) + info.get("prefix_cache_bytes", 0)
        held += sum(adapter["file_bytes"] for adapter in info.get("adapters", ()))
        return held + info.get("compute_bytes", 0) + info.get("draft_model_bytes", 0)

    async def unload(self, model: str) -> None:
        """At once, whoever uses it; their requests end with EngineClosed."""
        self.forget(model)
        await self._engine.unload_model(model)

    def forget(self, *models: str) -> None:
        """The engine unloads them, or has: the next lease of one loads it again."""
        for model in models:
            self._last_used.pop(model, None)
            self._asked_keep_alive_s.pop(model, None)

    async def _reap(self) -> None:
        while True:
            keeps = [keep for keep in map(self._keep_s, self._last_used) if keep >= 0]
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked.wait(), min(30.0, max(0.1, min(keeps, default=120) / 4)))
            self._asked.clear()
            now = time.monotonic()
            for model, used in list(self._last_used.items()):
                keep = self._keep_s(model)
                if 0 <= keep <= now - used and not self._users[model] and model in self._last_used:
                    with contextlib.suppress(PolarGridError):  # it may be gone already
                        await self.unload(model)


def unavailable(model: str, error: PolarGridError) -> ServerError:
    """For who asked for text: the file or the settings of this server are at fault, not the request."""
    message = f"model '{model}' cannot be loaded by this server: {error.message}"
    return ServerError(
        message, status_code=503, code="model_unavailable", param="model", details=error.details, path=error.path
    )
