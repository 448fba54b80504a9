"""A small reverse proxy, to stand before a server as nginx, Caddy and Traefik do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}


@contextmanager
def proxy(upstream_port: int, *, host: str | None, prefix: str = "", strip: bool = True) -> Iterator[str]:
    """The URL of a proxy that serves `upstream_port` below `prefix`, which it takes off where `strip`.

    `host`: what it sends as Host; None: what the client sent, as Caddy and Traefik do."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            if not self.path.startswith(prefix + "/"):
                self.send_error(404)
                return
            path = self.path.removeprefix(prefix) if strip else self.path
            length = int(self.headers.get("content-length", 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            headers |= {
                "Host": host or self.headers["host"],
                "X-Forwarded-Host": self.headers["host"],
                "X-Forwarded-Proto": "https",
                "X-Forwarded-For": self.client_address[0],
            }
            upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
            upstream.request(self.command, path, self.rfile.read(length), headers)
            reply = upstream.getresponse()
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            with closing(upstream), suppress(OSError):  # the client may leave
                while part := reply.read1(65536):  # as it comes
                    self.wfile.write(part)

        do_GET = do_HEAD = do_POST = do_OPTIONS = forward

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
