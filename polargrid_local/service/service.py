"""Service: what every endpoint answers, without HTTP. The server and the SDK drop-in both stand on it."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel
from typing_extensions import TypedDict

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
)
from polargrid_local.api.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from polargrid_local.errors import (
    InvalidModelError,
    NotFoundError,
    PolarGridError,
    TemplateError,
    ValidationError,
    refused,
)
from polargrid_local.service.chunks import ChunkStream, RenamedStream
from polargrid_local.service.kept import KeptResponses
from polargrid_local.service.lease import Lease
from polargrid_local.service.memory import MemoryBudget
from polargrid_local.service.names import ModelNames
from polargrid_local.service.pool import ModelPool, unavailable
from polargrid_local.service.settings import ServiceSettings
from polargrid_local.service.usage import UsageCounter, UsageResponse

if TYPE_CHECKING:
    from polargrid_local.engine import AsyncEngine

Kind = Literal["chat", "completion", "embedding", "rerank"]  # of requests for text, vectors or scores
Asked: TypeAlias = "ChatCompletionRequest | CompletionRequest | EmbeddingRequest | RerankRequest"
A = TypeVar("A", bound=BaseModel)
Reply: TypeAlias = "ChatCompletionResponse | CompletionResponse | EmbeddingResponse[Any] | RerankResponse"


class ServedModel(TypedDict):
    model_id: str
    status: Literal["available", "loading", "unavailable"]
    instances: int
    avg_latency_ms: int
    queue_depth: int


class Region(TypedDict):
    region: str
    status: str
    models: list[ServedModel]


class StatusResponse(TypedDict):
    status: str
    regions: list[Region]


class Service:
    """One event loop at a time uses it."""

    def __init__(self, engine: AsyncEngine, settings: ServiceSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.names = ModelNames(settings)
        self.counter = UsageCounter(datetime.date.today())
        self.kept = KeptResponses()
        budget = MemoryBudget(settings.memory_budget_bytes, engine.gpu_bytes)
        self.pool = ModelPool(engine, self.names, budget, settings.keep_alive_s, self._count)
        self.startup_error: PolarGridError | None = None
        self.ready = False  # the configured models are loaded

    def _count(self, model: str, tokens: int, latency_ms: float) -> None:
        self.counter.add(datetime.date.today(), model, tokens, latency_ms)

    async def start(self) -> None:
        """Loads the configured models. A failure is kept in `startup_error` and raised."""
        self.pool.start()
        try:
            for model in self.names.configured:
                await self.pool.load(model)
        except PolarGridError as error:
            self.startup_error = error
            raise
        self.ready = True

    async def close(self) -> None:
        await self.pool.close()
        await self.engine.close()

    # --- text ---

    async def lease(self, name: str | None) -> Lease:
        """See ModelPool.lease."""
        return await self.pool.lease(name)

    def stream(self, kind: Kind, request: ChatCompletionRequest | CompletionRequest, lease: Lease) -> ChunkStream:
        """`kind`: chat or completion. The chunks carry the lease's alias as their model. Raises ValidationError for
        what these settings do not allow."""
        asked = self.completed(request, lease)
        chunks: ChunkStream = (
            self.engine.chat_completion_stream(asked) if kind == "chat" else self.engine.completion_stream(asked)
        )
        return chunks if lease.alias == lease.asked else RenamedStream(chunks, lease.alias)

    async def answer(self, kind: Kind, request: Asked, lease: Lease) -> Reply:
        """The whole answer, which carries the lease's alias as its model."""
        ask: dict[Kind, Callable[[Asked], Awaitable[Reply]]] = {
            "chat": self.engine.chat_completion,
            "completion": self.engine.completion,
            "embedding": self.engine.embeddings,
            "rerank": self.engine.rerank,
        }
        reply = await ask[kind](self.completed(request, lease))
        reply["model"] = lease.alias
        return reply

    def completed(self, request: A, lease: Lease) -> A:
        """As the engine is asked: with the defaults of these settings where the request left a field out, those of the
        model's own before those of all. Raises ValidationError for a template of the request's own, unless that is
        allowed."""
        if getattr(request, "chat_template", None) is not None and not self.settings.allow_chat_template:
            raise refused("chat_template", "this server takes templates of requests only with allow_chat_template")
        given = {
            name: value
            for name, value in self.defaults(lease.model).items()
            if name in type(request).model_fields and name not in request.model_fields_set
        }
        return request.model_copy(update={"model": lease.asked, **given})

    def defaults(self, model: str) -> dict[str, Any]:
        """Of the fields of requests for a model, by its id in memory, as far as the settings have any."""
        own = self.names.own_settings.get(model)
        return {**self.settings.defaults, **(own.defaults if own is not None else {})}

    async def count_tokens(self, request: ChatCompletionRequest) -> int:
        """Those of the chat's prompt, which is not computed."""
        lease = await self.lease(request.model)
        try:
            return len(await self.engine.tokenize(messages=self.completed(request, lease), model=lease.model))
        finally:
            lease.release()

    # --- models ---

    async def list_models(self) -> ListModelsResponse:
        """The models that a request may name, then their aliases."""
        listed = (await self.engine.list_models())["data"]
        if not self.names.on_demand:
            listed = [row for row in listed if self.names.model_of(row["id"]) in self.names.configured]
        listed = [self._limited(row) for row in listed]
        by_id = {row["id"]: row for row in listed}
        aliases = {alias: model for alias, model in self.names.aliases.items() if alias != "*"}  # that one is no name
        renamed: list[ModelInfo] = [{**by_id[model], "id": alias} for alias, model in aliases.items() if model in by_id]
        return {"object": "list", "data": [*listed, *renamed]}

    async def get_model(self, name: str) -> ModelInfo:
        """Raises NotFoundError."""
        return {**self._limited(await self.engine.get_model(self.names.find(name))), "id": name}

    def _limited(self, row: ModelInfo) -> ModelInfo:
        """With the most tokens that an answer may have here."""
        if "max_model_len" not in row:
            return row
        limit = getattr(self.settings, "max_tokens_limit", 0) or row["max_model_len"]  # a server's setting
        return {**row, "max_completion_tokens": min(limit, row["max_model_len"])}

    async def load_model(self, name: str, force: bool) -> LoadModelResponse:
        """Answers when the model is loaded. `force`: again, where it is loaded already.

        Raises NotFoundError, InvalidModelError, TemplateError, MemoryEstimateError, and ServerError, code
        model_unavailable, where the settings are at fault."""
        model = self.names.model_of(self.names.find(name))
        if force or not self.pool.has(model):
            try:
                await self.pool.load(model, force)
            except ValidationError as error:
                if isinstance(error, (InvalidModelError, TemplateError)):  # what was asked for cannot be had
                    raise
                raise unavailable(model, error) from error
        return {
            "status": "success",
            "model": name,
            "force_reload": force,
            "message": f"Model {name} loaded successfully",
        }

    async def unload_model(self, name: str) -> UnloadModelResponse:
        """Raises NotFoundError where it is not loaded, also while it is being loaded; ValidationError for an adapter,
        which comes and goes with its model."""
        asked = self.names.find(name)
        model = self.names.model_of(asked)
        if model != asked:
            raise refused("model_name", f"'{name[:200]}' is an adapter: unload its model, '{model}'")
        if not self.pool.has(model):
            raise NotFoundError(f"Model not loaded: '{name[:200]}'", code="model_not_loaded", param="model_name")
        await self.pool.unload(model)
        return {"status": "success", "model": name, "message": f"Model {name} unloaded successfully"}

    async def unload_all_models(self) -> UnloadAllModelsResponse:
        self.pool.forget(*self.pool.loaded())
        return await self.engine.unload_all_models()

    async def model_status(self) -> ModelStatusResponse:
        """With `progress`, 0..1, of each load under way; the remote has no such key."""
        status = await self.engine.get_model_status()
        progress = {**dict.fromkeys(self.pool.loading(), 0.0), **status.get("progress", {})}
        known: dict[str, LoadStatus] = dict.fromkeys(self.names.configured, "unloaded")
        known.update(status["loading_status"])
        known.update(dict.fromkeys(progress, "loading"))
        # The directory's own path is not told to clients.
        return {"loaded": status["loaded"], "loading_status": known, "repository": "/models", "progress": progress}

    # --- the machine ---

    async def gpu_status(self) -> GPUStatusResponse:
        return await self.engine.get_gpu_status()

    async def gpu_memory(self) -> GPUMemoryResponse:
        return await self.engine.get_gpu_memory()

    async def purge_gpu(self, force: bool) -> GPUPurgeResponse:
        reply = await self.engine.purge_gpu(force=force)
        self.pool.forget(*reply["models_unloaded"])
        return reply

    async def health(self) -> HealthResponse:
        """`degraded` until the configured models are loaded."""
        health = await self.engine.health()
        if health["status"] == "healthy" and not self.ready:
            health["status"] = "degraded"
        return health

    async def status(self) -> StatusResponse:
        """Models with their latency and queue."""
        stats = self.stats()
        loaded, loading = self.pool.loaded(), self.pool.loading()
        models: list[ServedModel] = [
            {
                "model_id": model,
                "status": "available" if model in loaded else "loading" if model in loading else "unavailable",
                "instances": int(model in loaded),
                "avg_latency_ms": self.counter.latency_ms(model),
                "queue_depth": stats[model].get("n_waiting", 0) if model in stats else 0,
            }
            for model in dict.fromkeys([*self.names.configured, *loaded, *loading])
        ]
        overall = (await self.health())["status"].replace("unhealthy", "unavailable")
        return {"status": overall, "regions": [{"region": "local", "status": overall, "models": models}]}

    async def usage(self, start_date: str | None, end_date: str | None) -> UsageResponse:
        """See UsageCounter.report."""
        return self.counter.report(datetime.date.today(), start_date, end_date)

    def stats(self) -> dict[str, ModelStats]:
        """Loaded model -> its engine's counters."""
        return self.engine.stats()
