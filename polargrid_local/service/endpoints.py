"""Endpoint: path, words and types of one thing the API offers; ENDPOINTS is the one list of them.

The server's routes, its OpenAPI document and the SDK drop-in are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from pydantic import BaseModel

from polargrid_local.api.replies import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    EmbeddingResponse,
    GPUMemoryResponse,
    GPUPurgeResponse,
    GPUStatusResponse,
    HealthResponse,
    ListModelsResponse,
    LoadModelResponse,
    ModelInfo,
    ModelStatusResponse,
    RerankResponse,
    UnloadAllModelsResponse,
    UnloadModelResponse,
)
from polargrid_local.api.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from polargrid_local.dialects.exchange import AlwaysStreams, Exchange
from polargrid_local.errors import ValidationError
from polargrid_local.service.service import Kind, Service, StatusResponse
from polargrid_local.service.usage import UsageResponse

Given = Mapping[str, Any]  # the fields of a body, the parameters of a query and of a path


class LoadModelRequest(BaseModel):
    model_name: str
    force_reload: bool = False


class UnloadModelRequest(BaseModel):
    model_name: str


class GPUPurgeRequest(BaseModel):
    force: bool = False


class Endpoint(NamedTuple):
    """Answered by `kind`, a request for text that takes a lease on a model, or by `answer`; by the server itself where
    both are None. `chunk` is what its event stream consists of, if it has one. Types are TypedDicts of the replies."""

    name: str
    method: Literal["GET", "POST"]
    path: str  # {model_id} stands for the rest of the path
    tag: str
    summary: str
    kind: Kind | None = None
    answer: Callable[[Service, Given], Coroutine[Any, Any, Mapping[str, Any]]] | None = None
    request: type[BaseModel] | None = None
    reply: Any = None  # None: it is not JSON
    chunk: Any = None
    text: str = ""  # what else the documentation says
    exchange: type[Exchange] = Exchange  # whose words these are
    dates: tuple[str, ...] = ()  # parameters of the query
    other_path: str | None = None  # served too, not documented

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The parameters in `path` where it is this endpoint's, None where it is not."""
        if method != self.method:
            return None
        found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>.*)", self.path), path, re.DOTALL)
        return None if found is None else {name: unquote(value) for name, value in found.groupdict().items()}


def _model_name(given: Given) -> str:
    name = given.get("model_name", given.get("modelName"))
    if not isinstance(name, str) or not name:
        raise ValidationError("model_name: required, a non-empty string", param="model_name")
    return name


def _flag(given: Given, field: str, other_name: str = "") -> bool:
    flag = given.get(field, given.get(other_name))
    if not isinstance(flag, (bool, type(None))):
        raise ValidationError(f"{field}: expected true or false", param=field)
    return bool(flag)


async def _load(service: Service, given: Given) -> LoadModelResponse:
    force = _flag(given, "force_reload", "forceReload")
    return await service.load_model(_model_name(given), force)


_STREAMS = "With `stream: true`: Server-Sent Events, one chunk each, then [DONE]."

# The first that fits answers: /v1/models/status comes before /v1/models/{model_id}.
ENDPOINTS = (
    Endpoint(
        "chat_completions", "POST", "/v1/chat/completions", "Text", "Chat completion",
        kind="chat", text=_STREAMS,
        request=ChatCompletionRequest, reply=ChatCompletionResponse, chunk=ChatCompletionChunk,
    ),
    Endpoint(
        "completions", "POST", "/v1/completions", "Text", "Text completion",
        kind="completion", text=_STREAMS,
        request=CompletionRequest, reply=CompletionResponse, chunk=CompletionChunk,
    ),
    Endpoint(
        "completions_stream", "POST", "/v1/completions/stream", "Text", "Text completion, always streamed",
        kind="completion", exchange=AlwaysStreams, request=CompletionRequest, chunk=CompletionChunk,
    ),
    Endpoint(
        "embeddings", "POST", "/v1/embeddings", "Text", "Embeddings: one vector of floats per input",
        kind="embedding", request=EmbeddingRequest, reply=EmbeddingResponse,
    ),
    Endpoint(
        "rerank", "POST", "/v1/rerank", "Text", "Documents by how well they answer a query",
        kind="rerank", request=RerankRequest, reply=RerankResponse,
        other_path="/rerank",  # of clients whose base URL has no version
    ),
    Endpoint(
        "list_models", "GET", "/v1/models", "Models", "Models of this machine",
        answer=lambda service, given: service.list_models(), reply=ListModelsResponse,
    ),
    Endpoint(
        "model_status", "GET", "/v1/models/status", "Models", "What is loaded, and how far a load has come",
        answer=lambda service, given: service.model_status(), reply=ModelStatusResponse,
    ),
    Endpoint(
        "load", "POST", "/v1/models/load", "Models", "Load a model; answers when it is loaded",
        answer=_load, request=LoadModelRequest, reply=LoadModelResponse,
    ),
    Endpoint(
        "unload", "POST", "/v1/models/unload", "Models", "Unload a model",
        answer=lambda service, given: service.unload_model(_model_name(given)),
        request=UnloadModelRequest, reply=UnloadModelResponse,
    ),
    Endpoint(
        "unload_all", "POST", "/v1/models/unload-all", "Models", "Unload all models",
        answer=lambda service, given: service.unload_all_models(), reply=UnloadAllModelsResponse,
    ),
    Endpoint(
        "get_model", "GET", "/v1/models/{model_id}", "Models", "One model",
        answer=lambda service, given: service.get_model(given["model_id"]), reply=ModelInfo,
    ),
    Endpoint(
        "gpu_status", "GET", "/v1/gpu/status", "Machine", "GPUs",
        answer=lambda service, given: service.gpu_status(), reply=GPUStatusResponse,
    ),
    Endpoint(
        "gpu_memory", "GET", "/v1/gpu/memory", "Machine", "GPU memory",
        answer=lambda service, given: service.gpu_memory(), reply=GPUMemoryResponse,
    ),
    Endpoint(
        "gpu_purge", "POST", "/v1/gpu/purge", "Machine", "Unload models to free GPU memory",
        answer=lambda service, given: service.purge_gpu(_flag(given, "force")),
        request=GPUPurgeRequest, reply=GPUPurgeResponse,
    ),
    Endpoint(
        "health", "GET", "/health", "Machine", "Health, 503 unless healthy; needs no API key",
        answer=lambda service, given: service.health(), reply=HealthResponse,
        text="degraded: the configured models are not loaded yet",
    ),
    Endpoint(
        "live", "GET", "/livez", "Machine", "Health, 503 only when unhealthy; needs no API key",
        answer=lambda service, given: service.health(), reply=HealthResponse,
        text="unhealthy: a model's engine has failed",
    ),
    Endpoint(
        "status", "GET", "/v1/status", "Machine", "Models with latency and queue",
        answer=lambda service, given: service.status(), reply=StatusResponse,
    ),
    Endpoint(
        "usage", "GET", "/v1/usage", "Machine", "Requests and tokens since the start",
        answer=lambda service, given: service.usage(given.get("start_date"), given.get("end_date")),
        reply=UsageResponse, dates=("start_date", "end_date"),
    ),
    Endpoint("metrics", "GET", "/metrics", "Machine", "Prometheus metrics"),
)  # fmt: skip


def find_endpoint(method: str, path: str) -> tuple[Endpoint, dict[str, str]] | None:
    """The endpoint of `path`, percent-encoded as a client sends it, and the parameters in it."""
    for endpoint in ENDPOINTS:
        if (found := endpoint.match(method, path)) is not None:
            return endpoint, found
    return None
