"""Service: which models are in memory, who uses them, and what was used. No HTTP: the SDK drop-in stands on it too."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polargrid_local.api.replies import (
    ChatCompletionResponse,
    CompletionResponse,
    EmbeddingResponse,
    GPUMemoryResponse,
    GPUPurgeResponse,
    GPUStatusResponse,
    HealthResponse,
    ListModelsResponse,
    LoadModelResponse,
    LoadStatus,
    ModelInfo,
    ModelStats,
    ModelStatusResponse,
    RerankResponse,
    UnloadAllModelsResponse,
    UnloadModelResponse,
    Usage,
)
from polargrid_local.api.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from polargrid_local.errors import (
    InvalidModelError,
    MemoryEstimateError,
    NotFoundError,
    PolarGridError,
    ServerError,
    TemplateError,
    ValidationError,
)
from polargrid_local.models.store import Store
from polargrid_local.server.config import ServeConfig
from polargrid_local.service.usage import UsageCounter

if TYPE_CHECKING:
    from polargrid_local.engine import AsyncEngine
    from polargrid_local.server.sse import Chunk, Chunks

    Asked = ChatCompletionRequest | CompletionRequest | EmbeddingRequest | RerankRequest
    Reply = ChatCompletionResponse | CompletionResponse | EmbeddingResponse[Any] | RerankResponse

log = logging.getLogger(__name__)


class Lease:
    """One request's hold on a loaded model, which is not unloaded for idleness meanwhile."""

    def __init__(self, model: str, alias: str, on_release: Callable[[str, int, float], None]) -> None:
        self.model = model  # the id in memory
        self.alias = alias  # the name in replies
        self._on_release = on_release
        self.started = time.monotonic()
        self._held = True

    def release(self, tokens: int = 0) -> None:
        """Once; `tokens`: of prompt and answer."""
        if self._held:
            self._held = False
            self._on_release(self.model, tokens, (time.monotonic() - self.started) * 1e3)


class Service:
    """Loads models when a request names them, within `memory_budget_bytes`, and unloads them after `keep_alive_s` unused.

    One event loop at a time uses it.
    """

    def __init__(self, engine: AsyncEngine, config: ServeConfig) -> None:
        self.engine = engine
        self.config = config
        self.store = Store(config.models_dir)
        self.counter = UsageCounter(datetime.date.today())
        self.startup_error: PolarGridError | None = None
        self.ready = False  # the configured models are loaded
        self._own: dict[str, str] = {}  # id -> what the engine loads
        for name in config.model:
            found = self.store.resolve(name)
            taken = self._own.get(found.id)
            same = taken is None or self.store.resolve(taken).path == found.path
            self._own[found.id if same else str(found.path)] = name  # as the engine tells namesakes apart
        self._loaded: dict[str, float] = {}  # id -> monotonic time of the last use
        self._active: Counter[str] = Counter()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, float] = {}
        self._reaper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the models of the configuration. A failure is kept in `startup_error` and raised."""
        if self.config.keep_alive_s >= 0:
            self._reaper = asyncio.create_task(self._reap())
        try:
            for model in self._own:
                await self._load(model)
        except PolarGridError as error:
            self.startup_error = error
            raise
        self.ready = True

    async def close(self) -> None:
        tasks = [*self._loads.values(), *([self._reaper] if self._reaper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.close()

    # --- models in memory ---

    def find(self, name: str | None) -> str:
        """The id behind a requested name, never a path; NotFoundError, code model_not_loaded, for an unknown one."""
        if name is None:
            name = next(iter(self._own), None) or self.store.default()
        aliases = self.config.aliases
        model = self._known(aliases.get(name, name)) or self._known(aliases.get("*"))
        if model is None:
            hint = f"; polargrid-local pull {name} would fetch it" if self.store.catalog.find(name) else ""
            raise NotFoundError(
                f"Model not loaded: '{name[:200]}' is not on this machine{hint}", code="model_not_loaded", param="model"
            )
        return model

    def _known(self, name: str | None) -> str | None:
        if name is None or name in self._own:
            return name
        try:
            model = self.store.resolve(name, paths=False).id
        except NotFoundError:
            return None
        return model if self.config.on_demand or model in self._own else None

    async def lease(self, name: str | None) -> Lease:
        """Loads the model first where needed."""
        model = self.find(name)
        while model not in self._loaded:  # again, should another load have needed its room at once
            try:
                await self._load(model)
            except ValidationError as error:  # of the file or the settings, not of the request
                raise _unavailable(model, error) from error
        self._active[model] += 1
        return Lease(model, name or model, self._released)

    def _released(self, model: str, tokens: int, latency_ms: float) -> None:
        self._active[model] -= 1
        if model in self._loaded:
            self._loaded[model] = time.monotonic()
        self.counter.add(datetime.date.today(), model, tokens, latency_ms)

    async def _load(self, model: str, force: bool = False) -> None:
        """Many may wait for one load, and it goes on when they leave: they will be back."""
        task = self._loads.get(model)
        if task is None:
            before = list(self._loads.values())
            task = self._loads[model] = asyncio.create_task(self._load_after(before, model, force))
            task.add_done_callback(lambda task: (self._loads.pop(model, None), task.cancelled() or task.exception()))
        await asyncio.shield(task)

    async def _load_after(self, others: list[asyncio.Task[None]], model: str, force: bool) -> None:
        self._progress[model] = 0.0
        try:
            if others:  # one at a time: each needs to know what memory the others took
                await asyncio.wait(others)
            if force:
                self._loaded.pop(model, None)
            await self._make_room(model)
            name = self._own.get(model, model)
            await self.engine.load_model(
                name, force_reload=force, on_progress=lambda share: self._progress.__setitem__(model, share)
            )
            self._loaded[model] = time.monotonic()
        except PolarGridError as error:
            log.error("model %s: %s", model, error.message)
            raise
        finally:
            del self._progress[model]

    async def _make_room(self, model: str) -> None:
        """Unloads idle models, the longest unused first, until the file fits into what the budget leaves."""
        need = self.store.resolve(self._own.get(model, model)).n_bytes
        budget = self.config.memory_budget_bytes or 0.8 * _memory_bytes()
        while (have := budget - sum(map(self._bytes, self._loaded))) < need:
            idle = sorted((used, other) for other, used in self._loaded.items() if not self._active[other])
            if not idle:
                raise MemoryEstimateError(
                    f"model '{model}' needs {need} bytes, the memory budget leaves {max(0, int(have))}",
                    details={"need": need, "have": max(0, int(have))},
                )
            await self._unload(idle[0][1])

    def _bytes(self, model: str) -> int:
        info = self.engine.info(model)
        return info.get("weights_bytes", 0) + info.get("cache_bytes", 0) + info.get("prefix_cache_bytes", 0)

    async def _unload(self, model: str) -> None:
        del self._loaded[model]
        await self.engine.unload_model(model)

    async def _reap(self) -> None:
        keep = self.config.keep_alive_s
        while True:
            await asyncio.sleep(min(30.0, max(0.1, keep / 4)))
            now = time.monotonic()
            for model, used in list(self._loaded.items()):
                if now - used > keep and not self._active[model] and model in self._loaded:
                    with contextlib.suppress(PolarGridError):  # it may be gone already
                        await self._unload(model)

    # --- text ---

    def stream(self, kind: str, request: ChatCompletionRequest | CompletionRequest, lease: Lease) -> Chunks:
        """An AsyncChatStream, or one that differs only in the name its chunks carry."""
        asked = request.model_copy(update={"model": lease.model})
        chunks: Chunks = (
            self.engine.chat_completion_stream(asked) if kind == "chat" else self.engine.completion_stream(asked)
        )
        return chunks if lease.alias == lease.model else _Renamed(chunks, lease.alias)

    async def answer(self, kind: str, request: Asked, lease: Lease) -> Reply:
        """`kind`: chat, completion, embedding or rerank."""
        ask: dict[str, Callable[[Asked], Awaitable[Reply]]] = {
            "chat": self.engine.chat_completion,
            "completion": self.engine.completion,
            "embedding": self.engine.embeddings,
            "rerank": self.engine.rerank,
        }
        reply = await ask[kind](request.model_copy(update={"model": lease.model}))
        reply["model"] = lease.alias
        return reply

    # --- answers about models ---

    async def list_models(self) -> ListModelsResponse:
        listed = (await self.engine.list_models())["data"]
        if not self.config.on_demand:
            listed = [row for row in listed if row["id"] in self._own]
        by_id = {row["id"]: row for row in listed}
        aliases = {alias: model for alias, model in self.config.aliases.items() if alias != "*"}  # that one is no name
        renamed: list[ModelInfo] = [{**by_id[model], "id": alias} for alias, model in aliases.items() if model in by_id]
        return {"object": "list", "data": [*listed, *renamed]}

    async def get_model(self, name: str) -> ModelInfo:
        return {**await self.engine.get_model(self.find(name)), "id": name}

    async def load_model(self, name: str, force: bool) -> LoadModelResponse:
        model = self.find(name)
        if force or model not in self._loaded:
            try:
                await self._load(model, force)
            except ValidationError as error:
                if isinstance(error, (InvalidModelError, TemplateError)):  # what was asked for cannot be had
                    raise
                raise _unavailable(model, error) from error
        return {
            "status": "success",
            "model": name,
            "force_reload": force,
            "message": f"Model {name} loaded successfully",
        }

    async def unload_model(self, name: str) -> UnloadModelResponse:
        model = self.find(name)
        if model not in self._loaded:
            raise NotFoundError(f"Model not loaded: '{name[:200]}'", code="model_not_loaded", param="model_name")
        await self._unload(model)
        return {"status": "success", "model": name, "message": f"Model {name} unloaded successfully"}

    async def unload_all_models(self) -> UnloadAllModelsResponse:
        self._loaded.clear()
        return await self.engine.unload_all_models()

    async def model_status(self) -> ModelStatusResponse:
        """With `progress`, 0..1, of each load under way; the remote has no such key."""
        status = await self.engine.get_model_status()
        known: dict[str, LoadStatus] = dict.fromkeys(self._own, "unloaded")
        known.update(status["loading_status"])
        known.update(dict.fromkeys(self._progress, "loading"))
        return {**status, "loading_status": known, "repository": "/models", "progress": dict(self._progress)}

    # --- answers about the machine ---

    async def purge_gpu(self, force: bool) -> GPUPurgeResponse:
        reply = await self.engine.purge_gpu(force=force)
        for model in reply["models_unloaded"]:
            self._loaded.pop(model, None)
        return reply

    async def health(self) -> HealthResponse:
        """`degraded` until the configured models are loaded."""
        health = await self.engine.health()
        if health["status"] == "healthy" and not self.ready:
            health["status"] = "degraded"
        return health

    async def status(self) -> dict[str, Any]:
        stats = self.stats()
        models = [
            {
                "model_id": model,
                "status": "available"
                if model in self._loaded
                else "loading"
                if model in self._progress
                else "unavailable",
                "instances": int(model in self._loaded),
                "avg_latency_ms": self.counter.latency_ms(model),
                "queue_depth": stats[model].get("n_waiting", 0) if model in stats else 0,
            }
            for model in dict.fromkeys([*self._own, *self._loaded, *self._progress])
        ]
        overall = (await self.health())["status"].replace("unhealthy", "unavailable")
        return {"status": overall, "regions": [{"region": "local", "status": overall, "models": models}]}

    async def gpu_status(self) -> GPUStatusResponse:
        return await self.engine.get_gpu_status()

    async def gpu_memory(self) -> GPUMemoryResponse:
        return await self.engine.get_gpu_memory()

    async def usage_report(self, start_date: str | None, end_date: str | None) -> dict[str, Any]:
        return self.counter.report(datetime.date.today(), start_date, end_date)

    def stats(self) -> dict[str, ModelStats]:
        return self.engine.stats()


def _unavailable(model: str, error: PolarGridError) -> ServerError:
    message = f"model '{model}' cannot be loaded by this server: {error.message}"
    return ServerError(
        message, status_code=503, code="model_unavailable", param="model", details=error.details, path=error.path
    )


class _Renamed:
    """A stream whose chunks carry the name that the request used."""

    def __init__(self, chunks: Chunks, name: str) -> None:
        self._chunks = chunks
        self._name = name
        self.start, self.cancel, self.aclose = chunks.start, chunks.cancel, chunks.aclose

    @property
    def usage(self) -> Usage:
        return self._chunks.usage

    @property
    def prefill(self) -> tuple[int, int] | None:
        return self._chunks.prefill

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in self._chunks:
            chunk["model"] = self._name
            yield chunk


def _memory_bytes() -> float:
    """This machine's, or this container's."""
    try:
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf
    try:
        return min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return total
