"""Scores and rankings in the words of vLLM, Text Embeddings Inference (TEI) and llama-server: all are our reranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.replies import EmbeddingUsage
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Words
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import refused

# What is scored goes by several names: those of one side, and those of the other.
PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))
ITEMS = "items"  # another name of `documents`
ACTIVATION = ("use_activation", "activation", "softmax")  # vLLM's name, and its older ones


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


class RankedText(TypedDict):
    index: int
    score: float
    text: NotRequired[str]  # with `return_text`


class Score(Exchange):
    """/v1/score: one text with each of several, or two lists pair by pair, in the order of the request."""

    streams = False

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        self._moment = moment
        fields = Fields(body, "", self.ignored)
        one, other = _names(fields)
        ones, others = fields.texts(one), fields.texts(other)
        if len(ones) not in (1, len(others)):
            raise refused(one, f"must be one text, or as many as {other}, {len(others)}; got {len(ones)}")
        self.body = {"query": ones[0] if len(ones) == 1 else ones, "documents": others}
        self.body |= fields.take("model", "max_tokens_per_doc", "truncate_prompt_tokens", "truncation_side")
        self.field_names = {"use_activation": next(filter(fields.has, ACTIVATION), "")}
        self.body |= fields.take(*ACTIVATION)
        fields.skip("user", "priority", "request_id")
        fields.refuse({"instruction": (), "max_tokens_per_query": ()})
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


class Rerank(Exchange):
    """/v1/rerank: our own words, or TEI's `texts` in place of `documents`, whose answer is a bare list."""

    streams = False

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        own = ("texts", "return_text", "raw_scores", "truncate")
        super().__init__({name: value for name, value in body.items() if name not in own}, moment, kind)
        sent = next((name for name in (*ACTIVATION, "raw_scores") if body.get(name) is not None), "")
        self.field_names = {"use_activation": sent}
        fields = Fields({name: body[name] for name in own if name in body}, "", self.ignored)
        fields.refuse({"truncate": (False,)})
        if (raw := fields.get("raw_scores", bool)) is not None:
            for name in ACTIVATION:
                if body.get(name) is not None:
                    raise refused("raw_scores", f"must be left out beside {name}, which says the same")
            self.body["use_activation"] = not raw
        if fields.get("return_text", bool):
            self.body["return_documents"] = True
        self._is_list = fields.has("texts")
        if self._is_list:
            if self.body.get("documents") is not None:
                raise refused("texts", "must be left out beside documents, which are the same")
            self.body["documents"] = fields.texts("texts")

    def reply(self, answer: Mapping[str, Any]) -> Any:
        if not self._is_list:
            return answer
        ranked: list[RankedText] = []
        for result in answer["results"]:
            row: RankedText = {"index": result["index"], "score": result["relevance_score"]}
            if "document" in result:
                row["text"] = result["document"]["text"]
            ranked.append(row)
        return ranked


def _names(fields: Fields) -> tuple[str, str]:
    """By which the request names the two sides."""
    pairs: tuple[tuple[str, str], ...] = PAIRS
    if fields.has(ITEMS):
        if fields.has("documents"):
            raise refused(ITEMS, "must be left out beside documents, which are the same")
        pairs = tuple((one, ITEMS if other == "documents" else other) for one, other in PAIRS)
    given = [pair for pair in pairs if any(map(fields.has, pair))]
    if len(given) > 1:
        raise refused(next(filter(fields.has, given[1])), f"must be left out beside {given[0][0]}, which is the same")
    return given[0] if given else PAIRS[0]
