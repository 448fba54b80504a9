"""The door: who is let in, with what kind of request, and how fast they must be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from serving import REPOSITORY, ServerProcess, raw_post
from uvicorn.server import ServerState

from polargrid_local.errors import ValidationError
from polargrid_local.server import ServeConfig, create_app
from polargrid_local.server.process import protocol

CHAT = "/v1/chat/completions"
BODY = {"model": "random", "messages": [{"role": "user", "content": "the"}], "max_tokens": 2}


def exchange(port: int, data: bytes, seconds: float = 120) -> bytes:
    """All that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


# --- Host ---


@pytest.mark.parametrize("host", ["localhost:{}", "127.0.0.1:{}", "[::1]:{}", "127.9.9.9:{}", "LOCALHOST:{}"])
def test_loopback_hosts_are_served(server: ServerProcess, host: str) -> None:
    assert server.get("/health", headers={"Host": host.format(server.port)}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{}",
        "localhost",
        "localhost:1",
        "localhost.evil.example:{}",
        "127.0.0.1.evil.example:{}",
        "192.168.1.2:{}",
        "localhost:{}@evil.example",
        "[::2]:{}",
        "",
    ],
)
def test_foreign_hosts_are_refused(server: ServerProcess, host: str) -> None:
    reply = server.post(CHAT, BODY, headers={"Host": host.format(server.port)})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden_origin")
    assert reply.headers["connection"] == "close"


def test_a_refusal_does_not_wait_for_the_body(server: ServerProcess) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 1000000\r\n\r\n"
    assert exchange(server.port, head.encode()).startswith(b"HTTP/1.1 403")


def test_two_host_headers_are_refused(server: ServerProcess) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nHost: localhost:{server.port}\r\nHost: evil.example\r\n\r\n"
    assert exchange(server.port, head.encode())[9:12] in (b"400", b"403")


@pytest.mark.parametrize(("address", "status"), [
    ("http://localhost:{}/health", b"200"), ("HTTP://127.0.0.1:{}/v1//models", b"200"), ("http://localhost:{}", b"200"),
    ("http://evil.example/v1/models", b"403"), ("http://localhost:{}@evil.example/v1/models", b"403"),
])  # fmt: skip
def test_an_absolute_address_is_served_and_its_host_counts(server: ServerProcess, address: str, status: bytes) -> None:
    head = f"GET {address} HTTP/1.1\r\nHost: localhost:{{}}\r\nConnection: close\r\n\r\n".format(*[server.port] * 2)
    assert exchange(server.port, head.encode())[9:12] == status


@pytest.mark.parametrize(
    "data", [b"GET /v1/models HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
             "GET /v1/models/\u043c HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()],
    ids=["no Host", "TLS", "beyond ASCII"],
)  # fmt: skip
def test_what_is_no_request_is_told_why_in_json(server: ServerProcess, data: bytes) -> None:
    head, _, body = exchange(server.port, data).partition(b"\r\n\r\n")
    assert (
        head.startswith(b"HTTP/1.1 400")
        and b"application/json" in head
        and f"content-length: {len(body)}".encode() in head
    )
    error = json.loads(body)["error"]
    assert error["code"] == "invalid_http"
    assert "https" in error["message"] and "Host" in error["message"] and "percent-encoded" in error["message"]


def test_both_loopback_addresses_answer(server: ServerProcess) -> None:
    for url in (f"http://127.0.0.1:{server.port}", f"http://[::1]:{server.port}"):
        assert httpx.get(url + "/health", trust_env=False).status_code == 200


# --- Origin ---


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:5173", "https://localhost", "http://[::1]:8080"]
)
def test_pages_on_loopback_may_call(server: ServerProcess, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type,x-request-id,x-stainless-os"}  # fmt: skip
    preflight = server.request("OPTIONS", CHAT, headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in preflight.headers
    for reply in (
        server.post(CHAT, BODY, headers={"Origin": origin}),
        server.post(CHAT, {}, headers={"Origin": origin}),
        server.get("/nope", headers={"Origin": origin}),
    ):
        assert reply.headers["access-control-allow-origin"] == origin
        assert "origin" in reply.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost.evil.example",
        "file://",
        "http://127.0.0.1.nip.io",
        "http://[",
        "*",
    ],
)
def test_foreign_pages_are_refused(server: ServerProcess, origin: str) -> None:
    for method, path in (("POST", CHAT), ("POST", "/v1/models/unload-all"), ("GET", "/v1/models"), ("OPTIONS", CHAT)):
        reply = server.request(method, path, json=BODY if method == "POST" else None,
                               headers={"Origin": origin, "Access-Control-Request-Method": "POST"})  # fmt: skip
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden_origin")
        assert "access-control-allow-origin" not in reply.headers


# --- key, names and origins by configuration ---


def test_key_hosts_and_origins_by_configuration(start: Callable[..., ServerProcess]) -> None:
    server = start(
        api_key="pg_secret", allow_hosts="box.example", allow_origins="https://app.example,null"
    ).wait_ready()
    right = {"Authorization": "Bearer pg_secret"}
    for wrong in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer pg_secreT"},
        {"Authorization": "pg_secret"},
        {"Authorization": "Basic pg_secret"},
        {"Authorization": "Bearer pg_secret2"},
    ):
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nope"):
            reply = server.get(path, headers=wrong)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert server.post(CHAT, BODY, headers=wrong).status_code == 401
    assert server.get("/health").status_code == 200
    assert server.post(CHAT, BODY, headers=right).status_code == 200
    assert server.get("/v1/models", headers={**right, "Host": "box.example"}).status_code == 200
    assert server.get("/v1/models", headers={**right, "Host": "box2.example"}).status_code == 403
    for origin in ("https://app.example", "null"):
        assert (
            server.get("/v1/models", headers={**right, "Origin": origin}).headers["access-control-allow-origin"]
            == origin
        )
    assert server.get("/v1/models", headers={**right, "Origin": "https://app2.example"}).status_code == 403
    preflight = {"Origin": "null", "Access-Control-Request-Method": "POST"}
    assert server.request("OPTIONS", CHAT, headers=preflight).status_code == 204  # a preflight carries no key
    assert "pg_secret" not in server.log


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7", "box.example"])
def test_no_open_door_without_a_key(host: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "polargrid_local", "serve", "--host", host, "--model", "random"],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode != 0
    assert "api_key" in run.stderr
    with pytest.raises(ValidationError, match="api_key"):
        ServeConfig.load({"host": host})
    assert ServeConfig.load({"host": host, "api_key": "k"}).host == host
    assert ServeConfig.load({"host": host, "no_api_key": True}).host == host


# --- bodies ---


def nested(depth: int) -> bytes:
    return b'{"messages":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


BAD_BODIES = {
    "not JSON": b"{",
    "no object": b"[1]",
    "a string": b'"x"',
    "null": b"null",
    "not UTF-8": b'{"model":"\xff"}',
    "NaN": b'{"temperature":NaN}',
    "infinity": b'{"temperature":1e999}',
    "an endless number": b'{"max_tokens":' + b"9" * 5000 + b"}",
    "a lone surrogate": b'{"model":"random","prompt":"\\ud800","messages":[{"role":"user","content":"\\ud800"}]}',
    "65 levels": nested(65),
    "a hundred thousand levels": nested(100_000),
    "too large": b'{"model":"' + b"x" * (4 << 20) + b'"}',
    "ten times too large": b'{"model":"' + b"x" * (40 << 20) + b'"}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("path", [CHAT, "/v1/models/load"])
def test_bad_bodies(server: ServerProcess, name: str, path: str) -> None:
    try:
        reply = server.request("POST", path, content=BAD_BODIES[name], headers={"Content-Type": "application/json"})
    except httpx.WriteError:
        assert name == "ten times too large"  # refused by its Content-Length, long before it was all sent
        return
    assert reply.status_code == 400, reply.text
    assert isinstance(reply.json()["detail"], str)
    assert len(reply.content) < 1000


def test_a_body_without_a_length_is_counted(server: ServerProcess) -> None:
    reply = server.request(
        "POST", CHAT, content=(b" " * 65536 for _ in range(80)), headers={"Content-Type": "application/json"}
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "body_too_large")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_only_json_is_read(server: ServerProcess, kind: str) -> None:
    reply = server.request("POST", CHAT, content=json.dumps(BODY), headers={"Content-Type": kind})
    assert (reply.status_code, reply.json()["detail"]) == (400, "Content-Type must be application/json")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip"])
def test_compressed_bodies_are_refused_by_name(server: ServerProcess, coding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    reply = server.request("POST", CHAT, content=json.dumps(BODY), headers=headers)
    assert reply.status_code == 400 and f"Content-Encoding '{coding}'" in reply.json()["detail"]
    assert server.request(
        "POST", CHAT, content=json.dumps(BODY), headers={**headers, "Content-Encoding": "identity"}
    ).is_success


def test_depth_and_size_within_the_limits_pass(server: ServerProcess) -> None:
    deep: Any = "x"
    for _ in range(62):
        deep = [deep]
    body = {**BODY, "unknown": deep, "more": "x" * (3 << 20)}
    assert server.post(CHAT, body).status_code == 200


# --- connections ---


@pytest.mark.parametrize("offer", [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"  # as Java's client sends it
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Connection: upgrade\r\nUpgrade: TLS/1.0",
])  # fmt: skip
def test_an_offer_to_upgrade_is_passed_over(server: ServerProcess, offer: str) -> None:
    """Whatever else is installed: uvicorn prefers httptools, which answers the first of these with 400."""
    import httptools  # noqa: F401  # shows that the server's process could import it too

    body = json.dumps(BODY).encode()
    request = raw_post(server, CHAT, body, offer)
    again = f"GET /v1/models HTTP/1.1\r\nHost: localhost:{server.port}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as reader:
            status, _, _ = one_reply(reader)
            assert status == 200
            connection.sendall(again.encode())  # and the connection goes on
            status, _headers, answer = one_reply(reader)
            assert (status, json.loads(answer)["object"]) == (200, "list")
            assert reader.read() == b""
    assert "pgrade" not in server.log


def one_reply(reader: Any) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a reply with a Content-Length."""
    status = int(reader.readline().split()[1])
    headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(reader.readline, b"\r\n"))
    return status, headers, reader.read(int(headers["content-length"]))


async def test_idle_connections_are_kept_as_long_as_pools_expect() -> None:
    assert ServeConfig().idle_connection_s == 75
    config = uvicorn.Config(create_app(Mock(), ServeConfig()), lifespan="off")
    make: Any = protocol(ServeConfig(idle_connection_s=123.5))
    connection = make(config, ServerState(), {})
    connection.connection_made(Mock(get_extra_info=Mock(return_value=None)))
    assert connection.timeout_keep_alive == 123.5  # after an answer
    assert (
        connection.timeout_keep_alive_task.when() - asyncio.get_running_loop().time() > 100
    )  # before the first request
    connection.timeout_keep_alive_task.cancel()


def test_idle_connections_are_closed_in_order(start: Callable[..., ServerProcess]) -> None:
    server = start(idle_connection_s=0.3, header_timeout_s=60).wait_ready()
    assert exchange(server.port, b"") == b""
    reply = exchange(server.port, f"GET /v1/models HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 200")


def test_an_idle_connection_is_not_a_slow_one(start: Callable[..., ServerProcess]) -> None:
    """Browsers open connections ahead of their requests; answered ones wait in pools."""
    server = start(header_timeout_s=0.1).wait_ready()
    request = f"GET /v1/models HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection,
        connection.makefile("rb") as reader,
    ):
        for _ in range(2):
            assert exchange(server.port, b"GET ") == b""  # as long as it takes to lose a slow one that came later
            connection.sendall(request)
            assert one_reply(reader)[0] == 200


# --- slow clients, before the answer ---


def test_slow_heads_and_bodies_are_cut_off(start: Callable[..., ServerProcess]) -> None:
    server = start(header_timeout_s=1, body_timeout_s=1).wait_ready()
    assert exchange(server.port, b"GET /health HTTP/1.1\r\nHost: localhost") == b""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
    reply = exchange(server.port, head.encode() + b'Content-Length: 100\r\n\r\n{"mod')
    assert reply.startswith(b"HTTP/1.1 400")
    assert b"body_timeout" in reply
    with socket.create_connection(
        ("127.0.0.1", server.port), timeout=120
    ) as connection:  # a byte now and then does not help
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"x: y\r\n")
                time.sleep(0.1)
    assert server.get("/health").status_code == 200
