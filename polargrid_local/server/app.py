"""create_app: the endpoints, the pages and the gate in front of them, as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from polargrid_local import __version__
from polargrid_local.errors import PolarGridError
from polargrid_local.server import docs, openapi
from polargrid_local.server.body import ClientGone
from polargrid_local.server.caller import caller_of
from polargrid_local.server.config import ServeConfig
from polargrid_local.server.gate import Gate
from polargrid_local.server.key_ring import KeyRing
from polargrid_local.server.metrics import Metrics
from polargrid_local.server.replies import JsonReply, error_reply
from polargrid_local.server.routes import api
from polargrid_local.server.static import read_pages
from polargrid_local.server.unknown import unknown_method, unknown_path
from polargrid_local.service.service import Service

if TYPE_CHECKING:
    from polargrid_local.engine import AsyncEngine


def create_app(engine: AsyncEngine, config: ServeConfig) -> FastAPI:
    service = Service(engine, config)
    metrics = Metrics(service.stats)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load_first(service, lambda: app.state.stop()))
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await service.close()

    ends: set[asyncio.Future[PolarGridError]] = set()

    def end_requests(error: PolarGridError) -> None:
        for stream in list(metrics.streams):
            stream.fail(error)
        for end in ends:
            end.set_result(error)

    # FastAPI may tell OpenTelemetry of requests, but not the text of exceptions: it may quote a prompt.
    no_texts: Any = {"logs": False}
    app = FastAPI(
        title="polargrid-local",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=no_texts,
    )
    app.state.service = service
    app.state.stop = lambda: None
    app.state.end_requests = end_requests
    app.include_router(api(service, config, metrics, ends))
    if config.loopback:
        document = _openapi(app, config.root_path)
        page = HTMLResponse(docs.render(document), headers=docs.HEADERS)
        _add_page(app, "/openapi.json", lambda request: JsonReply(document))
        _add_page(app, "/docs", lambda request: page)
    pages = read_pages()
    for path, item in pages.items():
        _add_page(app, path, item.reply)

    @app.exception_handler(PolarGridError)
    async def refused(request: Request, error: PolarGridError) -> Response:
        return _reply(request, error)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # the client has left, so only the log shows this

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        refusal = unknown_path(path) if error.status_code == 404 else unknown_method(request.method, path)
        reply = _reply(request, refusal)
        reply.headers.update(error.headers or {})
        return reply

    app.add_middleware(Gate, config=config, metrics=metrics, keys=KeyRing(config.keys), public=frozenset(pages))
    return app


def _reply(request: Request, error: PolarGridError) -> Response:
    caller = caller_of(request.scope)
    return error_reply(error, caller.exchange.error, caller.request_id)


async def _load_first(service: Service, stop: Callable[[], None]) -> None:
    try:
        await service.start()
    except PolarGridError:
        stop()


def _add_page(app: FastAPI, path: str, reply: Callable[[Request], Response]) -> None:
    async def page(request: Request) -> Response:
        return reply(request)

    app.add_api_route(path, page, methods=["GET"], include_in_schema=False)


def _openapi(app: FastAPI, root_path: str) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=__version__, description=openapi.DESCRIPTION, routes=app.routes)
    document.setdefault("components", {})["schemas"] = openapi.schemas()
    if root_path:
        document["servers"] = [{"url": root_path}]
    return document
