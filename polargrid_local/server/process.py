"""The server process: sockets, signals, and an end that lets running requests finish."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from polargrid_local.errors import EngineClosed, PolarGridError, ValidationError
from polargrid_local.server.app import create_app
from polargrid_local.server.config import ServeConfig

log = logging.getLogger(__name__)
SEND_BUFFER_BYTES = 128 << 10  # what the kernel keeps for a reader that stalls; left alone it grows to megabytes


class Server(uvicorn.Server):
    """Ends in three steps: no new connections, `drain_s` for what runs, an error for what still does."""

    def __init__(self, config: uvicorn.Config, drain_s: float, end_requests: Callable[[PolarGridError], None]) -> None:
        super().__init__(config)
        self.drain_s = drain_s
        self.end_requests = end_requests

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        error = EngineClosed("the server is shutting down")
        timer = asyncio.get_running_loop().call_later(self.drain_s, self.end_requests, error)
        await super().shutdown(sockets)
        timer.cancel()


def protocol(header_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with a time limit for the head of a request, and `state["abort"]` to drop a connection."""

    class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.app_state: dict[str, Any] = {**self.app_state, "abort": lambda: _reset(transport)}
            self._head_timer: asyncio.TimerHandle | None = None
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_timer()

        def _watch_head(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self._head_timer is None:
                loop = asyncio.get_running_loop()
                self._head_timer = loop.call_later(header_timeout_s, _reset, self.transport)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return BoundedProtocol


def _reset(transport: asyncio.Transport) -> None:
    """Drops the connection with all that is buffered for it, here and in the kernel."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def bind(config: ServeConfig) -> list[socket.socket]:
    """Listening sockets: the Unix one, both loopback addresses where the machine has both, or the one address asked for."""
    if config.unix_socket is not None:
        return [_bind_unix(config.unix_socket)]
    hosts = ["127.0.0.1", "::1"] if config.loopback and config.host in ("localhost", "127.0.0.1", "::1") else [config.host]
    sockets: list[socket.socket] = []
    port = config.port
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            # asyncio turns Nagle's delay off only where the protocol is named; a chunk would wait 40 ms for it.
            sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        except OSError:
            continue
        try:
            if sys.platform != "win32":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            if host == "::1" and sockets:
                continue  # this machine has no IPv6 loopback
            for other in sockets:
                other.close()
            raise ValidationError(f"cannot listen on {host} port {port}: {error.strerror or error}", param="port") from None
        sock.listen(2048)
        sockets.append(sock)
        port = sock.getsockname()[1]
    return sockets


def _bind_unix(path: Path) -> socket.socket:
    """For this user alone. A socket that a server left behind is replaced, one that answers is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise OSError("another server answers there")
            path.unlink()
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        sock.close()
        raise ValidationError(f"cannot listen on {path}: {error.strerror or error}", param="unix_socket") from None
    sock.listen(2048)
    return sock


def run(config: ServeConfig, engine: Any = None) -> None:
    """Serve `config`; `engine` is for tests."""
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if engine is None:
        from polargrid_local import AsyncEngine

        engine = AsyncEngine(**config.engine_options())
    app = create_app(engine, config)
    sockets = bind(config)
    settings = uvicorn.Config(
        app,
        http=protocol(config.header_timeout_s),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(config.drain_s) + 5,
    )
    server = Server(settings, config.drain_s, app.state.end_requests)
    app.state.stop = lambda: setattr(server, "should_exit", True)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    log.info("listening on %s", config.unix_socket or f"http://{shown}:{sockets[0].getsockname()[1]}")
    server.run(sockets=sockets)
    if app.state.service.startup_error is not None:
        raise app.state.service.startup_error
