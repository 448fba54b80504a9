"""The server's engines run in processes of their own: one that dies is an error event, and nobody else's matter."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_model
from serving import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    for name in ("one", "two"):
        tiny_model.write_random(tmp_path / f"{name}.gguf", n_ctx_train=32768)
    running = ServerProcess(tmp_path, tmp_path / "log", model="one,two", n_ctx=32768)
    try:
        yield running.wait_ready()
    finally:
        assert running.stop() == 0


def body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


def test_a_process_that_dies_ends_its_streams_with_an_error_event_and_no_other_ones(server: ServerProcess) -> None:
    long = {"stream": True, "max_tokens": 32000, "ignore_eos": True}
    first, second = server.workers()
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        with (
            client.stream("POST", "/v1/chat/completions", json=body("one", **long)) as dying,
            client.stream("POST", "/v1/chat/completions", json=body("two", **long)) as other,
        ):
            lines, other_lines = dying.iter_lines(), other.iter_lines()
            next(lines), next(other_lines)
            os.kill(first, signal.SIGSEGV)
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
            assert "[DONE]" not in events
            assert json.loads(events[-1])["error"]["code"] == "engine_crashed"
            for _ in range(20):
                assert "error" not in next(other_lines)
    reply = server.post("/v1/chat/completions", body("one", max_tokens=3))
    assert reply.status_code == 200, reply.text
    now = server.workers()
    assert second in now
    assert first not in now
    assert len(now) == 2


def test_a_process_that_died_unseen_is_replaced_by_the_next_request(server: ServerProcess) -> None:
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    for model in ("one", "two"):
        assert server.post("/v1/chat/completions", body(model, max_tokens=3)).status_code == 200
    assert server.get("/health").json()["status"] == "healthy"


def test_too_many_deaths_are_a_503_that_says_so(server: ServerProcess) -> None:
    other = server.workers()[1]
    for _ in range(4):
        reply = server.post("/v1/chat/completions", body("one", max_tokens=3))
        assert reply.status_code == 200, reply.text
        [victim] = set(server.workers()) - {other}
        os.kill(victim, signal.SIGKILL)
    reply = server.post("/v1/chat/completions", body("one", max_tokens=3))
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_crashed"
    assert server.post("/v1/chat/completions", body("two", max_tokens=3)).status_code == 200
    assert server.post("/v1/models/load", {"model_name": "one", "force_reload": True}).status_code == 200
    assert server.post("/v1/chat/completions", body("one", max_tokens=3)).status_code == 200
