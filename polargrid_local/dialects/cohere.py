"""Cohere: vectors and rankings in the words of its API, version 2, as vLLM speaks them too."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from typing_extensions import NotRequired, TypedDict

from polargrid_local.api.plain import shown
from polargrid_local.dialects.exchange import Exchange, Kind, Moment, Refusal, Words, error_words
from polargrid_local.dialects.fields import Fields
from polargrid_local.errors import ValidationError, refused

VectorType = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
TYPES = get_args(VectorType)
# What a text is for. The prompts that some models want before it are not in their files.
INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
SIDES = {"START": "left", "END": "right"}  # where a text that is too long is cut
OUR_NAMES = {"dimensions": "output_dimension", "input": "texts", "truncate_prompt_tokens": "max_tokens"}
RERANK_SAME = (
    "model",
    "query",
    "documents",
    "top_n",
    "max_tokens_per_doc",
    "return_documents",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_activation",
)


class CohereVersion(TypedDict):
    version: str


class CohereUnits(TypedDict):
    input_tokens: int
    image_tokens: int


class CohereMeta(TypedDict):
    api_version: CohereVersion
    billed_units: CohereUnits


class CohereEmbedReply(TypedDict):
    id: str
    embeddings: dict[str, list[list[float] | list[int] | str]]  # by the forms that were asked for
    texts: list[str]
    meta: CohereMeta
    response_type: str


class CohereDocument(TypedDict):
    text: str


class CohereResult(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[CohereDocument]  # with `return_documents`


class CohereRerankReply(TypedDict):
    id: str
    results: list[CohereResult]
    meta: CohereMeta


class CohereExchange(Exchange):
    """What its requests have in common: the form of errors, which vLLM's clients read too."""

    streams = False

    @staticmethod
    def error(refusal: Refusal) -> Words:
        return {"message": refusal.message, **error_words(refusal)}


class CohereEmbed(CohereExchange):
    """/v2/embed: a vector for each text, in one form or several."""

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        self._id = f"embd-{moment.id}"
        fields = Fields(body, "", self.ignored)
        fields.refuse({"images": ([],)})
        self._texts = _texts(fields)
        self.body = {"input": self._texts, **_kept(fields), **fields.take("model", output_dimension="dimensions")}
        self._types = _types(fields)
        input_type = fields.get("input_type", str)
        if input_type is not None:
            if input_type not in INPUT_TYPES:
                problem = f"Unsupported input_type {shown(input_type)}: must be one of {', '.join(INPUT_TYPES)}"
                raise ValidationError(problem, param="input_type")
            self.ignored.append("input_type")
        fields.skip("priority")
        fields.end()

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        vectors = [row["embedding"] for row in answer["data"]]
        return {
            "id": self._id,
            "embeddings": {name: _as_type(name, vectors) for name in self._types},
            "texts": self._texts,
            "meta": _meta(answer),
            "response_type": "embeddings_by_type",
        }

    @staticmethod
    def error(refusal: Refusal) -> Words:
        """Our parser knows some fields by other names."""
        return CohereExchange.error(refusal.named(OUR_NAMES))


class CohereRerank(CohereExchange):
    """/v2/rerank: documents by how well they answer a query, with scores of 0 to 1."""

    def __init__(self, body: Words, moment: Moment, kind: Kind) -> None:
        super().__init__({}, moment, kind)
        fields = Fields(body, "", self.ignored)
        self._asks_activation = fields.has("use_activation")
        self.body = {"use_activation": True, **fields.take(*RERANK_SAME)}
        fields.skip("priority")
        fields.refuse({"relevant_spans": ({"mode": "disabled"},), "rank_fields": ([],)})
        fields.refuse({"instruction": (), "max_tokens_per_query": (0,)})
        fields.end()

    def all_ignored(self, by_model: Sequence[str]) -> list[str]:
        """A model that ranks by cosine makes nothing of `use_activation`, which is told where it was sent."""
        return super().all_ignored(by_model if self._asks_activation else ())

    def reply(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"id": answer["id"], "results": answer["results"], "meta": _meta(answer)}


def _texts(fields: Fields) -> list[str]:
    """Those of `texts`, or of `inputs`, whose parts are joined."""
    if not fields.has("inputs"):
        return fields.texts("texts")
    if fields.has("texts"):
        raise refused("inputs", "must be left out beside texts, which are the same")
    texts = []
    for given in fields.objects("inputs"):
        parts = given.objects("content")
        for part in parts:
            if part.need("type", str) != "text":
                raise refused(part.path("type"), "must be text: this engine reads no images")
        texts.append("".join(part.need("text", str) for part in parts))
        if not texts[-1]:
            raise refused(given.path("content"), "must have text parts, and not empty ones")
        for rest in (*parts, given):
            rest.end()
    if not texts:
        raise refused("inputs", "must not be empty")
    return texts


def _kept(fields: Fields) -> Words:
    """The fields of our request that say what is left of a text."""
    truncate, n_tokens = fields.get("truncate", str) or "END", fields.get("max_tokens", int)
    if truncate != "NONE" and truncate not in SIDES:
        raise refused("truncate", f"must be NONE, START or END, got {shown(truncate)}")
    if n_tokens is not None and n_tokens < 1:
        raise refused("max_tokens", f"must be 1 or more, got {n_tokens}", ge=1)
    if truncate == "NONE":
        if n_tokens is not None:
            raise refused("max_tokens", "must be left out with truncate NONE: the limit is then the model's own")
        return {}
    return {"truncate_prompt_tokens": n_tokens or -1, "truncation_side": SIDES[truncate]}


def _types(fields: Fields) -> list[str]:
    """The forms that are asked for."""
    types = fields.get("embedding_types", list) or ["float"]
    for i, name in enumerate(types):
        if name not in TYPES:
            raise refused(f"embedding_types[{i}]", f"must be one of {', '.join(TYPES)}; got {shown(name)}")
    return types


def _as_type(name: str, vectors: list[list[float]]) -> list[Any]:
    """Each vector in one of TYPES. A number is a bit by its sign, eight of them a byte, the first the highest; or a
    byte that is its share of the largest one, since no file tells how far the numbers of a model reach."""
    if name == "float":
        return vectors
    import numpy  # imported here because a program that only chats starts sooner without it

    rows = numpy.array(vectors, numpy.float32)
    if name == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in rows]
    if name in ("binary", "ubinary"):
        unsigned = numpy.packbits(rows >= 0, axis=1).astype(numpy.int16)
        signed = unsigned - 128
    else:
        largest = numpy.abs(rows).max(axis=1, keepdims=True)
        signed = numpy.rint(rows / numpy.where(largest > 0, largest, 1) * 127).astype(numpy.int16)
        unsigned = signed + 128
    numbers: list[Any] = (unsigned if name.startswith("u") else signed).tolist()
    return numbers


def _meta(answer: Mapping[str, Any]) -> CohereMeta:
    units: CohereUnits = {"input_tokens": answer["usage"]["prompt_tokens"], "image_tokens": 0}
    return {"api_version": {"version": "2"}, "billed_units": units}
