"""Score: how well texts go with another one, in the words of vLLM: a reranking whose order is the request's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from polargrid_local.api.replies import EmbeddingUsage
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Words
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import refused


class ScoreData(TypedDict):
    index: int
    object: str
    score: float


class ScoreReply(TypedDict):
    id: str
    object: str
    created: int
    model: str
    data: list[ScoreData]
    usage: EmbeddingUsage


class Score(Exchange):
    """/v1/score"""

    streams = False

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        self._moment = moment
        fields = Fields(body, "", self.ignored)
        one, others = fields.any("text_1"), fields.any("text_2")
        if not isinstance(one, str) or not one:
            raise refused("text_1", "must be one text, which is not empty")
        if not isinstance(others, (str, list)) or not others:
            raise refused("text_2", "must be a text, or a list of texts")
        documents = [others] if isinstance(others, str) else others
        for i, text in enumerate(documents):
            if not isinstance(text, str) or not text:
                raise refused(f"text_2[{i}]", "must be a text, which is not empty")
        self.body = {"query": one, "documents": documents, **fields.take("model")}
        fields.skip("user", "priority", "request_id")
        fields.refuse({"truncate_prompt_tokens": (), "activation": (), "softmax": ()})
        fields.end()

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        results = sorted(answer["results"], key=lambda result: result["index"])
        return {
            "id": f"score-{self._moment.id}",
            "object": "list",
            "created": int(self._moment.created),
            "model": answer["model"],
            "data": [
                {"index": result["index"], "object": "score", "score": result["relevance_score"]} for result in results
            ],
            "usage": answer["usage"],
        }
