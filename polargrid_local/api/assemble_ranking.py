"""Assembling a ranking: the plain answer of a request for one, out of a model's scores or out of vectors."""

from __future__ import annotations

import math
from typing import Any

from polargrid_local.api.assemble import Assembler
from polargrid_local.api.prepare_ranking import Ranking
from polargrid_local.api.replies import RerankResponse, RerankResult
from polargrid_local.api.requests import RerankRequest


class RankingAssembler(Assembler[dict[str, Any], RerankResponse]):
    """Documents by their scores, the best first. The last event of each choice holds what the model makes of one of the
    ranking's texts."""

    prefix = "rerank-"

    def __init__(self, model: str, id: str, created: int, seed: int, request: RerankRequest, ranking: Ranking) -> None:
        super().__init__(model, id, created, seed, len(ranking.requests), ignored_fields=ranking.ignored)
        self._request, self._ranking = request, ranking

    def _chunk(self, index: int, text: str | None, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {}

    def response(self) -> RerankResponse:
        request = self._request
        scores = self._ranking.scores([choice.event.embedding for choice in self.choices if choice.event is not None])
        results: list[RerankResult] = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
        if request.return_documents:
            for result in results:
                result["document"] = {"text": request.texts[result["index"]]}
        results.sort(key=lambda result: -result["relevance_score"])  # stable: equal ones stay in the caller's order
        if self._ranking.logistic:  # after the order is made: of large scores it is 1
            for result in results:
                result["relevance_score"] = _logistic(result["relevance_score"])
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


def _logistic(x: float) -> float:
    """1 / (1 + e^-x), for large |x| too."""
    e = math.exp(-abs(x))
    return (1 if x >= 0 else e) / (1 + e)
