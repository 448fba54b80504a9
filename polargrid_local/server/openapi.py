"""What the OpenAPI document says about each endpoint."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from polargrid_local import types

DESCRIPTION = "The PolarGrid text API on this machine. Requests and answers are those of the remote; OpenAI clients work too."


class LoadModelRequest(BaseModel):
    model_name: str
    force_reload: bool = False


class UnloadModelRequest(BaseModel):
    model_name: str


class GPUPurgeRequest(BaseModel):
    force: bool = False


_BODIES: tuple[type[BaseModel], ...] = (
    types.ChatCompletionRequest,
    types.CompletionRequest,
    types.EmbeddingRequest,
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
_STREAMS = "With `stream: true`: Server-Sent Events, one chunk each, then [DONE]."

# Name -> tag, summary, description, request body, media types of a good answer.
_ROUTES: dict[str, tuple[str, str, str, type[BaseModel] | None, tuple[str, ...]]] = {
    "chat": ("Text", "Chat completion", _STREAMS, types.ChatCompletionRequest, ("application/json", "text/event-stream")),
    "completion": ("Text", "Text completion", _STREAMS, types.CompletionRequest, ("application/json", "text/event-stream")),
    "completion_stream": ("Text", "Text completion, always streamed", "", types.CompletionRequest, ("text/event-stream",)),
    "embedding": ("Text", "Embeddings", "Vectors of floats, one per input.", types.EmbeddingRequest, ("application/json",)),
    "models": ("Models", "Models of this machine", "", None, ("application/json",)),
    "model": ("Models", "One model", "", None, ("application/json",)),
    "model_status": ("Models", "What is loaded, and how far a load has come", "", None, ("application/json",)),
    "load": ("Models", "Load a model", "Answers when it is loaded.", LoadModelRequest, ("application/json",)),
    "unload": ("Models", "Unload a model", "", UnloadModelRequest, ("application/json",)),
    "unload_all": ("Models", "Unload all models", "", None, ("application/json",)),
    "gpu_status": ("Machine", "GPUs", "Empty lists without one.", None, ("application/json",)),
    "gpu_memory": ("Machine", "GPU memory", "", None, ("application/json",)),
    "gpu_purge": ("Machine", "Free GPU memory", "Unloads models.", GPUPurgeRequest, ("application/json",)),
    "health": ("Machine", "Health", "Needs no API key.", None, ("application/json",)),
    "status": ("Machine", "Models with latency and queue", "", None, ("application/json",)),
    "usage": ("Machine", "Requests and tokens since the start", "", None, ("application/json",)),
    "metrics": ("Machine", "Prometheus metrics", "", None, ("text/plain",)),
}
_DATES = [
    {"name": name, "in": "query", "required": False, "schema": {"type": "string", "format": "date"}}
    for name in ("start_date", "end_date")
]


def describe(name: str) -> dict[str, Any]:
    """Keyword arguments of a FastAPI route."""
    tag, summary, text, body, media = _ROUTES[name]
    extra: dict[str, Any] = {}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        needed = body is not GPUPurgeRequest
        extra["requestBody"] = {"required": needed, "content": {"application/json": {"schema": schema}}}
    if name == "usage":
        extra["parameters"] = _DATES
    responses: dict[int | str, dict[str, Any]] = {
        "default": {"description": "Error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    }
    responses[200] = {"description": "Success", "content": {kind: {} for kind in media}}
    return {
        "tags": [tag],
        "summary": summary,
        "description": text or None,
        "openapi_extra": extra,
        "responses": responses,
        "response_model": None,
        "response_class": Response,
    }


def schemas() -> dict[str, Any]:
    """The components every route refers to."""
    _, definitions = models_json_schema(
        [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
    )
    return {**definitions["$defs"], "Error": _ERROR}
