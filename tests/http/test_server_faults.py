"""What breaks inside the server: clients hear that something did, the log says where, and neither quotes a prompt or a path."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from polargrid_local.errors import ModelFileChanged, NotFoundError
from polargrid_local.server import ServeConfig, create_app
from polargrid_local.server.replies import error_body

SECRET = "xyzzy"
CHAT = {"model": "random", "messages": [{"role": "user", "content": SECRET}]}


class BrokenStream:
    usage = {"total_tokens": 0}

    async def start(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        yield {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
        raise RuntimeError(SECRET)

    async def aclose(self) -> None:
        pass


class BrokenEngine:
    """Loads, then fails in every way."""

    async def load_model(self, *args: Any, **kwargs: Any) -> None:
        pass

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
async def client(tiny_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(BrokenEngine(), ServeConfig(models_dir=tiny_dir))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8484") as client:
        yield client


async def test_a_crash_is_a_500_in_the_usual_shape(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    for reply in (await client.get("/v1/models", headers={"Origin": "http://localhost:1"}), await client.post("/v1/chat/completions", json=CHAT)):
        assert reply.status_code == 500
        assert reply.json()["error"] == {
            "message": "internal error: see the server's log", "type": "server_error", "code": "internal_error", "param": None,
        }  # fmt: skip
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


def test_errors_name_files_not_paths() -> None:
    body = error_body(ModelFileChanged("/home/ann/models/a b.gguf was replaced since it was loaded"))
    assert "/home" not in json.dumps(body)
    assert "b.gguf was replaced" in body["detail"]
    assert error_body(NotFoundError("cannot read the model file /srv/m/x.gguf: gone"))["detail"] == "cannot read the model file x.gguf: gone"
    assert error_body(NotFoundError("see /docs, or HuggingFaceTB/SmolLM2"))["detail"] == "see /docs, or HuggingFaceTB/SmolLM2"
