"""Requests as they come over HTTP: what differs there from a call in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.exchange import Exchange
from polargrid_local.errors import refused
from polargrid_local.server.config import ServeConfig

ENCODINGS = ("float", "base64")


def check_ignored(ignored: Sequence[str], config: ServeConfig) -> None:
    """Raises ValidationError for fields that nothing was made of, where the server takes none of those."""
    if config.strict_fields and ignored:
        raise refused(ignored[0], "unknown field, and this server takes none (strict_fields)")


def read_request(exchange: Exchange, config: ServeConfig) -> Any:
    """The request model of what `exchange` asks. The paths of unknown keys go to what it ignores; with
    `strict_fields` they are refused.

    Without `max_tokens` an answer may fill the context; `max_tokens_limit`, where it is not 0, is the most that one may
    have. Raises ValidationError naming the field."""
    kind, max_tokens_limit = exchange.kind, config.max_tokens_limit
    check_ignored(exchange.ignored, config)
    ignored = None if config.strict_fields else exchange.ignored
    request = parse_request(kind, exchange.body, max_tokens_limit=None, ignored=ignored)
    if kind == "embedding" and request.encoding_format not in ENCODINGS:
        raise refused("encoding_format", f"must be 'float' or 'base64' over HTTP, got {request.encoding_format!r}")
    if kind not in ("chat", "completion"):
        return request
    sent = request.model_fields_set
    if "stream_options" in sent and not exchange.streaming:
        raise refused("stream_options", "only allowed with stream: true")
    asked = request.max_tokens if "max_tokens" in sent else -1
    if max_tokens_limit:
        if asked > max_tokens_limit:
            raise refused("max_tokens", f"this server's limit is {max_tokens_limit}, got {asked}", le=max_tokens_limit)
        asked = asked if asked >= 0 else max_tokens_limit
    return request.model_copy(update={"max_tokens": asked})
