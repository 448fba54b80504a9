"""What breaks inside the server: clients hear that something did, the log says where, and neither quotes a prompt."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fakes
import httpx
import pytest
from fastapi import FastAPI

from polargrid_local import AsyncEngine
from polargrid_local.errors import (
    EngineCrashed,
    InvalidModelError,
    MemoryEstimateError,
    ModelFileChanged,
    NotFoundError,
    PolarGridError,
    ServerError,
    TemplateError,
    ValidationError,
)
from polargrid_local.server import ServeConfig, create_app
from polargrid_local.server.replies import refusal_of

SECRET = "xyzzy"
CHAT = {"model": "random", "messages": [{"role": "user", "content": SECRET}]}


class BrokenStream:
    usage = {"total_tokens": 0}
    dropped_keywords: list[str] = []
    ignored_fields: list[str] = []
    system_fingerprint, seed = "", 0

    async def start(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        yield {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
        raise RuntimeError(SECRET)

    async def aclose(self) -> None:
        pass


class BrokenEngine:
    """Loads, unless `load_error` says why not, then fails in every way."""

    load_error: Exception | None = None
    status = "healthy"

    async def load_model(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.load_error is not None:
            raise self.load_error
        return {"status": "success"}

    def info(self, model: str) -> dict[str, Any]:
        return {}

    def gpu_bytes(self) -> int:
        return 0

    async def bytes_to_load(self, model: str) -> int:
        return 0

    async def health(self) -> dict[str, Any]:
        return {"status": self.status}

    async def list_models(self) -> None:
        raise RuntimeError(SECRET)

    async def chat_completion(self, request: Any) -> None:
        raise ZeroDivisionError(SECRET)

    def chat_completion_stream(self, request: Any) -> BrokenStream:
        return BrokenStream()

    def stats(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass


@pytest.fixture
def engine() -> BrokenEngine:
    return BrokenEngine()


@pytest.fixture
def app(engine: BrokenEngine, tiny_dir: Path) -> FastAPI:
    return create_app(engine, ServeConfig(models_dir=tiny_dir))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8484") as client:
        yield client


async def test_a_crash_is_a_500_in_the_usual_shape(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    for reply in (
        await client.get("/v1/models", headers={"Origin": "http://localhost:1"}),
        await client.post("/v1/chat/completions", json=CHAT),
    ):
        assert reply.status_code == 500
        assert reply.json()["error"] == {
            "message": "internal error: see the server's log",
            "type": "server_error",
            "code": "internal_error",
            "param": None,
        }
        assert reply.headers["x-request-id"]
    assert "RuntimeError at" in caplog.text
    assert "test_server_faults.py" in caplog.text
    assert SECRET not in caplog.text


async def test_a_crash_in_the_middle_is_an_event(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        reply = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert reply.status_code == 200
    events = [line for line in reply.text.split("\n\n") if line]
    assert json.loads(events[-1][6:])["error"]["code"] == "internal_error"
    assert len(events) == 2
    assert SECRET not in caplog.text + reply.text


# --- models that cannot be loaded ---

REFUSED_FILES = [InvalidModelError("tensor 'x' has 9 dimensions"), TemplateError("the model's template is broken")]
OWN_FAULTS = [
    ValidationError("n_batch must be in 32..65536, got 16", param="n_batch"),
    MemoryEstimateError("does not fit"),
    ServerError("llama.cpp said no"),
    EngineCrashed("died"),
]


@pytest.mark.parametrize("error", [*REFUSED_FILES, *OWN_FAULTS], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/completions/stream", "/v1/embeddings"]
)
async def test_a_model_that_cannot_be_loaded_is_not_its_askers_fault(
    engine: BrokenEngine, client: httpx.AsyncClient, path: str, error: PolarGridError
) -> None:
    engine.load_error = error
    body = {"model": CHAT["model"], "input": "x"} if path == "/v1/embeddings" else {**CHAT, "prompt": "x"}
    reply = await client.post(path, json={**body, "stream": False})
    said = reply.json()["error"]
    assert reply.status_code == (error.status if error.status >= 500 else 503)
    assert said["code"] == (error.code if error.status >= 500 else "model_unavailable")
    assert said["type"] == "server_error"
    assert error.message in said["message"]


@pytest.mark.parametrize("error", [*REFUSED_FILES, *OWN_FAULTS], ids=lambda error: type(error).__name__)
async def test_loading_by_name_tells_a_bad_file_from_bad_settings(
    engine: BrokenEngine, client: httpx.AsyncClient, error: PolarGridError
) -> None:
    engine.load_error = error
    reply = await client.post("/v1/models/load", json={"model_name": "random"})
    said = reply.json()["error"]
    if error in REFUSED_FILES:
        assert (reply.status_code, said["code"]) == (400, error.code)
    else:
        assert reply.status_code >= 500
    assert error.message in said["message"]


# --- health ---


@pytest.mark.parametrize(("status", "ready", "told", "health", "live"), [
    ("healthy", True, "healthy", 200, 200),
    ("healthy", False, "degraded", 503, 200),
    ("unhealthy", True, "unhealthy", 503, 503),
    ("unhealthy", False, "unhealthy", 503, 503),
])  # fmt: skip
async def test_health_is_a_status_too(
    app: FastAPI,
    engine: BrokenEngine,
    client: httpx.AsyncClient,
    status: str,
    ready: bool,
    told: str,
    health: int,
    live: int,
) -> None:
    engine.status, app.state.service.ready = status, ready
    for path, code in (("/health", health), ("/livez", live)):
        reply = await client.get(path)
        assert (reply.status_code, reply.json()["status"]) == (code, told)
    overall = (await client.get("/v1/status")).json()["status"]
    assert overall == ("unavailable" if told == "unhealthy" else told)


async def test_health_sees_an_engine_that_has_failed(tiny_dir: Path) -> None:
    """The healthy model beside it makes up for nothing."""
    make = fakes.factory()
    async with AsyncEngine(models_dir=tiny_dir, engine_factory=make) as engine:
        app = create_app(engine, ServeConfig(models_dir=tiny_dir))
        app.state.service.ready = True
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8484") as client:
            for name in ("random", "scripted"):
                assert (await client.post("/v1/chat/completions", json={**CHAT, "model": name})).status_code == 200
            assert (await client.get("/health")).status_code == 200
            await asyncio.to_thread(make.made[0].close)
            while (reply := await client.get("/health")).status_code == 200:
                await asyncio.sleep(0.01)
            assert reply.json()["status"] == "unhealthy"
            assert reply.json()["backend"]["healthy"] is False
            assert (await client.get("/livez")).status_code == 503
            assert (
                await client.post("/v1/models/load", json={"model_name": "random", "force_reload": True})
            ).status_code == 200
            assert (await client.get("/health")).status_code == 200


async def test_the_catch_all_alias_is_not_listed(tiny_dir: Path) -> None:
    make = fakes.factory()
    async with AsyncEngine(models_dir=tiny_dir, engine_factory=make) as engine:
        app = create_app(engine, ServeConfig(models_dir=tiny_dir, aliases={"*": "random", "other": "random"}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8484") as client:
            listed = [row["id"] for row in (await client.get("/v1/models")).json()["data"]]
            assert "*" not in listed
            assert "other" in listed
            assert (await client.post("/v1/chat/completions", json={**CHAT, "model": "gpt-4o"})).json()[
                "model"
            ] == "gpt-4o"


# --- the limit on tokens ---


async def test_a_limit_caps_what_was_left_open_and_refuses_more(tiny_dir: Path) -> None:
    make = fakes.factory(fakes.endless)
    async with AsyncEngine(models_dir=tiny_dir, engine_factory=make) as engine:
        app = create_app(engine, ServeConfig(models_dir=tiny_dir, max_tokens_limit=5))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8484") as client:
            for path in ("/v1/chat/completions", "/v1/completions"):
                for fields, n in (
                    ({}, 5),
                    ({"max_tokens": -1}, 5),
                    ({"max_tokens": None}, 5),
                    ({"max_completion_tokens": -1}, 5),
                    ({"max_tokens": 5}, 5),
                    ({"max_tokens": 3}, 3),
                ):
                    answer = (await client.post(path, json={**CHAT, "prompt": "x", **fields})).json()
                    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == (
                        "length",
                        n,
                    )
                for field in ("max_tokens", "max_completion_tokens", "maxTokens"):
                    reply = await client.post(path, json={**CHAT, "prompt": "x", field: 6})
                    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "max_tokens")
                    assert "limit is 5" in reply.json()["detail"]


def test_errors_name_files_not_paths() -> None:
    told = refusal_of(ModelFileChanged("/home/ann/models/a b.gguf was replaced since it was loaded"))
    assert "/home" not in repr(told)
    assert "b.gguf was replaced" in told.message
    assert (
        refusal_of(NotFoundError("cannot read the model file /srv/m/x.gguf: gone")).message
        == "cannot read the model file x.gguf: gone"
    )
    assert (
        refusal_of(NotFoundError("see /docs, or HuggingFaceTB/SmolLM2")).message
        == "see /docs, or HuggingFaceTB/SmolLM2"
    )
    told = refusal_of(NotFoundError("x is not here: POST /v1/models/unload, or /api/tags")).message
    assert told == "x is not here: POST /v1/models/unload, or /api/tags"
