"""Gate: the ASGI layer that every request passes first: Host, Origin, API key and its rate, and the headers of every
answer."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polargrid_local.errors import AuthenticationError, PolarGridError
from polargrid_local.server.caller import Caller
from polargrid_local.server.config import ServeConfig, is_loopback
from polargrid_local.server.key_ring import HEADERS, Holder, KeyRing
from polargrid_local.server.metrics import Metrics
from polargrid_local.server.replies import DROPPED, FINGERPRINT, IGNORED, error_reply, forbidden, internal_error
from polargrid_local.server.sse import log_crash

log = logging.getLogger(__name__)

_REPEATED_SLASHES = re.compile(rb"/{2,}")
_ABSOLUTE = re.compile(rb"https?://([^/]*)", re.IGNORECASE)
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,1024}")
_IP_LITERAL = re.compile(r"\[[0-9a-fA-F:.]+\]|[0-9]+(\.[0-9]+){3}")
DEFAULT_PORTS = {"http": "80", "https": "443"}
# To pages.
EXPOSED = ", ".join(["x-request-id", "request-id", "retry-after", *HEADERS, DROPPED, FINGERPRINT, IGNORED]).encode()


class Gate:
    """Refuses foreign hosts, foreign pages, missing keys and requests beyond a key's rate before a byte of the body is
    read, in the words of the path.

    Counts and logs every answer. `public`: paths that need no key, beside those about health."""

    def __init__(
        self, app: ASGIApp, config: ServeConfig, metrics: Metrics, keys: KeyRing, public: Collection[str] = ()
    ) -> None:
        self.app = app
        self.config = config
        self.keys = keys
        self.metrics = metrics
        self.hosts = {name.lower() for name in config.allow_hosts}
        self.root_path = config.root_path.encode()
        self.public = {"/health", "/livez", "/ping", *public}  # served without a key: nothing in them is private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the HTTP layer below sends no body in answer to HEAD
        _tidy_path(scope, self.root_path)  # first, since an absolute address brings the Host header to look at
        headers = dict(scope["headers"])
        caller = Caller(scope["path"], headers)
        scope.setdefault("state", {})["caller"] = caller
        extra = [*caller.id_headers(), (b"x-content-type-options", b"nosniff"), (b"vary", b"origin")]
        start, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            await self._pass(scope, headers, caller, extra)(scope, receive, send_with_headers)
        except Exception as error:
            log_crash(error)
            if not status:
                reply = error_reply(internal_error(), caller.exchange.error, caller.request_id)
                await reply(scope, receive, send_with_headers)
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests[route, status] += 1
        if caller.key is not None:
            self.metrics.key_requests[caller.key.name, status] += 1
        seconds = time.monotonic() - start
        log.info("%s %s %d %.3f s %s", method, route, status, seconds, caller)

    def _pass(
        self, scope: Scope, headers: dict[bytes, bytes], caller: Caller, extra: list[tuple[bytes, bytes]]
    ) -> ASGIApp:
        """Who answers: the application, or a refusal. `extra` gets the headers that go with it."""
        try:
            self._check_host(scope, headers)
            origin = headers.get(b"origin")
            if origin is not None:
                self._check_origin(scope, origin, headers)
                extra += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    extra += _preflight(headers)
                    return Response(status_code=204)
            if self.keys and scope["path"] not in self.public:
                caller.key = self._key_of(headers)
                try:
                    caller.key.admit()
                finally:
                    extra += caller.key.headers()
            if self.root_path and scope["raw_path"] == self.root_path:
                return RedirectResponse(f"{self.config.root_path}/", 308)  # the page's addresses are relative
        except PolarGridError as error:
            if caller.key is None:  # the body stays unread; that of a client with a key is passed over
                extra.append((b"connection", b"close"))
            return error_reply(error, caller.exchange.error, caller.request_id)
        return self.app

    def _check_host(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self.config.unix_socket is not None:
            return  # no browser connects there, and clients say what they like
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        default = DEFAULT_PORTS[scope["scheme"]]
        name, _, port = host.rpartition(":") if re.search(r":\d+$", host) else (host, "", default)
        if name in self.hosts or host in self.hosts:
            return
        right_port = port == str(scope["server"][1])
        # A hostile page can let its own name point to this machine (DNS rebinding) and would then have our origin.
        # It comes with that name as Host. An IP address as Host cannot have been redirected so, and is let through.
        known = is_loopback(name) or (not self.config.loopback and _IP_LITERAL.fullmatch(name) is not None)
        if not (known and right_port):
            raise forbidden("this Host is not served here: add it to allow_hosts")

    def _check_origin(self, scope: Scope, origin: bytes, headers: dict[bytes, bytes]) -> None:
        text = origin.decode("latin-1")
        if text in self.config.allow_origins or "*" in self.config.allow_origins:
            return
        try:
            parts = urlsplit(text)
            host = parts.hostname or ""
        except ValueError:
            host = ""
        if host and parts.scheme in DEFAULT_PORTS:
            if is_loopback(host):
                return
            own = {headers.get(b"host", b"").decode("latin-1").lower(), *self.hosts}
            here = parts.netloc.lower() in {name.removesuffix(f":{DEFAULT_PORTS[parts.scheme]}") for name in own}
            # Behind a proxy a page of ours may have either scheme. Where we speak https ourselves, one that came by
            # http is not ours: whoever is on the way may have put it there.
            if here and parts.scheme in ("https", scope["scheme"]):
                return
        raise forbidden("pages of this Origin may not use this server: add it to allow_origins")

    def _key_of(self, headers: dict[bytes, bytes]) -> Holder:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if not given and b"x-api-key" in headers:  # of Anthropic's clients
            kind, given = b"bearer", headers[b"x-api-key"]
        holder = self.keys.find(given.strip())
        if holder is None or kind.lower() != b"bearer":
            raise AuthenticationError("missing or wrong API key: send Authorization: Bearer KEY")
        return holder


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
