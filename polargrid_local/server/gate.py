"""Gate: the ASGI layer that every request passes first: Host, Origin, API key, and the headers of every answer."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polargrid_local.errors import AuthenticationError, PolarGridError
from polargrid_local.server.config import ServeConfig, is_loopback
from polargrid_local.server.metrics import Metrics
from polargrid_local.server.replies import DROPPED, IGNORED, error_reply, forbidden, internal_error
from polargrid_local.server.sse import log_crash

log = logging.getLogger(__name__)

_REPEATED_SLASHES = re.compile(rb"/{2,}")
_ABSOLUTE = re.compile(rb"https?://([^/]*)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,1024}")
_IP_LITERAL = re.compile(r"\[[0-9a-fA-F:.]+\]|[0-9]+(\.[0-9]+){3}")


class Gate:
    """Refuses foreign hosts, foreign pages and missing keys before a byte of the body is read.

    Counts and logs every answer. `public`: paths that need no key, beside those about health."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics, public: Collection[str] = ()) -> None:
        self.app = app
        self.config = config
        self.metrics = metrics
        self.hosts = {name.lower() for name in config.allow_hosts}
        self.root_path = config.root_path.encode()
        self.public = {"/health", "/livez", *public}  # served without a key: nothing in them is private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the HTTP layer below sends no body in answer to HEAD
        _tidy_path(scope, self.root_path)  # first, since an absolute address brings the Host header to look at
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"req_{uuid.uuid4().hex}".encode()
        extra = [(b"x-request-id", request_id), (b"x-content-type-options", b"nosniff"), (b"vary", b"origin")]
        start, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            await self._pass(scope, headers, extra)(scope, receive, send_with_headers)
        except Exception as error:
            log_crash(error)
            if not status:
                await error_reply(internal_error())(scope, receive, send_with_headers)
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests[route, status] += 1
        seconds = time.monotonic() - start
        log.info("%s %s %d %.3f s %s", method, route, status, seconds, request_id.decode())

    def _pass(self, scope: Scope, headers: dict[bytes, bytes], extra: list[tuple[bytes, bytes]]) -> ASGIApp:
        """Who answers: the application, or a refusal. `extra` gets the headers that go with it."""
        try:
            self._check_host(scope, headers)
            origin = headers.get(b"origin")
            if origin is not None:
                self._check_origin(origin, headers)
                extra += [
                    (b"access-control-allow-origin", origin),
                    (b"access-control-expose-headers", f"x-request-id, retry-after, {DROPPED}, {IGNORED}".encode()),
                ]
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    extra += _preflight(headers)
                    return Response(status_code=204)
            self._check_key(scope, headers)
            if self.root_path and scope["raw_path"] == self.root_path:
                return RedirectResponse(f"{self.config.root_path}/", 308)  # the page's addresses are relative
        except PolarGridError as error:
            extra.append((b"connection", b"close"))  # the body stays unread
            return error_reply(error)
        return self.app

    def _check_host(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self.config.unix_socket is not None:
            return  # no browser connects there, and clients say what they like
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        name, _, port = host.rpartition(":") if re.search(r":\d+$", host) else (host, "", "80")
        if name in self.hosts or host in self.hosts:
            return
        right_port = port == str(scope["server"][1])
        # A hostile page can let its own name point to this machine (DNS rebinding) and would then have our origin.
        # It comes with that name as Host. An IP address as Host cannot have been redirected so, and is let through.
        known = is_loopback(name) or (not self.config.loopback and _IP_LITERAL.fullmatch(name) is not None)
        if not (known and right_port):
            raise forbidden("this Host is not served here: add it to allow_hosts")

    def _check_origin(self, origin: bytes, headers: dict[bytes, bytes]) -> None:
        text = origin.decode("latin-1")
        if text in self.config.allow_origins or "*" in self.config.allow_origins:
            return
        try:
            parts = urlsplit(text)
            host = parts.hostname or ""
        except ValueError:
            host = ""
        if host and parts.scheme in ("http", "https"):
            default = ":443" if parts.scheme == "https" else ":80"
            own = {headers.get(b"host", b"").decode("latin-1").lower(), *self.hosts}
            if is_loopback(host) or parts.netloc.lower() in {name.removesuffix(default) for name in own}:
                return
        raise forbidden("pages of this Origin may not use this server: add it to allow_origins")

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if not self.config.api_key or scope["path"] in self.public:
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if not given and b"x-api-key" in headers:  # of Anthropic's clients
            kind, given = b"bearer", headers[b"x-api-key"]
        right = hmac.compare_digest(given.strip(), self.config.api_key.encode())
        if not right or kind.lower() != b"bearer":
            raise AuthenticationError("missing or wrong API key: send Authorization: Bearer KEY")


def _tidy_path(scope: Scope, root_path: bytes) -> None:
    """Puts into `scope` the path that the client means, and takes `root_path`, or b"", off.

    An absolute address loses its scheme and host; repeated slashes become one, and so does a doubled /v1.
    Percent-encoding is undone last: until then a %2F is part of a model's name and not a slash."""
    raw = scope.get("raw_path") or scope["path"].encode()
    if absolute := _ABSOLUTE.match(raw):  # as to a proxy; its Host is the one that counts
        raw = raw[absolute.end() :] or b"/"
        others = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope["headers"] = [(b"host", absolute[1]), *others]
    raw = _REPEATED_SLASHES.sub(b"/", raw)
    if root_path and raw.startswith(root_path + b"/"):
        raw = raw.removeprefix(root_path)
    while raw.startswith(b"/v1/v1/"):
        raw = raw[3:]
    if len(raw) > 1:
        raw = raw.removesuffix(b"/")
    scope["raw_path"] = raw
    scope["path"] = unquote(raw.decode("latin-1"))


def _preflight(headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    allowed = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
        (b"access-control-max-age", b"600"),
    ]
    wanted = headers.get(b"access-control-request-headers", b"")
    if wanted and _HEADER_NAMES.fullmatch(wanted):
        allowed.append((b"access-control-allow-headers", wanted))
    if headers.get(b"access-control-request-private-network") == b"true":
        allowed.append((b"access-control-allow-private-network", b"true"))
    return allowed
