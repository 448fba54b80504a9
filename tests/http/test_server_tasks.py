"""Models that cannot chat, behind a server: every foreign task is a 400, and the server's other streams go on."""

from __future__ import annotations

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
}
TASK = {"/v1/embeddings": "embed", "/v1/rerank": "rank"}


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
        if TASK.get(path, "generate") in row["tasks"]:
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
