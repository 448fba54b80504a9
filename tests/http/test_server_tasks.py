"""Models that cannot chat, behind a server: every foreign task is a 400, and the server's other streams go on."""

from __future__ import annotations

import base64
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_archs
import tiny_model
from serving import ServerProcess

KINDS = ("bert", "bert-reranker", "gemma-embedding", "llada", "dream", "t5", "t5encoder", "llama-bidirectional")
BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/completions/stream": {"prompt": "hello"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/rerank": {"query": "hello", "documents": ["world", "hello"]},
    "/v2/embed": {"texts": ["hello"]},
    "/v2/rerank": {"query": "hello", "documents": ["world", "hello"]},
}
RANKING = ("/v1/rerank", "/v2/rerank")  # models that only embed rank by the cosine
TASK = {"/v1/embeddings": "embed", "/v1/rerank": "rank", "/v2/embed": "embed", "/v2/rerank": "rank"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("models")
    tiny_model.write_random(folder / "random.gguf", n_ctx_train=16384)
    for kind in KINDS:
        tiny_archs.write(folder / f"{kind}.gguf", kind)
    process = ServerProcess(folder, folder / "log", model="random", n_threads=1)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("model", "path", "body"),
    [
        ("random", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ("random", "/v1/completions", {"prompt": "hello"}),
        ("bert", "/v1/embeddings", {"input": "hello"}),
        ("bert-reranker", "/v1/rerank", {"query": "hello", "documents": ["world", "hello"]}),
        ("bert-reranker", "/v1/score", {"text_1": "hello", "text_2": ["world", "hello"]}),
        ("bert-reranker", "/v1/score", {"queries": "hello", "documents": ["world", "hello"]}),
    ],
)
def test_one_path_for_all_requests(server: ServerProcess, model: str, path: str, body: dict[str, object]) -> None:
    asked = {"model": model, **body} | ({"max_tokens": 6, "seed": 1} if model == "random" else {})
    direct, other = (server.post(place, asked).json() for place in (path, "/invocations"))
    apart = ("id", "created", "pg_metadata", "usage")  # which tells what is cached by then
    assert {**direct, **dict.fromkeys(apart)} == {**other, **dict.fromkeys(apart)}
    if model == "random":
        lines = server.post("/invocations", {**asked, "stream": True}).text
        assert lines.endswith("data: [DONE]\n\n")


def test_a_body_that_may_be_any_request_is_refused(server: ServerProcess) -> None:
    for body in ({}, {"model": "random"}, {"documents": ["x"]}, {"prompt": None}):
        reply = server.post("/invocations", body)
        assert reply.status_code == 400 and "messages, prompt, input, query" in reply.json()["error"]["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_other_tasks_are_refused_and_streams_go_on(kind: str, server: ServerProcess) -> None:
    stream: list[int] = []
    chat = {"model": "random", "prompt": "the time of day", "max_tokens": 400, "ignore_eos": True}
    other = threading.Thread(
        target=lambda: stream.append(server.post("/v1/completions", chat).json()["usage"]["completion_tokens"])
    )
    other.start()
    [row] = [row for row in server.get("/v1/models").json()["data"] if row["id"] == kind]
    for path, body in BODIES.items():
        answer = server.post(path, {"model": kind, **body})
        if TASK.get(path, "generate") in row["tasks"] or (path in RANKING and row.get("ranks_by") == "cosine"):
            assert answer.status_code == 200, answer.text
            continue
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "model", "invalid_request")
        assert f"what it can do: {', '.join(row['tasks'])}" in error["message"]
    other.join()
    assert stream == [400]
    assert server.get("/health").status_code == 200


def test_reranking_has_the_shape_that_clients_know(server: ServerProcess) -> None:
    body = {"model": "bert-reranker", "query": "what is it", "documents": ["a dog", "it is a cat", "x"]}
    reply = server.post("/v1/rerank", {**body, "top_n": 2, "return_documents": True}).json()
    assert list(reply) == ["id", "object", "model", "results", "usage"] and reply["model"] == "bert-reranker"
    assert len(reply["results"]) == 2
    for result in reply["results"]:
        assert list(result) == ["index", "relevance_score", "document"]
        assert result["document"] == {"text": body["documents"][result["index"]]}
    assert reply["results"][0]["relevance_score"] >= reply["results"][1]["relevance_score"]
    plain = server.post("/rerank", body).json()["results"]
    assert [{k: v for k, v in r.items() if k != "document"} for r in reply["results"]] == plain[:2]
    for wrong, field in (({"documents": []}, "documents"), ({"query": None}, "query"), ({"top_n": 0}, "top_n")):
        answer = server.post("/v1/rerank", {**body, **wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_scores_of_0_to_1_by_every_name(server: ServerProcess) -> None:
    body = {"model": "bert-reranker", "query": "what is it", "documents": ["a dog", "it is a cat", "x"]}
    raw = server.post("/v1/rerank", body).json()["results"]
    order = [row["index"] for row in raw]
    expected = [1 / (1 + math.exp(-row["relevance_score"])) for row in raw]
    for path, more in (
        ("/v1/rerank", {"use_activation": True}),
        ("/rerank", {"activation": True}),
        ("/v1/rerank", {"softmax": True}),
        ("/v2/rerank", {}),
    ):
        activated = server.post(path, {**body, **more}).json()["results"]
        assert [row["index"] for row in activated] == order
        assert [row["relevance_score"] for row in activated] == pytest.approx(expected)
    texts = {"model": "bert-reranker", "query": body["query"], "texts": body["documents"]}
    for given, scores in ({"raw_scores": False}, expected), ({}, [row["relevance_score"] for row in raw]):
        assert [row["score"] for row in server.post("/rerank", {**texts, **given}).json()] == pytest.approx(scores)
    pairs = {"model": "bert-reranker", "text_1": body["query"], "text_2": body["documents"], "use_activation": True}
    scored = server.post("/v1/score", pairs).json()["data"]
    assert [scored[index]["score"] for index in order] == pytest.approx(expected)
    assert server.post("/v2/rerank", {**body, "use_activation": False}).json()["results"] == raw


def test_pairs_are_cut_by_every_name(server: ServerProcess) -> None:
    long = "a b c " * 200
    cut = {"model": "bert-reranker", "truncate_prompt_tokens": -1, "truncation_side": "right"}
    for path, body in (
        ("/v1/rerank", {"query": "what is it", "documents": [long]}),
        ("/rerank", {"query": "what is it", "texts": [long]}),
        ("/v2/rerank", {"query": "what is it", "documents": [long]}),
        ("/v1/score", {"text_1": "what is it", "text_2": long}),
    ):
        refused = server.post(path, {"model": "bert-reranker", **body})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert server.post(path, {**cut, **body}).status_code == 200


def test_scores_by_the_cosine_of_vectors_in_every_form(server: ServerProcess) -> None:
    query, documents = "what is it", ["a dog", "it is a cat", "x", "a dog"]
    rows = {row["id"]: row.get("ranks_by") for row in server.get("/v1/models").json()["data"]}
    assert (rows["bert"], rows["bert-reranker"], rows["random"]) == ("cosine", "scores", None)
    body = {"model": "bert", "query": query, "documents": documents}
    data = server.post("/v1/embeddings", {"model": "bert", "input": [query, *documents]}).json()["data"]
    asked, *vectors = (row["embedding"] for row in data)
    expected = [math.fsum(a * b for a, b in zip(asked, vector, strict=True)) for vector in vectors]
    raw = server.post("/v1/rerank", body).json()
    assert list(raw) == ["id", "object", "model", "results", "usage"]
    assert [row["relevance_score"] for row in raw["results"]] == pytest.approx(sorted(expected, reverse=True), abs=1e-6)
    for names in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"), ("queries", "items")):
        scored = server.post("/score", {"model": "bert", **dict(zip(names, (query, documents), strict=True))}).json()
        assert [row["score"] for row in scored["data"]] == pytest.approx(expected, abs=1e-6)
    ranked = server.post("/rerank", {"model": "bert", "query": query, "texts": documents})
    assert [row["score"] for row in ranked.json()] == [row["relevance_score"] for row in raw["results"]]
    ignored = "x-polargrid-ignored"
    cohere = server.post("/v2/rerank", body)
    assert cohere.json()["results"] == raw["results"] and ignored not in cohere.headers
    pairs = {"model": "bert", "text_1": query, "text_2": documents}
    for path, given, name in (
        ("/v1/rerank", body, "use_activation"),
        ("/v1/rerank", body, "softmax"),
        ("/v2/rerank", body, "use_activation"),
        ("/v1/score", pairs, "activation"),
    ):
        answer = server.post(path, {**given, name: True})
        assert answer.headers[ignored] == f'["{name}"]'
        assert ignored not in server.post(path, {**given, name: False}).headers
    answer = server.post("/rerank", {"model": "bert", "query": query, "texts": documents, "raw_scores": False})
    assert answer.headers[ignored] == '["raw_scores"]' and answer.json() == ranked.json()


def test_what_is_pooled_is_what_is_embedded(server: ServerProcess) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]}
    for body in (
        {"input": ["hello there", "good night"]},
        {"input": "a b c " * 60, "truncate_prompt_tokens": -1, "truncation_side": "right"},
        {"input": [5, 6, 7], "dimensions": 8, "encoding_format": "base64"},
        chat,
        {**chat, "continue_final_message": True, "chat_template_kwargs": {"date_string": "today"}},
    ):
        embedded = server.post("/v1/embeddings", {"model": "bert", **body}).json()
        for task in {}, {"task": "embed"}, {"task": None, "data": None}:
            pooled = server.post("/pooling", {"model": "bert", **body, **task}).json()
            assert list(pooled) == ["id", "object", "created", "model", "data", "usage"]
            assert (pooled["object"], pooled["model"], pooled["usage"]) == ("list", "bert", embedded["usage"])
            assert pooled["data"] == [
                {"index": row["index"], "object": "pooling", "data": row["embedding"]} for row in embedded["data"]
            ]
    for task in ("classify", "token_embed", "token_classify", "embed&token_classify", "plugin", ""):
        answer = server.post("/pooling", {"model": "bert", "input": "hello", "task": task or "score"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "task")
        assert answer.json()["detail"].startswith(f"Unsupported task: '{task or 'score'}': must be embed")
    ranking = server.post("/pooling", {"model": "bert-reranker", "input": "hello"})
    assert ranking.status_code == 400 and "what it can do: rank" in ranking.json()["detail"]
    for wrong, field in (
        ({"task": 5}, "task"),
        ({"data": {"a": "b"}}, "data"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"dimensions": 65}, "dimensions"),
        (chat, "messages"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"input": None}, "input"),
        (
            {"input": None, **chat, "add_generation_prompt": True, "continue_final_message": True},
            "add_generation_prompt",
        ),
    ):
        refused = server.post("/pooling", {"model": "bert", "input": "hello", **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field), refused.text
    told = server.post("/pooling", {"model": "bert", "input": "hello", "unheard_of": 1})
    assert told.headers["x-polargrid-ignored"] == '["unheard_of"]'


def test_vectors_in_coheres_words(server: ServerProcess) -> None:
    texts = ["hello there", "good night"]
    body = {"model": "bert", "texts": texts, "embedding_types": ["float", "base64", "ubinary", "int8"]}
    answer = server.post("/v2/embed", {**body, "input_type": "search_query", "unheard_of": 1})
    assert answer.headers["x-polargrid-ignored"] == '["input_type","unheard_of"]'
    told = answer.json()
    plain = server.post("/v1/embeddings", {"model": "bert", "input": texts}).json()
    vectors = [row["embedding"] for row in plain["data"]]
    assert list(told) == ["id", "embeddings", "texts", "meta", "response_type"]
    assert told["embeddings"]["float"] == vectors and told["texts"] == texts
    assert told["meta"]["billed_units"]["input_tokens"] == plain["usage"]["prompt_tokens"]
    for vector, text, bits in zip(vectors, told["embeddings"]["base64"], told["embeddings"]["ubinary"], strict=True):
        assert list(struct.unpack(f"<{len(vector)}f", base64.b64decode(text))) == vector
        assert "".join(f"{byte:08b}" for byte in bits) == "".join("01"[x >= 0] for x in vector)
    parts = [{"content": [{"type": "text", "text": text}]} for text in texts]
    inputs = {"model": "bert", "inputs": parts, "embedding_types": ["int8"], "output_dimension": 64}
    assert server.post("/v2/embed", inputs).json()["embeddings"] == {"int8": told["embeddings"]["int8"]}


def test_texts_that_are_too_long_are_cut_as_cohere_cuts_them(server: ServerProcess) -> None:
    start, end = "a b c " * 30, "x y z " * 30  # 180 tokens, where the model takes 128
    body = {"model": "bert", "texts": [start + end]}

    def vector(**more: object) -> list[float]:
        reply = server.post("/v2/embed", {**body, **more})
        assert reply.status_code == 200, reply.text
        return list(reply.json()["embeddings"]["float"][0])

    assert vector() == vector(truncate="END") == vector(texts=[start + end + end])
    assert vector(truncate="START") == vector(texts=[start + start + end], truncate="START") != vector()
    assert vector(max_tokens=9) == vector(texts=["a b c " * 30], max_tokens=9) != vector()
    refused = server.post("/v2/embed", {**body, "truncate": "NONE"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    wide = server.post("/v2/embed", {**body, "output_dimension": 65})
    assert (wide.status_code, wide.json()["error"]["param"]) == (400, "output_dimension")
    assert wide.json()["message"].startswith("output_dimension: must be between 1 and 64")
