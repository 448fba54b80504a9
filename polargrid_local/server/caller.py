"""Caller: what the gate has found out of a request, for all who answer it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from starlette.types import Scope

from polargrid_local.dialects.exchange import Exchange
from polargrid_local.server.key_ring import Holder
from polargrid_local.server.words import exchange_at

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACE_PARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")  # W3C Trace Context


class Caller:
    """`headers` by their names in lower case. `request_id` is the client's own where it sent one, `trace_id` that of
    its `traceparent`, or "". `key`: None where none is asked for, or none was right."""

    def __init__(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        trace = _TRACE_PARENT.fullmatch(headers.get(b"traceparent", b"").strip())
        self.trace_id = trace[1].decode() if trace else ""
        self.exchange: type[Exchange] = exchange_at(path, headers)
        self.key: Holder | None = None

    def id_headers(self) -> list[tuple[bytes, bytes]]:
        """The request's id, where clients look for it."""
        names = filter(None, ["x-request-id", self.exchange.request_id_header])
        return [(name.encode(), self.request_id.encode()) for name in names]

    def spend_tokens(self, n: int) -> None:
        """Counts what an answer took of the rate of this caller's key."""
        if self.key is not None:
            self.key.spend_tokens(n)

    def __str__(self) -> str:
        """As in the log: the request's id, and what else is known."""
        key = f" key={self.key.name}" if self.key is not None else ""
        return f"{self.request_id}{key}" + (f" trace={self.trace_id}" if self.trace_id else "")


def caller_of(scope: Scope) -> Caller:
    caller: Caller = scope["state"]["caller"]
    return caller
