"""The list of endpoints adds up: each is routed and documented, and the official SDK asks for no others."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import fakes
import httpx
import polargrid
import polargrid.types
import pytest
from fastapi import FastAPI

from polargrid_local import AsyncEngine, sdk
from polargrid_local.server import ServeConfig, create_app
from polargrid_local.service.endpoints import ENDPOINTS, find_endpoint

LISTED = {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
OF_OTHERS = {"Responses", "Anthropic", "Cohere", "Ollama", "llama-server"}  # tags of what speaks another API's words
NOT_IN_THE_SDK = {("POST", "/v1/rerank"), ("POST", "/v1/score"), ("GET", "/livez"), ("GET", "/metrics")}
NOT_IN_THE_SDK |= {("POST", "/v1/chat/completions/input_tokens"), ("POST", "/pooling"), ("POST", "/invocations")}
NOT_IN_THE_SDK |= {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS if endpoint.tag in OF_OTHERS}
MESSAGES = [{"role": "user", "content": "x"}]
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "chat_completion": ({"model": "m", "messages": MESSAGES},),
    "chat_completion_stream": ({"model": "m", "messages": MESSAGES},),
    "completion": ({"model": "m", "prompt": "x"},),
    "completion_stream": ({"model": "m", "prompt": "x"},),
    "embeddings": (polargrid.types.EmbeddingRequest(model="m", input="x"),),
    "generate": ({"model": "m", "prompt": "x"},),
    "get_model": ("folder/a model",),
    "load_model": ({"model_name": "m"},),
    "unload_model": ({"model_name": "m"},),
    "get_usage": ("2026-01-01", "2026-01-02"),
}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    async with AsyncEngine(models_dir=tmp_path, engine_factory=fakes.factory()) as engine:
        yield create_app(engine, ServeConfig(models_dir=tmp_path))


async def test_every_endpoint_is_routed(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8484") as client:
        for endpoint in ENDPOINTS:
            path = endpoint.path.format(model_id="no such model", response_id="no such response")
            reply = await client.request(endpoint.method, path)
            assert '"not_found"' not in reply.text and '"method_not_allowed"' not in reply.text, endpoint
        counted = (await client.get("/metrics")).text
    for endpoint in ENDPOINTS:
        assert f'route="{endpoint.path.replace("{model_id}", "{model_id:model_name}")}"' in counted
    assert len(ENDPOINTS) == len(LISTED) == len({endpoint.name for endpoint in ENDPOINTS})


async def test_every_endpoint_is_documented(app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8484") as client:
        document = (await client.get("/openapi.json")).json()
        page = (await client.get("/docs")).text
    operations = {
        (method.upper(), path): operation for path, of in document["paths"].items() for method, operation in of.items()
    }
    assert set(operations) == LISTED
    for endpoint in ENDPOINTS:
        operation = operations[endpoint.method, endpoint.path]
        assert (operation["summary"], operation["tags"]) == (endpoint.summary, [endpoint.tag])
        assert endpoint.path in page
        said = str(operation.get("requestBody")), str(operation["responses"]["200"])
        for kind, text in ((endpoint.request, said[0]), (endpoint.reply, said[1])):
            (kind,) = get_args(kind) or (kind,)  # of a list, its items
            assert kind is None or f"#/components/schemas/{kind.__name__}" in text
        assert (endpoint.chunk is not None) == ("text/event-stream" in operation["responses"]["200"]["content"])


class Asked(Exception):
    """Ends a method of the official SDK where it would open a connection."""


class Recorder(polargrid.PolarGrid):
    """The official client, which notes what it would ask for."""

    async def _make_request(self, endpoint: str, method: str = "GET", *args: Any, **kwargs: Any) -> Any:
        raise Asked(method, endpoint.partition("?")[0])

    async def _stream_post(self, endpoint: str, body: Any) -> AsyncIterator[Any]:
        raise Asked("POST", endpoint)
        yield


async def test_what_the_official_methods_ask_for_is_on_the_list() -> None:
    client = Recorder(api_key="pg_any", base_url="http://127.0.0.1:1")
    reached = set()
    for name, method in inspect.getmembers(client, inspect.ismethod):
        asks = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        if name.startswith("_") or name in sdk.VOICE or name == "create" or not asks:
            continue
        call = method(*ARGUMENTS.get(name, ()))
        with pytest.raises(Asked) as asked:
            await (anext(call) if inspect.isasyncgen(call) else call)
        found = find_endpoint(*asked.value.args)
        assert found is not None, asked.value.args
        endpoint, in_path = found
        assert in_path == ({"model_id": "folder/a model"} if name == "get_model" else {})
        assert endpoint.kind is not None or endpoint.answer is not None
        reached.add((endpoint.method, endpoint.path))
    assert reached == LISTED - NOT_IN_THE_SDK


def test_what_is_not_on_the_list_is_not_found() -> None:
    assert find_endpoint("GET", "/v1/nope") is None
    assert find_endpoint("GET", "/v1/models/load") is not None  # a model of that name
    assert find_endpoint("POST", "/v1/models") is None
