"""exchange_at: whose words are spoken at a path, for whoever has to answer there before a route is found."""

from __future__ import annotations

from collections.abc import Collection

from polargrid_local.dialects.exchange import Exchange
from polargrid_local.dialects.messages import MessagesExchange
from polargrid_local.dialects.ollama import OllamaExchange
from polargrid_local.service.endpoints import ENDPOINTS

_AT = {path: endpoint.exchange for endpoint in ENDPOINTS for path in (endpoint.path, endpoint.other_path)}
_BELOW: dict[str, type[Exchange]] = {"/v1/messages/": MessagesExchange, "/api/": OllamaExchange}  # served or not


def exchange_at(path: str, headers: Collection[bytes]) -> type[Exchange]:
    """Anthropic's clients say who they are at every path, also at one that several APIs have."""
    for beginning, exchange in _BELOW.items():
        if path.startswith(beginning):
            return exchange
    found = _AT.get(path, Exchange)
    return MessagesExchange if found is Exchange and b"anthropic-version" in headers else found
