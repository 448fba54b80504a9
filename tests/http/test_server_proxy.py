"""Behind a reverse proxy: public names, https pages, sub-paths, and streams that come through as they are made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from proxying import proxy
from serving import SAID, ServerProcess

CHAT = "/v1/chat/completions"
SAY = {"model": "scripted", "messages": [{"role": "user", "content": "\ue001"}], "max_tokens": 50}
PUBLIC = "chat.example"


def client(url: str, name: str = PUBLIC, origin: str | None = f"https://{PUBLIC}") -> httpx.Client:
    """A browser's requests from a page of `origin`, to a proxy known as `name`."""
    headers = {"Host": name} | ({"Origin": origin} if origin else {})
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def check(http: httpx.Client) -> None:
    """The page, its parts, a plain call and a stream."""
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for source in re.findall(r'(?:src|href)="([^":]+)"', page.text):
        assert http.get("/" + source.removeprefix("./").removeprefix("/")).status_code == 200
    assert {row["id"] for row in http.get("/v1/models").json()["data"]} >= {"scripted"}
    assert http.head("/v1/models").status_code == 200
    assert http.post(CHAT, json=SAY).json()["choices"][0]["message"]["content"] == "".join(SAID)
    with http.stream("POST", CHAT, json={**SAY, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-1]) == "".join(
        SAID
    )


@pytest.fixture(scope="module")
def named(tiny_dir, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(
        tiny_dir,
        tmp_path_factory.mktemp("named") / "log",
        model="random,scripted",
        allow_hosts=f"{PUBLIC},Other.example:8443",
        n_threads=1,
        n_ctx=512,
    )
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.mark.parametrize(
    "host",
    [None, "127.0.0.1:{}", "localhost:{}"],
    ids=["Host as sent (Caddy, Traefik)", "nginx without a line", "nginx by name"],
)
def test_a_public_name_is_served(named: ServerProcess, host: str | None) -> None:
    with proxy(named.port, host=host and host.format(named.port)) as url, client(url) as http:
        check(http)


def test_a_public_name_with_a_port_is_served(named: ServerProcess) -> None:
    with proxy(named.port, host=None) as url:
        with client(url, "other.example:8443", "https://other.example:8443") as http:
            check(http)
        with client(url, f"{PUBLIC}:443") as http:  # browsers leave the scheme's own port out of an Origin
            check(http)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        f"https://{PUBLIC}.evil.example",
        f"https://{PUBLIC}:8443",
        "https://other.example",
        "null",
    ],
)
@pytest.mark.parametrize("host", [None, "127.0.0.1:{}"])
def test_other_pages_are_refused(named: ServerProcess, host: str | None, origin: str) -> None:
    with proxy(named.port, host=host and host.format(named.port)) as url, client(url, origin=origin) as http:
        for reply in (http.post(CHAT, json=SAY), http.get("/v1/models"), http.post("/v1/models/unload-all")):
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden_origin")


def test_forwarded_headers_open_nothing(named: ServerProcess) -> None:
    """Any page could send them."""
    forwarded = {"X-Forwarded-Host": PUBLIC, "X-Forwarded-Proto": "https", "Forwarded": f"host={PUBLIC};proto=https"}
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Host": "evil.example", "Origin": "https://evil.example"},
    ):
        assert named.post(CHAT, SAY, headers={**forwarded, **headers}).status_code == 403


def test_an_unknown_public_name_is_refused_with_what_to_do(named: ServerProcess) -> None:
    with proxy(named.port, host=None) as url, client(url, "new.example", None) as http:
        reply = http.get("/v1/models")
    assert reply.status_code == 403
    assert "allow_hosts" in reply.json()["detail"]


def test_a_sub_path_that_the_proxy_takes_off(named: ServerProcess) -> None:
    with proxy(named.port, host=None, prefix="/llm") as url, client(url) as http:
        check(http)
        docs = http.get("/docs")
        assert re.findall(r'href="([^"]+)"', docs.text) == ["openapi.json"]


@pytest.mark.parametrize("setting", ["/llm", "llm/"])
def test_a_sub_path_that_the_proxy_leaves_on(start: Callable[..., ServerProcess], setting: str) -> None:
    server = start(
        model="scripted", allow_hosts=PUBLIC, root_path=setting
    ).wait_ready()  # by /health, which needs no prefix
    with proxy(server.port, host=None, prefix="/llm", strip=False) as url, client(url) as http:
        check(http)
        assert http.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]
        assert http.get("/v1/v1/models").status_code == http.get(f"{url}//v1/models/").status_code == 200
    moved = server.get("/llm")
    assert (moved.status_code, moved.headers["location"]) == (308, "/llm/")
    assert server.get("/llmx/v1/models").status_code == 404


def test_a_sub_path_keeps_its_locks(start: Callable[..., ServerProcess]) -> None:
    server = start(api_key="k", root_path="/a/b").wait_ready()
    assert server.get("/a/b/v1/models").status_code == 401
    assert server.get("/a/b/v1/models", headers={"Authorization": "Bearer k"}).status_code == 200
    assert server.get("/a/b/health").status_code == server.get("/a/b/").status_code == 200
    assert (
        server.get("/a/b/v1/models", headers={"Authorization": "Bearer k", "Host": "evil.example"}).status_code == 403
    )


def test_a_stream_comes_through_as_it_is_made_and_ends_with_its_reader(start: Callable[..., ServerProcess]) -> None:
    server = start(n_ctx=16384, allow_hosts=PUBLIC).wait_ready()
    body = {"model": "random", "messages": [{"role": "user", "content": "the"}], "ignore_eos": True, "stream": True}
    with proxy(server.port, host=None) as url, client(url) as http:
        with http.stream("POST", CHAT, json=body) as reply:
            assert reply.headers["x-accel-buffering"] == "no"
            lines = reply.iter_lines()
            assert any('"content":' in line for line in lines)
            assert server.metric("polargrid_running_requests") == 1
        server.wait_for(lambda: server.metric("polargrid_running_requests") == 0)
    assert server.metric("polargrid_cancelled_requests_total") == 1
