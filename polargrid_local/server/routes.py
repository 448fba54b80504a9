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

from polargrid_local.dialects.exchange import Moment
from polargrid_local.errors import PolarGridError, TimeoutError
from polargrid_local.server.body import read_json
from polargrid_local.server.config import ServeConfig
from polargrid_local.server.metrics import Metrics
from polargrid_local.server.openapi import describe
from polargrid_local.server.replies import DROPPED, IGNORED, JsonReply, error_reply, list_header, not_supported
from polargrid_local.server.requests import read_request
from polargrid_local.server.sse import EventStream, while_connected
from polargrid_local.service.endpoints import ENDPOINTS, Endpoint
from polargrid_local.service.service import Service

log = logging.getLogger(__name__)

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

    async def body(request: Request) -> dict[str, Any]:
        return await read_json(request.scope, request.receive, config)

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
        moment = Moment(secrets.token_hex(12), time.time(), service.kept)
        exchange = endpoint.exchange(await body(request), moment, endpoint.kind)
        asked = read_request(exchange, config)
        if exchange.ignored:
            log.info("%s: nothing was made of %s", endpoint.path, ", ".join(exchange.ignored)[:1000])
        lease = await bounded(request, service.lease(asked.model))
        tokens, streaming = 0, False
        try:
            if exchange.streaming:
                chunks = service.stream(exchange.kind, asked, lease)
                await bounded(request, chunks.start())
                streaming = True
                return EventStream(
                    exchange,
                    chunks,
                    lease.started,
                    config,
                    metrics,
                    lambda: lease.release(chunks.usage["total_tokens"]),
                )
            answer = await bounded(request, service.answer(exchange.kind, asked, lease))
            tokens = answer["usage"]["total_tokens"]
            headers = list_header(IGNORED, exchange.ignored)
            headers |= list_header(DROPPED, answer.get("pg_metadata", {}).get("dropped_keywords", ()))
            return JsonReply(exchange.reply(answer), headers=headers)
        finally:
            if not streaming:
                lease.release(tokens)

    async def answer(request: Request, endpoint: Endpoint) -> Response:
        assert endpoint.answer is not None
        in_address = {**request.query_params, **request.path_params}
        given = await body(request) if endpoint.method == "POST" else in_address
        reply = await endpoint.answer(service, given)
        not_ok = reply["status"] in NOT_OK[endpoint.path] if endpoint.path in NOT_OK else False
        return JsonReply(reply, status_code=503 if not_ok else 200)

    async def prometheus(request: Request, endpoint: Endpoint) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def add(endpoint: Endpoint, handle: Callable[[Request, Endpoint], Awaitable[Response]]) -> None:
        async def route(request: Request) -> Response:
            try:
                return await handle(request, endpoint)
            except PolarGridError as error:
                return error_reply(error, endpoint.exchange.error)

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
