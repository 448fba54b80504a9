"""What the OpenAPI document says about each endpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response

from polargrid_local.api import replies, requests
from polargrid_local.server.requests import ENCODINGS

DESCRIPTION = (
    "The PolarGrid text API on this machine. Requests and answers are those of the remote; OpenAI clients work too."
)


class LoadModelRequest(BaseModel):
    model_name: str
    force_reload: bool = False


class UnloadModelRequest(BaseModel):
    model_name: str


class GPUPurgeRequest(BaseModel):
    force: bool = False


_BODIES: tuple[type[BaseModel], ...] = (
    requests.ChatCompletionRequest,
    requests.CompletionRequest,
    requests.EmbeddingRequest,
    requests.RerankRequest,
    LoadModelRequest,
    UnloadModelRequest,
    GPUPurgeRequest,
)
_ERROR = {
    "type": "object",
    "required": ["detail", "error"],
    "properties": {
        "detail": {"type": "string"},
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
            },
        },
    },
}
_HEALTH = ("status", "node", "runtime", "timestamp", "features", "backend")
_STREAMS = "With `stream: true`: Server-Sent Events, one chunk each, then [DONE]."


class _Route(NamedTuple):
    tag: str
    summary: str
    answer: Any  # a TypedDict of replies.py, or the keys of the object
    body: type[BaseModel] | None = None
    chunk: Any = None  # of its event stream
    text: str = ""


_ROUTES = {
    "chat": _Route(
        "Text",
        "Chat completion",
        replies.ChatCompletionResponse,
        requests.ChatCompletionRequest,
        replies.ChatCompletionChunk,
        _STREAMS,
    ),
    "completion": _Route(
        "Text",
        "Text completion",
        replies.CompletionResponse,
        requests.CompletionRequest,
        replies.CompletionChunk,
        _STREAMS,
    ),
    "completion_stream": _Route(
        "Text", "Text completion, always streamed", None, requests.CompletionRequest, replies.CompletionChunk
    ),
    "embedding": _Route(
        "Text", "Embeddings: one vector of floats per input", replies.EmbeddingResponse, requests.EmbeddingRequest
    ),
    "rerank": _Route(
        "Text", "Documents by how well they answer a query", replies.RerankResponse, requests.RerankRequest
    ),
    "models": _Route("Models", "Models of this machine", ("object", "data")),
    "model": _Route("Models", "One model", ("id", "object", "created", "owned_by", "permission", "root", "parent")),
    "model_status": _Route(
        "Models", "What is loaded, and how far a load has come", ("loaded", "loading_status", "repository", "progress")
    ),
    "load": _Route(
        "Models",
        "Load a model; answers when it is loaded",
        ("status", "model", "force_reload", "message"),
        LoadModelRequest,
    ),
    "unload": _Route("Models", "Unload a model", ("status", "model", "message"), UnloadModelRequest),
    "unload_all": _Route("Models", "Unload all models", ("status", "unloaded_models", "errors", "total_unloaded")),
    "gpu_status": _Route("Machine", "GPUs", ("status", "timestamp", "gpus", "processes", "total_gpus")),
    "gpu_memory": _Route("Machine", "GPU memory", ("status", "timestamp", "memory")),
    "gpu_purge": _Route(
        "Machine",
        "Unload models to free GPU memory",
        (
            "status",
            "timestamp",
            "actions",
            "memory_before",
            "memory_after",
            "memory_freed_gb",
            "models_unloaded",
            "errors",
            "recommendation",
        ),
        GPUPurgeRequest,
    ),
    "health": _Route(
        "Machine",
        "Health, 503 unless healthy; needs no API key",
        _HEALTH,
        text="degraded: the configured models are not loaded yet",
    ),
    "live": _Route(
        "Machine",
        "Health, 503 only when unhealthy; needs no API key",
        _HEALTH,
        text="unhealthy: a model's engine has failed",
    ),
    "status": _Route("Machine", "Models with latency and queue", ("status", "regions")),
    "usage": _Route("Machine", "Requests and tokens since the start", ("period", "usage")),
    "metrics": _Route("Machine", "Prometheus metrics", None),
}
_DATES = [
    {"name": name, "in": "query", "required": False, "schema": {"type": "string", "format": "date"}}
    for name in ("start_date", "end_date")
]


def describe(name: str) -> dict[str, Any]:
    """Keyword arguments of a FastAPI route."""
    route = _ROUTES[name]
    extra: dict[str, Any] = {}
    if route.body is not None:
        extra["requestBody"] = {
            "required": route.body is not GPUPurgeRequest,
            "content": _content(_ref(route.body.__name__)),
        }
    if name == "usage":
        extra["parameters"] = _DATES
    good: dict[str, Any] = {}
    if isinstance(route.answer, tuple):
        good |= _content({"type": "object", "required": list(route.answer)})
    elif route.answer is not None:
        good |= _content(_ref(route.answer.__name__))
    if route.chunk is not None:
        good["text/event-stream"] = {"schema": {"type": "string", "description": f"Events of {route.chunk.__name__}"}}
    return {
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.text or None,
        "openapi_extra": extra,
        "responses": {
            200: {"description": "Success", "content": good or {"text/plain": {}}},
            "default": {"description": "Error", "content": _content(_ref("Error"))},
        },
        "response_model": None,
        "response_class": Response,
    }


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def schemas() -> dict[str, Any]:
    """The components every route refers to."""
    replies = {kind for route in _ROUTES.values() for kind in (route.answer, route.chunk) if isinstance(kind, type)}
    kinds = [*_BODIES, *sorted(replies, key=lambda kind: kind.__name__)]
    adapters: list[Any] = [(kind.__name__, "validation", TypeAdapter(kind)) for kind in kinds]
    _, definitions = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    _as_over_http(definitions["$defs"])
    return {**definitions["$defs"], "Error": _ERROR}


def _as_over_http(described: dict[str, Any]) -> None:
    """The request models say what holds in process; here is what `requests.py` makes of them."""
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        described[name]["properties"]["max_tokens"] |= {"default": -1, "description": "-1: what the context leaves"}
    described["EmbeddingRequest"]["properties"]["encoding_format"]["enum"] = list(ENCODINGS)
