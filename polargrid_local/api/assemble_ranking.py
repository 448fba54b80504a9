"""Assembling a ranking: the plain answer of a request for one, out of a model's scores or out of vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from polargrid_local.api.assemble import Assembler
from polargrid_local.api.replies import RerankResponse, RerankResult
from polargrid_local.api.requests import RerankRequest


def _logistic(x: float) -> float:
    """1 / (1 + e^-x), for large |x| too."""
    e = math.exp(-abs(x))
    return (1 if x >= 0 else e) / (1 + e)


class RankingAssembler(Assembler[dict[str, Any], RerankResponse]):
    """Documents by their scores, the best first."""

    prefix = "rerank-"

    def __init__(
        self, model: str, id: str, created: int, seed: int, request: RerankRequest, n: int, ignored: Sequence[str] = ()
    ) -> None:
        super().__init__(model, id, created, seed, n, ignored_fields=ignored)
        self._request = request

    def _chunk(self, index: int, text: str | None, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {}

    def _scores(self) -> list[float]:
        """In the order of the documents."""
        raise NotImplementedError

    def response(self) -> RerankResponse:
        request = self._request
        results: list[RerankResult] = [
            {"index": index, "relevance_score": score} for index, score in enumerate(self._scores())
        ]
        if request.return_documents:
            for result in results:
                result["document"] = {"text": request.texts[result["index"]]}
        results.sort(key=lambda result: -result["relevance_score"])  # stable: equal ones stay in the caller's order
        prompt = self.usage["prompt_tokens"]
        reply: RerankResponse = {
            "id": self.id,
            "object": "list",
            "model": self.model,
            "results": results[: request.top_n],
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
        }
        if self.ignored_fields:
            reply["pg_metadata"] = {"ignored_fields": self.ignored_fields}
        return reply


class RerankAssembler(RankingAssembler):
    """The last event of each choice holds a document's scores, one for each of the model's labels; the score at index
    `label` is its relevance, or the logistic function of it is."""

    def __init__(
        self,
        model: str,
        id: str,
        created: int,
        seed: int,
        request: RerankRequest,
        label: int = 0,
        logistic: bool = False,
    ) -> None:
        super().__init__(model, id, created, seed, request, len(request.texts))
        self._label, self._logistic = label, logistic

    def _scores(self) -> list[float]:
        return [float(choice.event.embedding[self._label]) for choice in self.choices if choice.event is not None]

    def response(self) -> RerankResponse:
        reply = super().response()
        if self._logistic:  # after the order is made: of large scores it is 1
            for result in reply["results"]:
                result["relevance_score"] = _logistic(result["relevance_score"])
        return reply


class CosineAssembler(RankingAssembler):
    """The last event of each choice holds the vector of a text. A document's relevance is the cosine of two of them, at
    the places that its pair tells: their dot product, since they have the length 1."""

    def __init__(
        self,
        model: str,
        id: str,
        created: int,
        seed: int,
        request: RerankRequest,
        pairs: Sequence[tuple[int, int]],
        n: int,
        ignored: Sequence[str] = (),
    ) -> None:
        super().__init__(model, id, created, seed, request, n, ignored)
        self._pairs = pairs

    def _scores(self) -> list[float]:
        import numpy  # imported here because a program that only chats starts sooner without it

        vectors = [
            numpy.asarray(choice.event.embedding, numpy.float64) for choice in self.choices if choice.event is not None
        ]
        return [float(vectors[query] @ vectors[document]) for query, document in self._pairs]
