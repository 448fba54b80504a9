"""Preparing a ranking: the native requests for its texts, by a model's scores or by vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polargrid_local.api.prompts import Target, check_length, kept_of
from polargrid_local.api.requests import RerankRequest
from polargrid_local.chat.taint import Span
from polargrid_local.errors import refused

# Architectures whose scores are a label's share among all of them.
SHARES = ("qwen3", "qwen3vl")


class Ranking(NamedTuple):
    """`scores`: of the documents in their order, out of what a model makes of each of the requests."""

    requests: list[dict[str, Any]]  # native ones
    scores: Callable[[Sequence[Any]], list[float]]
    logistic: bool = False  # whether the scores are still to be made numbers of 0 to 1
    ignored: Sequence[str] = ()  # fields that change nothing of it


def by_vectors(request: RerankRequest, target: Target) -> Ranking:
    """By the cosine of a query's and a document's vector: their dot product, since they have the length 1. Each
    distinct text is embedded once."""
    limited, n_first = request.truncate_prompt_tokens is None, request.max_tokens_per_doc
    places: dict[str, int] = {}

    def place(text: str, field: str) -> int:
        if text not in places and limited:
            check_length([(text, False)], target, field, "embed")
        return places.setdefault(text, len(places))

    pairs = [
        (place(query, "query"), place(_beginning(text, n_first, target) if n_first else text, "documents"))
        for query, text in request.pairs
    ]

    def scores(made: Sequence[Any]) -> list[float]:
        import numpy  # imported here because a program that only chats starts sooner without it

        vectors = [numpy.asarray(vector, numpy.float64) for vector in made]
        return [float(vectors[query] @ vectors[document]) for query, document in pairs]

    common = {"task": "embed", **kept_of(request, target.info.get("n_ctx_train"))}
    requests = [{**common, "prompt": [(text, False)]} for text in places]
    return Ranking(requests, scores, ignored=["use_activation"] if request.use_activation else [])


def by_scores(request: RerankRequest, target: Target) -> Ranking:
    """By the score of a pair of query and document; of a model with several labels, by that of "yes", or the first."""
    limited = request.truncate_prompt_tokens is None
    for query in {query for query, _ in request.pairs if limited}:
        check_length([(query, False)], target, "query", "rank")
    template, n_first = target.info.get("rerank_template", ""), request.max_tokens_per_doc
    spans = [
        _pair(template, query, _beginning(text, n_first, target) if n_first else text) for query, text in request.pairs
    ]
    for prompt in spans if limited else ():
        check_length(prompt, target, "documents", "rank")
    common = {"task": "rank", **kept_of(request, target.info.get("n_ctx_train"))}
    labels = target.info.get("labels") or []
    label = labels.index("yes") if "yes" in labels else 0
    return Ranking(
        [{**common, "prompt": prompt} for prompt in spans],
        lambda made: [float(scores[label]) for scores in made],
        logistic=request.use_activation and _has_logits(labels, target),
    )


def _has_logits(labels: Sequence[str], target: Target) -> bool:
    """Whether a model's scores are still to be made numbers of 0 to 1. Raises ValidationError where they cannot be in
    the order of the scores."""
    if len(labels) < 2:
        return True
    if target.info.get("architecture") in SHARES:
        return False
    problem = f"must be false: this model tells {len(labels)} labels apart, and its scores are not shares of them"
    raise refused("use_activation", problem)


def _beginning(text: str, n_tokens: int, target: Target) -> str:
    """Of a text, as many of its first tokens. What they hold of a character that is cut is left out."""
    assert target.tokenize is not None and target.detokenize is not None  # every loaded model has them
    check_length([(text, False)], target, "documents", "rank")
    tokens = target.tokenize([(text, False)], False)
    if len(tokens) <= n_tokens:
        return text
    return target.detokenize(tokens[:n_tokens], False).decode("utf-8", "ignore")


_PLACE = re.compile(r"\{(query|document)\}")


def _pair(template: str, query: str, document: str) -> list[Span]:
    """A query and a document as spans: in the model's own template or, without one, by themselves: then the tokenizer
    puts the vocabulary's separators around them."""
    texts = {"query": query, "document": document}
    if not template:
        return [(query, False), (document, False)]
    parts = _PLACE.split(template)  # template text and the names of places in turn
    spans = [(texts[part], False) if i % 2 else (part, True) for i, part in enumerate(parts)]
    return [span for span in spans if span[0]]
