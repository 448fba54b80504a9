"""Cohere's words: what is made of a request, and what is said of an answer."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.cohere import INPUT_TYPES, TYPES, CohereEmbed, CohereRerank
from polargrid_local.dialects.exchange import Exchange, Moment, Refusal
from polargrid_local.errors import ValidationError

NOW = Moment("0123456789abcdef01234567", 1767225600.25)
VECTORS = st.integers(1, 20).flatmap(
    lambda n: st.lists(st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n), min_size=1, max_size=4)
)


def embed(**body: Any) -> CohereEmbed:
    return CohereEmbed(body, NOW, "embedding")


def rerank(**body: Any) -> CohereRerank:
    return CohereRerank({"query": "q", "documents": ["a", "b"], **body}, NOW, "rerank")


def parsed(exchange: Exchange) -> Any:
    return parse_request(exchange.kind, exchange.body, max_tokens_limit=None, ignored=exchange.ignored)


def embedded(vectors: list[list[float]], *types: str) -> Any:
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    answer = {"data": data, "model": "m", "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    return embed(texts=["x"] * len(vectors), embedding_types=list(types)).reply(answer)


# --- embed ------------------------------------------------------------------------------------------------------------


def test_texts_are_inputs() -> None:
    exchange = embed(model="m", texts=["a", "b"], output_dimension=4, priority=3, images=[], unheard_of=1)
    request = parsed(exchange)
    assert (request.model, request.inputs, request.dimensions) == ("m", ["a", "b"], 4)
    assert exchange.ignored == ["unheard_of"] and not exchange.streaming
    content = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "new": 1}]
    exchange = embed(inputs=[{"content": content}, {"content": [{"type": "text", "text": "c"}]}])
    assert parsed(exchange).inputs == ["a b", "c"] and exchange.ignored == ["inputs[0].content[1].new"]


@pytest.mark.parametrize("input_type", INPUT_TYPES)
def test_what_a_text_is_for_changes_nothing_and_is_told(input_type: str) -> None:
    exchange = embed(texts=["a"], input_type=input_type)
    assert parsed(exchange) == parsed(embed(texts=["a"])) and exchange.ignored == ["input_type"]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({}, (-1, "right")),
        ({"truncate": "END"}, (-1, "right")),
        ({"truncate": "START"}, (-1, "left")),
        ({"truncate": "NONE"}, (None, "left")),
        ({"max_tokens": 5}, (5, "right")),
        ({"max_tokens": 5.0, "truncate": "START"}, (5, "left")),
    ],
)
def test_what_is_left_of_a_text(body: dict[str, Any], kept: tuple[int | None, str]) -> None:
    request = parsed(embed(texts=["a"], **body))
    assert (request.truncate_prompt_tokens, request.truncation_side) == kept


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", ""]}, "texts[1]"),
        ({"texts": ["a", [5]]}, "texts[1]"),
        ({"texts": ["a"] * 3000}, "texts"),
        ({"texts": ["a"], "inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{}]}, "inputs[0].content"),
        ({"inputs": [{"content": [{"type": "text"}]}]}, "inputs[0].content[0].text"),
        ({"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "inputs[0].content[0].type"),
        ({"images": ["data:"]}, "images"),
        ({"texts": ["a"], "input_type": "image"}, "input_type"),
        ({"texts": ["a"], "embedding_types": ["float", "int4"]}, "embedding_types[1]"),
        ({"texts": ["a"], "embedding_types": "float"}, "embedding_types"),
        ({"texts": ["a"], "truncate": "LEFT"}, "truncate"),
        ({"texts": ["a"], "max_tokens": 0}, "max_tokens"),
        ({"texts": ["a"], "max_tokens": 2**31}, "max_tokens"),
        ({"texts": ["a"], "max_tokens": 5, "truncate": "NONE"}, "max_tokens"),
        ({"texts": ["a"], "output_dimension": 0}, "output_dimension"),
    ],
)
def test_what_is_refused_is_told_by_its_name_here(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(embed(**body))
    error = caught.value
    told = CohereEmbed.error(Refusal(error.message, error.type, error.code, error.param, 400))
    assert told["error"]["param"] == field and told["message"] == told["error"]["message"] == told["detail"]
    assert told["message"].startswith(f"{field}: " if field != "input_type" else "Unsupported input_type 'image': ")


@given(VECTORS)
def test_the_forms_of_a_vector(vectors: list[list[float]]) -> None:
    told = embedded(vectors, *TYPES)["embeddings"]
    rows = np.array(vectors, np.float32)
    assert list(told) == list(TYPES) and told["float"] == vectors
    for name in TYPES:
        assert [embedded([vector], name)["embeddings"][name][0] for vector in vectors] == told[name]  # as alone
    bits = [np.frombuffer(base64.b64decode(text), "<f4") for text in told["base64"]]
    assert np.array_equal(np.array(bits).view(np.uint32), rows.view(np.uint32))
    for row, packed, signed in zip(rows, told["ubinary"], told["binary"], strict=True):
        unpacked = np.unpackbits(np.array(packed, np.uint8))
        assert len(packed) == math.ceil(len(row) / 8) and not unpacked[len(row) :].any()
        assert np.array_equal(unpacked[: len(row)], row >= 0)
        assert signed == [byte - 128 for byte in packed]
    for row, signed, unsigned in zip(rows, told["int8"], told["uint8"], strict=True):
        largest = float(np.abs(row).max())
        assert np.abs(signed).max() == (127 if largest else 0)
        assert np.allclose(np.array(signed) / 127 * largest, row, atol=largest / 254 * 1.001)
        assert unsigned == [number + 128 for number in signed]


def test_an_answer_has_what_clients_read() -> None:
    assert embedded([[0.5, -0.5]], "binary") == {
        "id": f"embd-{NOW.id}",
        "embeddings": {"binary": [[0]]},
        "texts": ["x"],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 7, "image_tokens": 0}},
        "response_type": "embeddings_by_type",
    }
    assert embedded([[0.5]])["embeddings"] == {"float": [[0.5]]}


# --- rerank -----------------------------------------------------------------------------------------------------------


def test_rankings() -> None:
    exchange = rerank(model="m", top_n=1, max_tokens_per_doc=9, priority=1, unheard_of=1)
    request = parsed(exchange)
    assert (request.query, request.documents, request.top_n) == ("q", ["a", "b"], 1)
    assert (request.max_tokens_per_doc, request.use_activation) == (9, True)
    assert exchange.ignored == ["unheard_of"] and not exchange.streaming
    results = [{"index": 1, "relevance_score": 0.75}]
    answer = {"id": "rerank-1", "results": results, "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    assert exchange.reply({**answer, "object": "list", "model": "m"}) == {
        "id": "rerank-1",
        "results": results,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 5, "image_tokens": 0}},
    }
    words = {"use_activation": False, "truncate_prompt_tokens": 5, "truncation_side": "right", "return_documents": True}
    request = parsed(rerank(**words, relevant_spans={"mode": "disabled"}))
    assert {name: getattr(request, name) for name in words} == words


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"relevant_spans": {"mode": "enabled"}}, "relevant_spans"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"instruction": "find it"}, "instruction"),
        ({"max_tokens_per_query": 5}, "max_tokens_per_query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"top_n": 0}, "top_n"),
    ],
)
def test_what_no_ranking_has_is_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(rerank(**body))
    error = caught.value
    assert error.param == field
    told = CohereRerank.error(Refusal(error.message, error.type, error.code, error.param, 400))
    assert told["message"] == told["error"]["message"]
