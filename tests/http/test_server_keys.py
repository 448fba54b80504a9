"""API keys: who has which, what each may ask in a minute, and what is told of them: names, never keys."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import fakes
import httpx
import openai
import pydantic
import pytest

from polargrid_local import AsyncEngine
from polargrid_local.errors import RateLimitError, ValidationError
from polargrid_local.server import ServeConfig, create_app
from polargrid_local.server.key_ring import Holder, KeyRing
from polargrid_local.server.keys import ApiKey
from polargrid_local.server.rate import Rate

CHAT = "/v1/chat/completions"
BODY = {"model": "one", "messages": [{"role": "user", "content": "x"}]}
URL = "http://127.0.0.1:8484"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- rates ---


def test_a_rate_comes_back_evenly(clock: Clock) -> None:
    rate = Rate(3, clock)
    assert (rate.left, rate.next_in_s, rate.whole_in_s) == (3, 0, 0)
    for left in (2, 1, 0):
        rate.spend(1)
        assert (rate.left, rate.whole_in_s) == (left, 20 * (3 - left))
    assert rate.next_in_s == 20
    clock.now = 19
    assert (rate.left, rate.next_in_s) == (0, 1)
    clock.now = 20
    assert (rate.left, rate.next_in_s) == (1, 0)
    clock.now = 1000
    assert (rate.left, rate.whole_in_s) == (3, 0)


def test_what_was_spent_beyond_a_rate_is_waited_for(clock: Clock) -> None:
    rate = Rate(60, clock)
    rate.spend(90)
    assert (rate.left, rate.next_in_s, rate.whole_in_s) == (0, 31, 90)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 997, 100_000])
def test_no_minute_has_more_than_its_rate(per_minute: int, clock: Clock) -> None:
    """A burst, and what comes back: of two minutes from any beginning, at most twice as many."""
    holder = Holder("a", ApiKey(key="k", requests_per_minute=per_minute), clock)
    admitted = 0
    for second in range(120):
        clock.now = 1e6 + second
        for _ in range(per_minute // 20 + 2):
            try:
                holder.admit()
            except RateLimitError:
                break
            admitted += 1
    assert per_minute < admitted <= 3 * per_minute


def test_a_ring_knows_whose_key_it_is() -> None:
    ring = KeyRing({"a": ApiKey(key="ka"), "b": ApiKey(key="ké")})
    found = {given: ring.find(given.encode()) for given in ("ka", "ké", "k", "kaa", "")}
    assert {given: holder and holder.name for given, holder in found.items()} == {
        "ka": "a", "ké": "b", "k": None, "kaa": None, "": None,
    }  # fmt: skip
    assert not KeyRing({})


# --- settings ---


def keys_of(settings: dict[str, Any], env: dict[str, str] | None = None) -> dict[str, tuple[Any, ...]]:
    keys = ServeConfig.load(settings, env).keys
    return {name: (key.key, key.requests_per_minute, key.tokens_per_minute) for name, key in keys.items()}


def test_the_forms_of_keys(tmp_path: Path) -> None:
    wanted = {"a": ("ka", None, None), "b": ("k=b", 60, None), "c": ("kc", 60, 1000)}
    said = ["a=ka", "b=k=b@60", "c=kc@60/1000"]
    assert keys_of({"api_keys": said}) == wanted
    assert keys_of({}, {"POLARGRID_LOCAL_API_KEYS": ", ".join(said)}) == wanted
    file = tmp_path / "keys"
    file.write_text("\ufeff# of the box\n\n" + "\r\n".join(said))
    assert keys_of({"api_key_file": file}) == wanted
    toml = tmp_path / "serve.toml"
    toml.write_text(
        '[api_keys]\na = "ka"\nb = "k=b@60"\nc = {key = "kc", requests_per_minute = 60, tokens_per_minute = 1000}'
    )
    assert keys_of({}, {"POLARGRID_LOCAL_CONFIG": str(toml)}) == wanted
    file.write_text("a=ka")
    together = keys_of({"api_key": "k", "api_keys": {"z": {"key": "k@z"}}, "api_key_file": file, "host": "0.0.0.0"})
    assert {name: key[0] for name, key in together.items()} == {"default": "k", "z": "k@z", "a": "ka"}


SECRET = "pg_secret"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_keys": [SECRET]}, "api_keys: key 1 has no name.*NAME=KEY"),
        ({"api_keys": ["a b=" + SECRET]}, "api_keys: key 1 has no name"),
        ({"api_keys": [f"a={SECRET}@sixty"]}, "api_keys: what stands behind the @ of 'a' is no rate"),
        ({"api_keys": [f"a={SECRET}@0"]}, "api_keys.a.requests_per_minute"),
        ({"api_keys": [f"a={SECRET}@1/0"]}, "api_keys.a.tokens_per_minute"),
        ({"api_keys": ["a="]}, "api_keys.a.key"),
        ({"api_keys": {"a": SECRET + " "}}, "api_keys.a.key: .*no spaces around"),
        ({"api_keys": {"a": {"key": SECRET, "rate": 1}}}, "api_keys.a.rate: unknown setting"),
        ({"api_keys": {"a b": SECRET}}, "api_keys: a name is made of"),
        ({"api_keys": {"a": 1}}, "api_keys.a"),
        ({"api_keys": 1}, "api_keys: expected a table"),
        ({"api_key": SECRET + "\n"}, "api_key: .*no line breaks"),
        ({"api_keys": ["a=ka", f"a={SECRET}"]}, "api_keys: the name 'a' stands there twice"),
        ({"api_keys": [f"a={SECRET}", f"b={SECRET}"]}, "api_keys: 'b' has the same key as 'a'"),
        ({"api_keys": [f"a={SECRET}"], "api_key": SECRET}, "api_keys: 'a' has the same key as 'default'"),
        ({"api_keys": [f"default={SECRET}"], "api_key": "k"}, "api_keys: the name 'default' has a key already"),
    ],
)
def test_wrong_keys_are_refused_without_being_shown(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as refused:
        ServeConfig.load(settings)
    with pytest.raises(pydantic.ValidationError) as in_program:
        ServeConfig(**settings)
    assert SECRET not in f"{refused.value!r} {in_program.value!r}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "no key in it"),
        ("# nothing\n\n", "no key in it"),
        (f"a=ka\n{SECRET}", "key 2 has no name"),
        (f"a={SECRET}@0", "requests_per_minute"),
        (f"a={SECRET}\nb={SECRET}", "'b' has the same key as 'a'"),
        ("a=\udcff", "not UTF-8"),
    ],
)
def test_wrong_key_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValidationError, match=f"api_key_file: .*{message}") as refused:
        ServeConfig.load({"api_key_file": file})
    assert SECRET not in repr(refused.value)


def test_keys_are_not_shown() -> None:
    config = ServeConfig(api_key=SECRET, api_keys=[f"a={SECRET}2"], ssl_certfile="c", ssl_keyfile_password=SECRET)
    assert SECRET not in f"{config!r} {config.keys!r} {config}"


# --- at the door ---


@pytest.fixture
async def serve(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    """serve(**settings): a client of an application over a scripted engine, whose rates go by `clock`."""
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("polargrid_local.server.app.KeyRing", lambda keys: KeyRing(keys, clock))
    clients: list[httpx.AsyncClient] = []
    async with AsyncEngine(models_dir=tmp_path, engine_factory=fakes.factory(load=())) as engine:

        def begin(**settings: Any) -> httpx.AsyncClient:
            # Beyond loopback no documentation is made, which would take longer than all tests here.
            app = create_app(engine, ServeConfig(models_dir=tmp_path, host="0.0.0.0", **settings))
            clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL))
            return clients[-1]

        yield begin
        for client in clients:
            await client.aclose()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_each_key_is_let_in_and_told_by_its_name(
    serve: Callable[..., httpx.AsyncClient], caplog: pytest.LogCaptureFixture
) -> None:
    http = serve(api_key="pg_first", api_keys=["ann=pg_ann", "bob=pg_bob@9"])
    with caplog.at_level(logging.INFO):
        for given in (bearer("pg_first"), bearer("pg_ann"), bearer("pg_ann"), {"x-api-key": "pg_bob"}):
            reply = await http.post(CHAT, json=BODY, headers=given)
            assert reply.status_code == 200, reply.text
            assert ("x-ratelimit-limit-requests" in reply.headers) == ("x-api-key" in given)
        for given in ({}, bearer("pg_an"), bearer("pg_ann,pg_bob"), bearer("ann")):
            assert (await http.post(CHAT, json=BODY, headers=given)).status_code == 401
    told = (await http.get("/metrics", headers=bearer("pg_first"))).text
    counted = {
        line.rsplit(" ", 1)[0].partition("{")[2]: float(line.rsplit(" ", 1)[1])
        for line in told.splitlines()
        if line.startswith("polargrid_key_requests_total{")
    }
    assert counted == {
        'key="default",status="200"}': 1, 'key="ann",status="200"}': 2, 'key="bob",status="200"}': 1,
    }  # fmt: skip
    lines = [record.getMessage() for record in caplog.records if record.name == "polargrid_local.server.gate"]
    assert [line.partition(" key=")[2] for line in lines] == ["default", "ann", "ann", "bob", "", "", "", ""]
    assert "pg_" not in caplog.text + told


async def test_over_the_rate_of_requests(serve: Callable[..., httpx.AsyncClient], clock: Clock) -> None:
    http = serve(api_keys=["ann=ka@2", "bob=kb"])
    for left in (1, 0):
        reply = await http.get("/v1/models", headers=bearer("ka"))
        assert reply.status_code == 200
        assert reply.headers["x-ratelimit-limit-requests"] == "2"
        assert reply.headers["x-ratelimit-remaining-requests"] == str(left)
        assert reply.headers["x-ratelimit-reset-requests"] == f"{30 * (2 - left)}s"
    clock.now = 10.5
    for _ in range(2):  # one that is refused costs nothing
        refused = await http.post(CHAT, json=BODY, headers={**bearer("ka"), "Origin": "http://localhost:1"})
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert "'ann'" in error["message"] and "20 s" in error["message"]
        assert (refused.headers["retry-after"], refused.headers["x-ratelimit-remaining-requests"]) == ("20", "0")
        exposed = refused.headers["access-control-expose-headers"]
        assert "x-ratelimit-remaining-requests" in exposed and "retry-after" in exposed
    assert (await http.get("/health")).status_code != 429  # needs no key, and counts for none
    assert (await http.get("/ping")).status_code not in (401, 429)
    assert (await http.get("/v1/models", headers=bearer("kb"))).status_code == 200
    clock.now = 30
    assert (await http.get("/v1/models", headers=bearer("ka"))).status_code == 200
    assert (await http.get("/v1/models", headers=bearer("ka"))).status_code == 429


@pytest.mark.parametrize("stream", [False, True])
async def test_over_the_rate_of_tokens(serve: Callable[..., httpx.AsyncClient], clock: Clock, stream: bool) -> None:
    """Known when an answer has ended: what it had too much of, the next one waits for."""
    http = serve(api_keys=["ann=ka@100/10"])
    asked = {**BODY, "stream": stream, "max_tokens": 3}
    first = await http.post(CHAT, json=asked, headers=bearer("ka"))
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "10"
    second = await http.get("/v1/models", headers=bearer("ka"))
    if stream:
        asked["stream_options"] = {"include_usage": True}
    left = int(second.headers["x-ratelimit-remaining-tokens"])
    assert left < 10
    for _ in range(10):
        reply = await http.post(CHAT, json=asked, headers=bearer("ka"))
        if reply.status_code == 429:
            break
    assert reply.status_code == 429 and "tokens" in reply.json()["error"]["message"]
    clock.now += int(reply.headers["retry-after"])
    assert (await http.post(CHAT, json=asked, headers=bearer("ka"))).status_code == 200


async def test_openais_client_reads_the_refusal(serve: Callable[..., httpx.AsyncClient]) -> None:
    http = serve(api_keys=["ann=ka@1"])
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="ka", http_client=http, max_retries=0) as client:
        assert [model.id async for model in client.models.list()]
        with pytest.raises(openai.RateLimitError) as refused:
            await client.models.list()
    assert (refused.value.code, refused.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "60")
