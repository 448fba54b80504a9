"""Request bodies: bounded in bytes, time and depth, and always one JSON object."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NoReturn

from starlette.types import Receive, Scope

from polargrid_local.errors import ValidationError
from polargrid_local.server.config import ServeConfig

DISCARD_FACTOR = 4  # a body up to so many times the limit is read to its end: clients that are cut off miss the answer

# A browser asks before it sends another site's JSON to us, and is told no. A form, or a body of no type, it sends
# without asking, so that these are taken from programs alone. Browsers are told by these headers, which a page cannot
# leave out.
UNASKED = (b"application/x-www-form-urlencoded", b"")
OF_BROWSERS = (b"origin", b"referer", b"sec-fetch-site", b"sec-fetch-mode")


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_json(scope: Scope, receive: Receive, config: ServeConfig, form_bodies: bool = False) -> dict[str, Any]:
    """The request's JSON object, {} for an empty body; ValidationError for anything else. `form_bodies`: it may also be
    called a form, or have no type, where no browser has sent it."""
    headers = dict(scope["headers"])
    try:
        raw = await asyncio.wait_for(_read(headers, receive, config.max_body_bytes), config.body_timeout_s)
    except asyncio.TimeoutError:
        raise ValidationError(
            f"the body did not arrive within {config.body_timeout_s:g} s", code="body_timeout"
        ) from None
    if not raw:
        return {}
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    called_form = form_bodies and kind in UNASKED and not any(name in headers for name in OF_BROWSERS)
    if kind != b"application/json" and not kind.endswith(b"+json") and not called_form:
        raise ValidationError("Content-Type must be application/json")
    if (coding := headers.get(b"content-encoding", b"identity").strip().lower()) != b"identity":
        shown = coding.decode("latin-1")[:40]
        raise ValidationError(
            f"Content-Encoding {shown!r} is not supported: send the body as it is", param="Content-Encoding"
        )
    return parse_object(raw, config.max_json_depth)


async def _read(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    claimed = int(headers.get(b"content-length", b"0"))
    if claimed > limit * DISCARD_FACTOR:
        _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > limit * DISCARD_FACTOR:
            _too_large(limit)
        if not message.get("more_body", False):
            break
    if size > limit:
        _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> NoReturn:
    raise ValidationError(f"the body is larger than {limit} bytes", code="body_too_large")


def parse_object(raw: bytes, max_depth: int) -> dict[str, Any]:
    """`raw` as a JSON object of at most `max_depth` levels, without NaN and infinities."""
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)  # passes over a byte order mark
    except RecursionError:
        raise ValidationError(f"the body is nested deeper than {max_depth} levels") from None
    except UnicodeDecodeError:
        raise ValidationError("the body is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValidationError(f"the body is not valid JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise ValidationError("the body is not valid JSON: a number is out of range or not finite") from None
    if not isinstance(value, dict):
        raise ValidationError("the body must be a JSON object")
    if _deeper_than(value, max_depth):
        raise ValidationError(f"the body is nested deeper than {max_depth} levels")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item) if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _children(item: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item
