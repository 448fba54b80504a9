"""KeptResponses: the responses that a next request may continue, of this process alone and bounded.

What was used least recently goes first, its own predecessors or not: each entry has its whole conversation."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from typing_extensions import TypedDict

from polargrid_local.dialects.exchange import dump
from polargrid_local.dialects.responses import ResponseReply, unknown_response
from polargrid_local.errors import refused

MAX_RESPONSES = 1024
MAX_BYTES = 64 << 20  # of all of them, as JSON
PAGE, MAX_PAGE = 20, 100  # items in one answer


class DeletedResponse(TypedDict):
    id: str
    object: str
    deleted: bool


class ResponseItems(TypedDict):
    """A page of the items that a request came with."""

    object: str
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class KeptResponses(MutableMapping[str, dict[str, Any]]):
    """id -> what the exchange of the Responses API keeps. It holds JSON texts, so that nothing in it can change, and
    its size is known. One that is larger than all of it may be is not kept."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._texts: OrderedDict[str, str] = OrderedDict()  # the least recently used first
        self._n_bytes = 0

    def __getitem__(self, id: str) -> dict[str, Any]:
        text = self._texts[id]
        self._texts.move_to_end(id)
        kept: dict[str, Any] = json.loads(text)
        return kept

    def __setitem__(self, id: str, kept: Mapping[str, Any]) -> None:
        self.pop(id, None)
        text = dump(kept)  # in ASCII, a byte for each character
        if len(text) > self._max_bytes:
            return
        self._texts[id] = text
        self._n_bytes += len(text)
        while len(self._texts) > self._max_responses or self._n_bytes > self._max_bytes:
            del self[next(iter(self._texts))]

    def __delitem__(self, id: str) -> None:
        self._n_bytes -= len(self._texts.pop(id))

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._texts))

    def __len__(self) -> int:
        return len(self._texts)

    # what is answered of them: each raises NotFoundError

    async def retrieve(self, given: Mapping[str, Any]) -> ResponseReply:
        if given.get("stream") not in (None, "false"):
            raise refused("stream", "a kept response is answered whole")
        reply: ResponseReply = self._found(given)["response"]
        return reply

    async def delete(self, given: Mapping[str, Any]) -> DeletedResponse:
        id = self._found(given)["response"]["id"]
        del self[id]
        return {"id": id, "object": "response", "deleted": True}

    async def input_items(self, given: Mapping[str, Any]) -> ResponseItems:
        """The latest first, unless `order` is asc; `limit` of them, `after` an item."""
        order, limit, after = given.get("order", "desc"), given.get("limit", str(PAGE)), given.get("after")
        if order not in ("asc", "desc"):
            raise refused("order", f"must be 'asc' or 'desc', got {order[:80]!r}")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_PAGE):
            raise refused("limit", f"must be a whole number from 1 to {MAX_PAGE}, got {limit[:80]!r}")
        found = self._found(given)
        items = [*found["history"], *found["input"]]
        if order == "desc":
            items.reverse()
        if after is not None:
            at = next((i for i, item in enumerate(items) if item["id"] == after), None)
            if at is None:
                raise refused("after", f"no item {after[:80]!r} came with this response's request")
            items = items[at + 1 :]
        page = items[: int(limit)]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }

    def _found(self, given: Mapping[str, Any]) -> dict[str, Any]:
        kept = self.get(given["response_id"])
        if kept is None:
            raise unknown_response(given["response_id"], "response_id")
        return kept
