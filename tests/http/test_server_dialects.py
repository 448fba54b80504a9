"""Refusals speak the words of the path, whoever refuses, and an id tells which request was meant."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import fakes
import httpx
import openai
import pytest
from fastapi import FastAPI
from serving import ServerProcess

from polargrid_local import AsyncEngine
from polargrid_local.server import ServeConfig, create_app

URL = "http://127.0.0.1:8484"
KEY = {"Authorization": "Bearer k"}
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches", "/api/chat",
         "/api/show", "/api/pull", "/v1/responses", "/v2/embed", "/v2/chat", "/nope"]  # fmt: skip
SERVED = ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/api/show", "/v2/embed"]
SAY: Any = [{"role": "user", "content": "x"}]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    async with AsyncEngine(models_dir=tmp_path, engine_factory=fakes.factory(load=())) as engine:
        # Beyond loopback no documentation is made, which would take longer than all tests here.
        settings: Any = {"host": "0.0.0.0", "api_keys": ["a=k", "b=slow@1"], "max_body_bytes": 1024}
        yield create_app(engine, ServeConfig(models_dir=tmp_path, **settings))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL) as client:
        yield client


def check(reply: httpx.Response, path: str, status: int, kind: str, code: str) -> None:
    """`kind`: what Anthropic calls it."""
    told = reply.json()
    assert reply.status_code == status, reply.text
    if path.startswith("/v1/messages"):
        assert set(told) == {"type", "error", "request_id"} and told["type"] == "error"
        assert (told["error"]["type"], told["error"]["details"]["error_code"]) == (kind, code)
        assert told["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    else:
        assert "request-id" not in reply.headers
        if path.startswith("/api/"):
            assert list(told) == ["error"] and isinstance(told["error"], str)
        else:
            assert told["error"]["code"] == code and told["detail"] == told["error"]["message"]
            if path == "/v2/embed":
                assert told["message"] == told["detail"]


@pytest.mark.parametrize("path", PATHS)
async def test_who_is_not_let_in_is_told_in_the_words_of_the_path(http: httpx.AsyncClient, path: str) -> None:
    check(await http.post(path, json={}), path, 401, "authentication_error", "invalid_api_key")
    for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        reply = await http.post(path, json={}, headers={**KEY, **foreign})
        check(reply, path, 403, "permission_error", "forbidden_origin")
    slow = {"Authorization": "Bearer slow"}
    await http.get("/v1/models", headers=slow)
    check(await http.post(path, json={}, headers=slow), path, 429, "rate_limit_error", "rate_limit_exceeded")


@pytest.mark.parametrize("path", SERVED)
async def test_a_wrong_method_and_a_wrong_body_are_told_in_the_words_of_the_path(
    http: httpx.AsyncClient, path: str
) -> None:
    check(await http.get(path, headers=KEY), path, 405, "api_error", "method_not_allowed")
    as_json = {**KEY, "Content-Type": "application/json"}
    for content, headers, code in [
        (b"{", as_json, "invalid_request"),
        (b"[]", as_json, "invalid_request"),
        (b'{"x":"' + b"x" * 2000 + b'"}', as_json, "body_too_large"),
        (b"{}", {**KEY, "Content-Type": "text/plain"}, "invalid_request"),
        (b"{}", {**as_json, "Content-Encoding": "gzip"}, "invalid_request"),
    ]:
        reply = await http.post(path, content=content, headers=headers)
        check(reply, path, 400, "invalid_request_error", code)


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/api/pull", "/api/nope", "/v2/chat", "/nope"])
async def test_what_is_not_served_is_told_in_the_words_of_the_path(http: httpx.AsyncClient, path: str) -> None:
    check(await http.post(path, json={}, headers=KEY), path, 404, "not_found_error", "not_found")


async def test_a_crash_is_told_in_the_words_of_the_path(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("polargrid_local.server.routes.read_request", crash)
    asked = {"model": "one", "max_tokens": 3, "messages": SAY}
    for path in ("/v1/messages", "/api/chat", "/v1/chat/completions"):
        check(await http.post(path, json=asked, headers=KEY), path, 500, "api_error", "internal_error")


# --- a form's type ---

FORM = {**KEY, "Content-Type": "application/x-www-form-urlencoded"}  # as `curl -d` calls whatever it sends
ASKED = json.dumps({"model": "one", "messages": SAY, "stream": False}).encode()


async def test_ollamas_curl_examples_work(http: httpx.AsyncClient) -> None:
    reply = await http.post("/api/chat", content=ASKED, headers=FORM)
    assert reply.status_code == 200 and reply.json()["message"]["content"] == "".join(fakes.WORDS)
    read = await http.post("/api/show", content=b'{"model":"nobody"}', headers=FORM)
    assert read.status_code == 404 and "nobody" in read.json()["error"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/models/load", "/tokenize"])
async def test_other_apis_take_no_form(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.post(path, content=ASKED, headers=FORM)
    assert reply.status_code == 400 and "Content-Type must be application/json" in reply.text


@pytest.mark.parametrize("by", [
    {"Origin": "http://localhost:3000"}, {"Origin": "http://127.0.0.1:8484"}, {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Mode": "no-cors"}, {"Referer": "http://evil.example/"},
])  # fmt: skip
async def test_no_page_sends_a_form(http: httpx.AsyncClient, by: dict[str, str]) -> None:
    """Browsers send forms of any site without asking; the foreign ones are refused by their Origin alone."""
    for path, content in (("/api/chat", ASKED), ("/api/show", b'{"model":"one"}')):
        reply = await http.post(path, content=content, headers={**FORM, **by})
        assert (reply.status_code, reply.json()) == (400, {"error": "Content-Type must be application/json"})
    for kind in ("text/plain", "multipart/form-data; boundary=x"):
        assert (await http.post("/api/chat", content=ASKED, headers={**KEY, "Content-Type": kind})).status_code == 400
    foreign = {**FORM, "Origin": "http://evil.example"}
    assert (await http.post("/api/chat", content=ASKED, headers=foreign)).status_code == 403


# --- ids ---


def test_anthropics_client_knows_the_id_of_its_request(server: ServerProcess) -> None:
    asked: Any = {"model": "scripted", "max_tokens": 3, "messages": SAY}
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        message = client.messages.create(**asked, extra_headers={"x-request-id": "mine-1"})
        assert message._request_id == "mine-1"
        with client.messages.stream(**asked) as stream:
            stream.until_done()
            assert (stream.request_id or "").startswith("req_")
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(**{**asked, "model": "nobody"})
        body: Any = missing.value.body
        assert missing.value.request_id == body["request_id"] and body["request_id"].startswith("req_")


async def test_a_failed_stream_of_messages_tells_the_id(tmp_path: Path) -> None:
    def breaks(request: Any) -> Any:
        yield "Hi"
        yield {"kind": "error", "code": "engine_crashed", "text": "gone"}

    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    async with AsyncEngine(models_dir=tmp_path, engine_factory=fakes.factory(breaks, load=())) as engine:
        app = create_app(engine, ServeConfig(models_dir=tmp_path))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL) as http:
            asked = {"model": "one", "max_tokens": 3, "messages": SAY, "stream": True}
            reply = await http.post("/v1/messages", json=asked)
    last = json.loads(reply.text.strip().split("\n\n")[-1].partition("data: ")[2])
    assert (last["type"], last["request_id"]) == ("error", reply.headers["request-id"])


async def test_openais_client_knows_the_id_of_its_request(http: httpx.AsyncClient) -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="k", http_client=http, max_retries=0) as client:
        answer = await client.chat.completions.create(model="one", messages=SAY)
        assert (answer._request_id or "").startswith("req_")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nobody", messages=SAY)
        assert (missing.value.request_id or "").startswith("req_")


@pytest.mark.parametrize(("header", "told"), [
    (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE), (f"cc-{TRACE}-00f067aa0ba902b7-01-what-comes", TRACE),
    (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""), ("nonsense", ""), ("", ""),
])  # fmt: skip
async def test_a_trace_is_told_in_the_log(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, header: str, told: str
) -> None:
    with caplog.at_level(logging.INFO, "polargrid_local.server.gate"):
        assert (await http.get("/v1/models", headers={**KEY, "traceparent": header})).status_code == 200
    line = [record.getMessage() for record in caplog.records if record.name == "polargrid_local.server.gate"][-1]
    assert line.partition(" trace=")[2] == told


# --- where we speak https ourselves ---


async def of_scheme(app: FastAPI, scheme: str, port: int, headers: dict[str, str]) -> int:
    """The status of a request as it comes over a connection to `port`."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    given = [(name.lower().encode(), value.encode()) for name, value in {**KEY, **headers}.items()]
    await app(
        {"type": "http", "method": "GET", "path": "/v1/models", "raw_path": b"/v1/models", "query_string": b"",
         "headers": given, "scheme": scheme, "server": ("127.0.0.1", port), "client": ("127.0.0.1", 1),
         "http_version": "1.1"},
        receive, send,
    )  # fmt: skip
    return int(sent[0]["status"])


async def test_the_port_that_a_host_leaves_out_is_that_of_the_scheme(app: FastAPI) -> None:
    for scheme, port, status in [("https", 443, 200), ("https", 80, 403), ("http", 80, 200), ("http", 443, 403)]:
        assert await of_scheme(app, scheme, port, {"Host": "localhost"}) == status


async def test_behind_our_own_https_a_page_that_came_by_http_is_foreign(tmp_path: Path) -> None:
    async with AsyncEngine(models_dir=tmp_path, engine_factory=fakes.factory()) as engine:
        app = create_app(engine, ServeConfig(models_dir=tmp_path, allow_hosts="box.example", api_key="k"))
        for scheme, origin, status in [
            ("https", "https://box.example", 200), ("https", "http://box.example", 403),
            ("http", "https://box.example", 200), ("http", "http://box.example", 200),
        ]:  # fmt: skip
            told = await of_scheme(app, scheme, 443, {"Host": "box.example", "Origin": origin})
            assert told == status, (scheme, origin)
