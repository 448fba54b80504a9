"""Models as the Anthropic API lists them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.plain import shown
from polargrid_local.api.replies import ListModelsResponse, ModelInfo
from polargrid_local.errors import refused

PAGE, MAX_PAGE = 20, 1000  # models in one answer
PAGE_PARAMETERS = ("limit", "after_id", "before_id")


class MessageModel(TypedDict):
    type: Literal["model"]
    id: str
    display_name: str
    created_at: str  # RFC 3339
    lifecycle: Literal["active"]
    max_input_tokens: NotRequired[int]
    max_tokens: NotRequired[int]


class MessageModels(TypedDict):
    data: list[MessageModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model_words(model: ModelInfo) -> MessageModel:
    """One model, out of our own words for it."""
    created = datetime.fromtimestamp(model["created"], timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    words: MessageModel = {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": created,
        "lifecycle": "active",
    }
    if (n_ctx := model.get("max_model_len")) is not None:
        words |= {"max_input_tokens": n_ctx, "max_tokens": n_ctx}
    return words


def models_page(listed: ListModelsResponse, asked: Mapping[str, Any]) -> MessageModels:
    """A page of a list. `asked`: the parameters of the address, `limit` and `after_id` or `before_id`. Raises
    ValidationError for what is none."""
    limit = asked.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and 1 <= int(limit) <= MAX_PAGE):
        raise refused("limit", f"must be a whole number from 1 to {MAX_PAGE}, got {shown(limit)}")
    n = int(limit)
    models = [model_words(model) for model in listed["data"]]
    places = {model["id"]: i for i, model in enumerate(models)}
    before = asked.get("before_id")
    if before is not None and asked.get("after_id") is not None:
        raise refused("before_id", "must not stand beside after_id")
    for field in ("after_id", "before_id"):
        if (id := asked.get(field)) is not None and id not in places:
            raise refused(field, f"no model {shown(id)} is listed here")
    if before is not None:
        models = models[: places[before]]
        page, has_more = models[-n:], len(models) > n
    else:
        models = models[places[asked["after_id"]] + 1 :] if "after_id" in asked else models
        page, has_more = models[:n], len(models) > n
    return {
        "data": page,
        "has_more": has_more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
