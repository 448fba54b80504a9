"""The server process: sockets, signals, and an end that lets running requests finish."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from polargrid_local.errors import EngineClosed, PolarGridError, ValidationError
from polargrid_local.server.app import create_app
from polargrid_local.server.config import ServeConfig
from polargrid_local.server.replies import error_reply
from polargrid_local.server.tls import server_context

if TYPE_CHECKING:
    from polargrid_local.engine import AsyncEngine

log = logging.getLogger(__name__)
LAST_WORDS_S = 2.0  # for clients to read the error that ends their request, before connections are dropped
TLS_BUFFER_BYTES = 64 << 10  # as asyncio has it for connections without TLS; with TLS it would be eight times as much
SEND_BUFFER_BYTES = 128 << 10  # what the kernel keeps for a reader that stalls; left alone it grows to megabytes


class Server(uvicorn.Server):
    """Ends in three steps: no new connections, `drain_s` for what runs, an error for what still does. A second signal
    ends the drain at once."""

    def __init__(self, config: uvicorn.Config, drain_s: float, end_requests: Callable[[PolarGridError], None]) -> None:
        super().__init__(config)
        self.drain_s = drain_s
        self.end_requests = end_requests
        self.hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.hurried = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signals again at the end, and the process would die of them; see `_signals_to`."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_what_runs())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_what_runs(self) -> None:
        end = time.monotonic() + self.drain_s
        while not self.hurried and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.end_requests(EngineClosed("the server is shutting down"))
        await asyncio.sleep(LAST_WORDS_S)
        for connection in list(self.server_state.connections):
            _reset(connection.transport)


@contextmanager
def _signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread handle signals
        yield
        return
    before = {sig: signal.signal(sig, handler) for sig in HANDLED_SIGNALS}
    try:
        yield
    finally:
        for sig, old in before.items():
            signal.signal(sig, old)


def protocol(config: ServeConfig) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 in pure Python, whatever else is installed, with a time limit for the head of a request, and
    `state["abort"]` to drop a connection."""
    scheme = "" if config.ssl_certfile else "this server speaks http://, not https://; "

    class BoundedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
            super().connection_made(transport)
            if config.ssl_certfile is not None:
                transport.set_write_buffer_limits(TLS_BUFFER_BYTES)
            self.app_state: dict[str, Any] = {**self.app_state, "abort": lambda: _reset(transport)}
            self._head_timer: asyncio.TimerHandle | None = None
            # Browsers and pools open connections ahead of their requests: one without a request yet is idle, not slow.
            # uvicorn declares whole seconds; call_later takes fractions as well.
            self.timeout_keep_alive = config.idle_connection_s  # type: ignore[assignment]  # see above
            self.timeout_keep_alive_task = self.loop.call_later(
                config.idle_connection_s, self.timeout_keep_alive_handler
            )

        def send_400_response(self, msg: str) -> None:
            """For bytes that are no request: in the form of every other error, and with what it most often is."""
            refusal = error_reply(
                ValidationError(
                    f"not a valid HTTP/1.1 request: {scheme}a request needs one Host header, and signs beyond ASCII in "
                    "its path must be percent-encoded",
                    code="invalid_http",
                )
            )
            headers = [*refusal.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(refusal.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _should_upgrade(self) -> bool:
            return False  # an offer, of h2c by Java or of a WebSocket, may be passed over

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
                self._head_timer = loop.call_later(config.header_timeout_s, _reset, self.transport)

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
    """Listening sockets: the Unix one, both loopback addresses where there are two, or the one address asked for.

    Raises ValidationError for an address that cannot be had."""
    if config.unix_socket is not None:
        return [_bind_unix(config.unix_socket)]
    hosts = (
        ["127.0.0.1", "::1"] if config.loopback and config.host in ("localhost", "127.0.0.1", "::1") else [config.host]
    )
    sockets: list[socket.socket] = []
    port = config.port
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with ExitStack() as undo:
            try:
                # asyncio turns Nagle's delay off only where the protocol is named; a chunk would wait 40 ms for it.
                sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
                if sys.platform != "win32":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                sock.bind((host, port))
                sock.listen(2048)
                port = sock.getsockname()[1]
            except OSError as error:
                if host == "::1" and sockets:
                    continue  # this machine has no IPv6 loopback
                if host == "127.0.0.1" and len(hosts) > 1 and error.errno == errno.EAFNOSUPPORT:
                    continue  # nor this one IPv4
                for other in sockets:
                    other.close()
                raise ValidationError(
                    f"cannot listen on {host} port {port}: {error.strerror or error}", param="port"
                ) from None
            undo.pop_all()
        sockets.append(sock)
    return sockets


def _bind_unix(path: Path) -> socket.socket:
    """For this user alone. A socket that a server left behind is replaced, one that answers is not."""
    with ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
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
            sock.listen(2048)
        except OSError as error:
            raise ValidationError(f"cannot listen on {path}: {error.strerror or error}", param="unix_socket") from None
        undo.pop_all()
    return sock


def run(config: ServeConfig, engine: AsyncEngine | None = None) -> None:
    """Serve `config`; `engine` is for tests."""
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    tls = server_context(config)
    if engine is None:
        from polargrid_local import AsyncEngine

        engine = AsyncEngine(**config.engine_options())
    app = create_app(engine, config)
    sockets = bind(config)
    settings = uvicorn.Config(
        app,
        http=protocol(config),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(config.drain_s) + 5,
    )
    settings.load()
    settings.ssl = tls  # ours, so that what is wrong with it is said before anything is loaded
    server = Server(settings, config.drain_s, app.state.end_requests)
    app.state.stop = lambda: setattr(server, "should_exit", True)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    port = None if config.unix_socket else sockets[0].getsockname()[1]
    log.info("listening on %s", config.unix_socket or f"{'https' if tls else 'http'}://{shown}:{port}")
    with _signals_to(server.handle_exit):
        server.run(sockets=sockets)
    if app.state.service.startup_error is not None:
        raise app.state.service.startup_error
