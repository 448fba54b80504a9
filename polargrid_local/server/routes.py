"""The routes: each endpoint of the service over HTTP, a request in, JSON or an event stream out."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response

from polargrid_local.dialects.exchange import Exchange, Moment
from polargrid_local.dialects.message_models import PAGE_PARAMETERS
from polargrid_local.errors import PolarGridError, TimeoutError
from polargrid_local.server.body import read_json
from polargrid_local.server.caller import caller_of
from polargrid_local.server.config import ServeConfig
from polargrid_local.server.metrics import Metrics
from polargrid_local.server.openapi import describe
from polargrid_local.server.replies import (
    DROPPED,
    FINGERPRINT,
    IGNORED,
    JsonReply,
    error_reply,
    list_header,
    not_supported,
)
from polargrid_local.server.requests import check_ignored, read_request
from polargrid_local.server.sse import EventStream, while_connected
from polargrid_local.server.telemetry import RequestSpan
from polargrid_local.service.endpoints import ENDPOINTS, Endpoint, meant_by
from polargrid_local.service.given import Given
from polargrid_local.service.service import Service

log = logging.getLogger(__name__)

ANTHROPIC = "anthropic-version"  # the header that every client of that API sends
# In which states an endpoint about health answers 503: readiness and liveness, as Kubernetes asks for them.
NOT_OK = {"/health": ("degraded", "unhealthy"), "/livez": ("unhealthy",)}


class _ModelName(Convertor[str]):
    """The rest of the path. Starlette's own `path` ends at a line break, which the names of files may have."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("model_name", _ModelName())


def api(
    service: Service, config: ServeConfig, metrics: Metrics, ends: set[asyncio.Future[PolarGridError]]
) -> APIRouter:
    """`ends`: one future per answer being waited for; set to an error, it ends that request."""
    router = APIRouter()

    async def body(request: Request, endpoint: Endpoint) -> dict[str, Any]:
        return await read_json(request.scope, request.receive, config, endpoint.exchange.form_bodies)

    async def bounded(request: Request, work: Awaitable[Any]) -> Any:
        """`work`, cancelled when the client leaves, the time is up or the server ends."""
        stop = asyncio.get_running_loop().create_future()
        ends.add(stop)
        try:
            return await while_connected(request.receive, asyncio.wait_for(work, config.request_timeout_s), stop)
        except asyncio.TimeoutError:
            raise TimeoutError(f"the request took longer than {config.request_timeout_s:g} s") from None
        finally:
            ends.discard(stop)

    async def generate(request: Request, endpoint: Endpoint) -> Response:
        assert endpoint.kind is not None
        span = RequestSpan(endpoint.kind, caller_of(request.scope).request_id, request.headers)
        try:
            given = await body(request, endpoint)
            if endpoint.takes_any:
                endpoint = meant_by(given)
            assert endpoint.kind is not None
            moment = Moment(secrets.token_hex(12), time.time(), service.kept)
            return await answered(request, endpoint, endpoint.exchange(given, moment, endpoint.kind), span)
        except BaseException as error:
            span.failed(error)
            span.end()
            raise

    async def answered(request: Request, endpoint: Endpoint, exchange: Exchange, span: RequestSpan) -> Response:
        """The reply, or a stream that goes on; either ends the span."""
        caller = caller_of(request.scope)
        asked = read_request(exchange, config)
        span.asked(exchange.kind, asked)
        if exchange.ignored:
            log.info("%s: nothing was made of %s", endpoint.path, ", ".join(exchange.ignored)[:1000])
        began = time.monotonic()
        lease = await bounded(request, service.lease(asked.model))
        lease.keep_alive_s = exchange.keep_alive_s
        exchange.load_ms = (time.monotonic() - began) * 1e3
        tokens, streaming = 0, False
        try:
            if exchange.streaming:
                chunks = service.stream(exchange.kind, asked, lease)
                await bounded(request, chunks.start())
                streaming = True

                def end() -> None:
                    usage = chunks.usage
                    lease.release(usage["total_tokens"])
                    caller.spend_tokens(usage["total_tokens"])
                    span.used(usage)
                    span.end()

                return EventStream(exchange, chunks, lease.started, config, metrics, span, caller.request_id, end)
            answer = await bounded(request, service.answer(exchange.kind, asked, lease))
            exchange.total_ms = (time.monotonic() - began) * 1e3
            tokens = answer["usage"]["total_tokens"]
            span.said(answer)
            span.used(answer["usage"])
            metadata = answer.get("pg_metadata", {})
            headers = list_header(IGNORED, exchange.all_ignored(metadata.get("ignored_fields", ())))
            headers |= list_header(DROPPED, metadata.get("dropped_keywords", ()))
            if fingerprint := metadata.get("system_fingerprint"):
                headers[FINGERPRINT] = fingerprint
            reply = JsonReply(exchange.reply(answer), headers=headers)
            span.end()
            return reply
        finally:
            if not streaming:
                lease.release(tokens)
                caller.spend_tokens(tokens)

    async def answer(request: Request, endpoint: Endpoint) -> Response:
        assert endpoint.answer is not None
        fields = await body(request, endpoint) if endpoint.method == "POST" else dict(request.query_params)
        given = Given({**fields, **request.path_params})
        given.ignored = endpoint.unread(fields)
        anthropic = endpoint.to_anthropic if ANTHROPIC in request.headers else None
        if anthropic is not None:  # pages of lists are of this API alone
            given.ignored = [name for name in given.ignored if name not in PAGE_PARAMETERS]
        check_ignored(given.ignored, config)  # before anything is done
        reply = await endpoint.answer(service, given)
        ignored = list(dict.fromkeys(given.ignored))
        check_ignored(ignored, config)  # what only its reader knew of
        not_ok = reply["status"] in NOT_OK[endpoint.path] if endpoint.path in NOT_OK else False
        if anthropic is not None:
            reply = anthropic(reply, given)
        return JsonReply(reply, status_code=503 if not_ok else 200, headers=list_header(IGNORED, ignored))

    async def prometheus(request: Request, endpoint: Endpoint) -> Response:
        started = {"Process-Start-Time-Unix": str(metrics.started)}  # which llama-server's readers look for
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8", headers=started)

    def add(endpoint: Endpoint, handle: Callable[[Request, Endpoint], Awaitable[Response]]) -> None:
        async def route(request: Request) -> Response:
            try:
                return await handle(request, endpoint)
            except PolarGridError as error:
                caller = caller_of(request.scope)
                return error_reply(error, caller.exchange.error, caller.request_id)

        path = endpoint.path.replace("{model_id}", "{model_id:model_name}")
        router.add_api_route(path, route, methods=[endpoint.method], **describe(endpoint))
        if endpoint.other_path is not None:
            router.add_api_route(endpoint.other_path, route, methods=[endpoint.method], include_in_schema=False)

    for endpoint in ENDPOINTS:
        add(endpoint, generate if endpoint.kind else answer if endpoint.answer else prometheus)

    @router.api_route("/v1/audio/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
    async def audio(request: Request) -> Response:
        raise not_supported("audio")

    return router
