"""The bytes of JSON answers and of errors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response

from polargrid_local.dialects.exchange import Refusal, dump, error_words
from polargrid_local.errors import AuthenticationError, ContextLengthError, PolarGridError, RateLimitError, ServerError


class JsonReply(Response):
    """A JSON body, compact and pure ASCII."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content).encode("ascii")


DROPPED = "x-polargrid-dropped-keywords"
IGNORED = "x-polargrid-ignored"
FINGERPRINT = "x-polargrid-fingerprint"  # of answers: `system_fingerprint` of stream and pg_metadata
MAX_LIST_BYTES = 4096  # of such a header: clients and proxies take no more than 8 KB or so of all of them


def list_header(name: str, paths: Sequence[str]) -> dict[str, str]:
    """Says which paths of a request nothing was made of, as a JSON list in ASCII: DROPPED, a schema's keywords, or
    IGNORED, fields. If they are too many, the last item tells how many are left out. No header without any."""
    if not paths:
        return {}
    said: list[str] = []
    for i, path in enumerate(paths):
        more = [f"and {len(paths) - i} more"]
        if len(dump([*said, path, *more])) > MAX_LIST_BYTES:
            said += more
            break
        said.append(path)
    return {name: dump(said)}


# The folders of a file's path; an address of the API is none.
_PATH = re.compile(r"(?<![\w./])/(?!(?:v[12]|api)/)(?:[^\s/:;,'\"]+/)+(?=[^\s/])")


def refusal_of(error: PolarGridError, request_id: str | None = None) -> Refusal:
    """Files go by names, not by paths."""
    message = error.message
    if error.path is not None:  # whatever signs are in it
        message = message.replace(error.path, os.path.basename(error.path))
    counts = _counts(error.details or {}) if isinstance(error, ContextLengthError) else {}
    return Refusal(_PATH.sub("", message), error.type, error.code, error.param, error.status, request_id, counts)


def _counts(details: Mapping[str, Any]) -> dict[str, int]:
    """Those that are known: a text that is far too long is refused before its tokens are counted."""
    named = {"n_prompt_tokens": details.get("n_prompt"), "n_ctx": details.get("n_ctx")}
    return {name: count for name, count in named.items() if isinstance(count, int)}


def error_reply(
    error: PolarGridError,
    words: Callable[[Refusal], dict[str, Any]] = error_words,
    request_id: str | None = None,
) -> JsonReply:
    headers = {}
    if isinstance(error, RateLimitError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1)))
    if error.code == "body_timeout":
        headers["connection"] = "close"  # the rest of the body may come at any time
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JsonReply(words(refusal_of(error, request_id)), status_code=error.status, headers=headers)


def forbidden(message: str) -> AuthenticationError:
    error = AuthenticationError(message, code="forbidden_origin")
    error.status = 403
    return error


def not_supported(what: str) -> ServerError:
    return ServerError(f"{what} is not supported by a local text engine", status_code=501, code="not_supported")


def internal_error() -> ServerError:
    """For a caller to see: an unexpected exception's own text may hold paths or prompts."""
    return ServerError("internal error: see the server's log", code="internal_error")
