"""One span for each request for text or vectors, where the user's program has set up OpenTelemetry."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import fakes
import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import polargrid_local
from polargrid_local import AsyncEngine
from polargrid_local.server import ServeConfig, create_app, telemetry

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHAT = {"model": "one", "messages": [{"role": "user", "content": "my secret"}], "max_tokens": 3, "temperature": 0.5}
URL = "http://127.0.0.1:8484"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What an SDK that is set up has been given; set up for this test alone."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    """serve(script): a client of an application over an engine that answers so."""
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    open_ones: list[Any] = []

    def begin(script: Any = fakes.words, **settings: Any) -> httpx.AsyncClient:
        engine = AsyncEngine(models_dir=tmp_path, engine_factory=fakes.factory(script, load=()))
        # Beyond loopback no documentation is made, which would take longer than all tests here.
        config = ServeConfig(models_dir=tmp_path, host="0.0.0.0", no_api_key=True, **settings)
        app = create_app(engine, config)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=URL)
        open_ones.extend([(http.aclose), (engine.close)])
        return http

    yield begin
    for close in open_ones:
        await close()


def only(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, dict[str, Any]]:
    (span,) = exporter.get_finished_spans()
    exporter.clear()
    return span, dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_a_span_below_the_clients_own(
    exporter: InMemorySpanExporter, serve: Callable[..., httpx.AsyncClient], stream: bool
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    reply = await serve().post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers)
    assert reply.status_code == 200
    span, told = only(exporter)
    assert (span.name, span.kind, span.status.status_code) == ("chat one", SpanKind.SERVER, StatusCode.UNSET)
    assert span.context is not None and span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert told.pop("gen_ai.response.id").startswith("chatcmpl-")
    assert told.pop("gen_ai.usage.input_tokens") > 0
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "polargrid_local",
        "gen_ai.system": "polargrid_local",
        "gen_ai.request.model": "one",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "one",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.output_tokens": 3,
        "polargrid.request_id": "mine",
    }


@pytest.mark.parametrize(("path", "body", "operation"), [
    ("/v1/completions", {"model": "one", "prompt": "x"}, "text_completion"),
    ("/v1/messages", {"model": "one", "max_tokens": 9, "messages": CHAT["messages"]}, "chat"),
    ("/api/generate", {"model": "one", "prompt": "x", "raw": True}, "text_completion"),
    ("/v1/embeddings", {"model": "one", "input": "x"}, "embeddings"),
])  # fmt: skip
async def test_other_requests_are_spans_by_their_operation(
    exporter: InMemorySpanExporter, serve: Callable[..., httpx.AsyncClient], path: str, body: Any, operation: str
) -> None:
    assert (await serve().post(path, json=body)).status_code == 200
    span, told = only(exporter)
    assert (span.name, told["gen_ai.operation.name"]) == (f"{operation} one", operation)
    assert span.parent is None and told["gen_ai.usage.input_tokens"] > 0
    assert "gen_ai.request.max_tokens" not in told or told["gen_ai.request.max_tokens"] == 9
    assert ("gen_ai.usage.output_tokens" in told) == (operation != "embeddings")


async def test_what_asks_for_no_text_is_no_span(
    exporter: InMemorySpanExporter, serve: Callable[..., httpx.AsyncClient]
) -> None:
    http = serve(api_key="k")
    for path in ("/health", "/v1/models", "/metrics"):
        await http.get(path, headers={"Authorization": "Bearer k"})
    await http.post("/v1/chat/completions", json=CHAT)  # is not let in
    assert exporter.get_finished_spans() == ()


def breaks(request: Any) -> Iterator[Any]:
    yield "Hi"
    yield {"kind": "error", "code": "engine_crashed", "text": "of my secret"}


@pytest.mark.parametrize(("script", "body", "code"), [
    (fakes.words, {**CHAT, "model": "nobody"}, "model_not_loaded"),
    (fakes.words, {**CHAT, "temperature": "my secret"}, "invalid_request"),
    (breaks, CHAT, "engine_crashed"),
    (breaks, {**CHAT, "stream": True}, "engine_crashed"),
])  # fmt: skip
async def test_a_failure_is_told_by_its_code_and_no_prompt_by_anything(
    exporter: InMemorySpanExporter, serve: Callable[..., httpx.AsyncClient], script: Any, body: Any, code: str
) -> None:
    await serve(script).post("/v1/chat/completions", json=body)
    span, told = only(exporter)
    assert (told["error.type"], span.status.status_code) == (code, StatusCode.ERROR)
    assert "secret" not in span.to_json()


async def test_a_span_that_runs_already_is_the_parent(
    exporter: InMemorySpanExporter, serve: Callable[..., httpx.AsyncClient]
) -> None:
    """As with other instrumentation around the application, which has read the client's header too."""
    http = serve()
    with trace.get_tracer("outside").start_as_current_span("POST") as outside:
        await http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    ours, _ = exporter.get_finished_spans()
    assert ours.parent == outside.get_span_context() and ours.kind == SpanKind.INTERNAL


async def test_without_an_sdk_nothing_is_told(serve: Callable[..., httpx.AsyncClient]) -> None:
    span = telemetry.RequestSpan("chat", "id", {})
    assert span._span is None
    assert (await serve().post("/v1/chat/completions", json=CHAT)).status_code == 200


def test_nothing_is_missed_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # an import of it fails
    spec = importlib.util.spec_from_file_location("telemetry_alone", telemetry.__file__)
    assert spec is not None and spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    span = alone.RequestSpan("chat", "id", {})
    span.asked("chat", None)
    span.said({})
    span.used({})
    span.failed(ValueError())
    span.end()


def test_nothing_but_the_server_knows_of_it() -> None:
    package = Path(polargrid_local.__file__).parent
    knowing = [
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if "opentelemetry" in path.read_text()
    ]
    assert knowing == ["server/telemetry.py"]
