"""The OpenAPI document's part of each endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import TypeAdapter
from starlette.responses import Response

from polargrid_local.api.keys import NO_EFFECT, OTHERS_NO_EFFECT
from polargrid_local.api.replies import ModelInfo
from polargrid_local.dialects import described
from polargrid_local.dialects.exchange import Exchange
from polargrid_local.server.requests import ENCODINGS
from polargrid_local.service.endpoints import ENDPOINTS, Endpoint, GPUPurgeRequest

DESCRIPTION = (
    "The PolarGrid text API on this machine. Requests and answers are those of the remote; OpenAI clients work too."
)
SOMETIMES = (ModelInfo,)  # has keys of what is known of some models only
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


def describe(endpoint: Endpoint) -> dict[str, Any]:
    """Keyword arguments of a FastAPI route."""
    extra: dict[str, Any] = {}
    if endpoint.request is not None:
        extra["requestBody"] = {
            "required": endpoint.request is not GPUPurgeRequest,
            "content": _json(_ref(endpoint.request.__name__)),
        }
    in_path = [(name, "path", True, {"type": "string"}) for name in endpoint.parameters]
    in_query = [(name, "query", False, {"type": "string"}) for name in endpoint.query]
    dates = [(name, "query", False, {"type": "string", "format": "date"}) for name in endpoint.dates]
    if parameters := [*in_path, *in_query, *dates]:
        extra["parameters"] = [
            {"name": name, "in": place, "required": required, "schema": schema}
            for name, place, required, schema in parameters
        ]
    good: dict[str, Any] = {}
    if endpoint.reply is not None:
        (item,) = get_args(endpoint.reply) or (endpoint.reply,)
        every = _ref(item.__name__)
        # All keys are always there over HTTP, those too that a call in this process may leave out.
        if endpoint.kind is None and item not in SOMETIMES:
            every["required"] = list(item.__annotations__)
        good |= _json(every if item is endpoint.reply else {"type": "array", "items": every})
    if endpoint.chunk is not None:
        good["text/event-stream"] = {
            "schema": {"type": "string", "description": f"Events of {endpoint.chunk.__name__}"}
        }
    return {
        "name": endpoint.name,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": endpoint.text or None,
        "openapi_extra": extra,
        "responses": {
            200: {"description": "Success", "content": good or {"text/plain": {}}},
            "default": {
                "description": "Error",
                "content": _json(_ref("Error") if endpoint.exchange.error is Exchange.error else {"type": "object"}),
            },
        },
        "response_model": None,
        "response_class": Response,
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def schemas() -> dict[str, Any]:
    """The components that the endpoints refer to."""
    kinds = {
        kind.__name__: kind
        for endpoint in ENDPOINTS
        for named in (endpoint.request, endpoint.reply, endpoint.chunk)
        if named is not None
        for kind in get_args(named) or (named,)
    }
    adapters: list[Any] = [(name, "validation", TypeAdapter(kind)) for name, kind in sorted(kinds.items())]
    _, definitions = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    _as_over_http(definitions["$defs"])
    return {**definitions["$defs"], "Error": _ERROR}


# The fields that bound an answer, by which the server's default differs.
LIMITS = (
    ("ChatCompletionRequest", "max_tokens"),
    ("CompletionRequest", "max_tokens"),
    ("LlamaCompletionRequest", "n_predict"),
    ("InfillRequest", "n_predict"),
)
# How pydantic writes a bound behind a validator of ours -> the keyword of JSON Schema.
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _as_over_http(schemas: dict[str, Any]) -> None:
    """The request models say what holds in process; here is what `requests.py` makes of them, and which fields change
    nothing."""
    for name, limit in LIMITS:
        schemas[name]["properties"][limit] |= {"default": -1, "description": "-1: what the context leaves"}
    for name in ("EmbeddingRequest", "PoolingRequest"):
        schemas[name]["properties"]["encoding_format"]["enum"] = list(ENCODINGS)
    for name in ("ChatCompletionRequest", "CompletionRequest", "EmbeddingRequest", "RerankRequest"):
        fields = schemas[name]["properties"]
        for harmless in sorted({"user", *NO_EFFECT, *OTHERS_NO_EFFECT}):
            fields.setdefault(harmless, {})["description"] = described.NO_EFFECT
    for schema in _inside(schemas):
        for theirs, ours in BOUNDS.items():
            if isinstance(schema.get(theirs), (int, float)):
                schema[ours] = schema.pop(theirs)


def _inside(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in it."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _inside(part)
