"""The endpoints: HTTP in, one call of the service or the engine, JSON or an event stream out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response

from polargrid_local.errors import PolarGridError, TimeoutError, ValidationError
from polargrid_local.server.body import read_json
from polargrid_local.server.config import ServeConfig
from polargrid_local.server.metrics import Metrics
from polargrid_local.server.openapi import describe
from polargrid_local.server.replies import JsonReply, not_supported
from polargrid_local.server.requests import read_request
from polargrid_local.server.sse import EventStream, while_connected
from polargrid_local.service.service import Service


class _ModelName(Convertor[str]):
    """The rest of the path, line breaks in it too, which file names may have."""

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

    async def generate(request: Request, kind: str, always_stream: bool = False) -> Response:
        asked = read_request(
            kind, await body(request), always_stream=always_stream, max_tokens_limit=config.max_tokens_limit
        )
        lease = await bounded(request, service.lease(asked.model))
        tokens, streaming = 0, False
        try:
            if always_stream or getattr(asked, "stream", False):
                chunks = service.stream(kind, asked, lease)
                await bounded(request, chunks.start())
                streaming = True
                return EventStream(
                    chunks, lease.started, config, metrics, lambda: lease.release(chunks.usage["total_tokens"])
                )
            answer = await bounded(request, service.answer(kind, asked, lease))
            tokens = answer["usage"]["total_tokens"]
            return JsonReply(answer)
        finally:
            if not streaming:
                lease.release(tokens)

    @router.post("/v1/chat/completions", **describe("chat"))
    async def chat_completions(request: Request) -> Response:
        return await generate(request, "chat")

    @router.post("/v1/completions", **describe("completion"))
    async def completions(request: Request) -> Response:
        return await generate(request, "completion")

    @router.post("/v1/completions/stream", **describe("completion_stream"))
    async def completions_stream(request: Request) -> Response:
        return await generate(request, "completion", always_stream=True)

    @router.post("/v1/embeddings", **describe("embedding"))
    async def embeddings(request: Request) -> Response:
        return await generate(request, "embedding")

    @router.post("/rerank", include_in_schema=False)  # the path of clients whose base URL has no version
    @router.post("/v1/rerank", **describe("rerank"))
    async def rerank(request: Request) -> Response:
        return await generate(request, "rerank")

    @router.get("/v1/models", **describe("models"))
    async def list_models(request: Request) -> Response:
        return JsonReply(await service.list_models())

    @router.get("/v1/models/status", **describe("model_status"))
    async def model_status(request: Request) -> Response:
        return JsonReply(await service.model_status())

    @router.post("/v1/models/load", **describe("load"))
    async def load(request: Request) -> Response:
        given = await body(request)
        force = given.get("force_reload", given.get("forceReload"))
        if not isinstance(force, (bool, type(None))):
            raise ValidationError("force_reload: expected true or false", param="force_reload")
        return JsonReply(await service.load_model(_model_name(given), bool(force)))

    @router.post("/v1/models/unload", **describe("unload"))
    async def unload(request: Request) -> Response:
        return JsonReply(await service.unload_model(_model_name(await body(request))))

    @router.post("/v1/models/unload-all", **describe("unload_all"))
    async def unload_all(request: Request) -> Response:
        await body(request)
        return JsonReply(await service.unload_all_models())

    @router.get("/v1/models/{model_id:model_name}", **describe("model"))
    async def get_model(request: Request, model_id: str) -> Response:
        return JsonReply(await service.get_model(model_id))

    @router.get("/v1/gpu/status", **describe("gpu_status"))
    async def gpu_status(request: Request) -> Response:
        return JsonReply(await service.gpu_status())

    @router.get("/v1/gpu/memory", **describe("gpu_memory"))
    async def gpu_memory(request: Request) -> Response:
        return JsonReply(await service.gpu_memory())

    @router.post("/v1/gpu/purge", **describe("gpu_purge"))
    async def gpu_purge(request: Request) -> Response:
        force = (await body(request)).get("force")
        if not isinstance(force, (bool, type(None))):
            raise ValidationError("force: expected true or false", param="force")
        return JsonReply(await service.purge_gpu(bool(force)))

    @router.get("/health", **describe("health"))
    async def health(request: Request) -> Response:
        state = await service.health()
        return JsonReply(state, status_code=200 if state["status"] == "healthy" else 503)

    @router.get("/livez", **describe("live"))
    async def live(request: Request) -> Response:
        state = await service.health()
        return JsonReply(state, status_code=503 if state["status"] == "unhealthy" else 200)

    @router.get("/v1/status", **describe("status"))
    async def status(request: Request) -> Response:
        return JsonReply(await service.status())

    @router.get("/v1/usage", **describe("usage"))
    async def usage(request: Request) -> Response:
        query = request.query_params
        return JsonReply(await service.usage_report(query.get("start_date"), query.get("end_date")))

    @router.get("/metrics", **describe("metrics"))
    async def prometheus(request: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.api_route("/v1/audio/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
    async def audio(request: Request) -> Response:
        raise not_supported("audio")

    return router


def _model_name(given: dict[str, Any]) -> str:
    name = given.get("model_name", given.get("modelName"))
    if not isinstance(name, str) or not name:
        raise ValidationError("model_name: required, a non-empty string", param="model_name")
    return name
