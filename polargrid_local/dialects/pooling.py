"""Pooling: vectors in the words of vLLM's endpoint for all that models make of a text beside answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from polargrid_local.api.plain import shown
from polargrid_local.api.replies import EmbeddingUsage
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Words
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import ValidationError

OWN = ("task", "data")


class PoolingData(TypedDict):
    """`data`: a vector, or base64 of one."""

    index: int
    object: str
    data: list[float] | str


class PoolingReply(TypedDict):
    id: str
    object: str
    created: int
    model: str
    data: list[PoolingData]
    usage: EmbeddingUsage


class Pooling(Exchange):
    """/pooling: the fields of embeddings, and the `task` that is asked for."""

    streams = False

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({name: value for name, value in body.items() if name not in OWN}, moment, kind)
        self._moment = moment
        fields = Fields({name: body[name] for name in OWN if name in body}, "", self.ignored)
        task = fields.get("task", str) or "embed"
        if task != "embed":
            problem = f"Unsupported task: {shown(task)}: must be embed; what a model ranks by is at /v1/score"
            raise ValidationError(problem, param="task", details={"field": "task"})
        fields.refuse({"data": ()})

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "id": f"pool-{self._moment.id}",
            "object": "list",
            "created": int(self._moment.created),
            "model": answer["model"],
            "data": [{"index": row["index"], "object": "pooling", "data": row["embedding"]} for row in answer["data"]],
            "usage": answer["usage"],
        }
