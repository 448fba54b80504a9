"""What a model can be asked for: generate, embed, rank. Anything else is refused by name, whatever the model is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_archs

from polargrid_local import Engine, InvalidModelError, ValidationError, inspect_model
from polargrid_local.errors import ContextLengthError

TASKS = {
    "bert": ["embed"],
    "bert-cls": ["embed"],
    "nomic-bert": ["embed"],
    "gemma-embedding": ["embed"],
    "llada": ["embed"],
    "dream": ["embed"],
    "t5": ["embed"],
    "t5encoder": ["embed"],
    "llama-bidirectional": ["embed"],
    "bert-reranker": ["rank"],
    "qwen3-reranker": ["rank"],
    "llama": ["generate", "embed"],
    "llama-last": ["generate", "embed"],
}
CHAT = [{"role": "user", "content": "hello"}]


def vector(engine: Engine, text: str) -> np.ndarray:
    return np.array(engine.embeddings(input=text)["data"][0]["embedding"])


@pytest.mark.parametrize("kind", TASKS)
def test_a_model_does_its_tasks_and_refuses_the_others(kind: str, tmp_path: Path) -> None:
    path = tiny_archs.write(tmp_path / f"{kind}.gguf", kind)
    tasks = TASKS[kind]
    assert inspect_model(path)["tasks"] == tasks
    with Engine(path) as engine:
        assert engine.info()["tasks"] == tasks
        asked = {
            "generate": [
                lambda: engine.chat_completion(messages=CHAT, max_tokens=2),
                lambda: engine.completion(prompt="hello", max_tokens=2),
                lambda: engine.chat_completion_stream(messages=CHAT),
                lambda: engine.generate("hello", max_tokens=2),
            ],
            "embed": [lambda: engine.embeddings(input=["hello", "world"])],
            "rank": [lambda: engine.rerank("hello", ["world", "hello"])],
        }
        for _ in range(2):  # a refusal leaves nothing behind
            for task, calls in asked.items():
                for call in calls:
                    if task in tasks:
                        call()
                    else:
                        with pytest.raises(ValidationError, match=f"what it can do: {', '.join(tasks)}$") as refused:
                            call()
                        assert (refused.value.param, refused.value.status) == ("model", 400)
        if "embed" in tasks:
            one, two = vector(engine, "hello there"), vector(engine, "good night")
            assert np.isclose(np.linalg.norm(one), 1, atol=1e-5) and not np.allclose(one, two, atol=1e-3)
            assert np.array_equal(one, vector(engine, "hello there"))
            assert len(one) == tiny_archs.N_EMBD


def test_a_part_of_a_model_is_refused_at_load(tmp_path: Path) -> None:
    path = tiny_archs.write(tmp_path / "m.gguf", "bert-reranker-no-head")
    with pytest.raises(InvalidModelError, match="classifier without its head"):
        Engine(path)


@pytest.mark.parametrize("labels", [["yes"], None])
def test_a_reranker_whose_every_score_would_be_one_is_refused(labels: list[str] | None, tmp_path: Path) -> None:
    path = tiny_archs.write(
        tmp_path / "m.gguf",
        "qwen3-reranker",
        metadata={"qwen3.classifier.output_labels": labels},
        tensors={"cls.output.weight": (1, tiny_archs.N_EMBD)},
    )
    with pytest.raises(InvalidModelError, match="at least 2, yes and no"):
        Engine(path)


def test_the_relevance_is_that_of_yes_wherever_the_label_stands(tmp_path: Path) -> None:
    scores = []
    for labels in ["yes", "no"], ["no", "yes"]:
        path = tiny_archs.write(
            tmp_path / "m.gguf", "qwen3-reranker", metadata={"qwen3.classifier.output_labels": labels}
        )
        with Engine(path) as engine:
            results = engine.rerank("the", ["a dog", "it is"])["results"]
        scores.append({result["index"]: result["relevance_score"] for result in results})
    # The same weights under exchanged labels: "yes" has now what "no" had, and the two add up to 1.
    assert all(np.isclose(scores[0][i] + scores[1][i], 1, atol=1e-5) for i in range(2))


def test_documents_are_ranked_by_the_models_scores(tmp_path: Path) -> None:
    documents = ["a dog", "it is a cat", "x", "it is a cat"]
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "bert-reranker")) as engine:
        reply = engine.rerank("what is it", documents)
        scores = {result["index"]: result["relevance_score"] for result in reply["results"]}
        assert [r["relevance_score"] for r in reply["results"]] == sorted(scores.values(), reverse=True)
        assert sorted(scores) == [0, 1, 2, 3] and scores[1] == scores[3] and len(set(scores.values())) == 3
        assert list(reply) == ["id", "object", "model", "results", "usage"] and reply["usage"]["prompt_tokens"] > 20
        assert {r["index"]: r["relevance_score"] for r in engine.rerank("what is it", documents)["results"]} == scores
        alone = [engine.rerank("what is it", [text])["results"][0]["relevance_score"] for text in documents]
        assert alone == [scores[i] for i in range(4)]  # the same number, by itself or among others
        other = engine.rerank("who", documents)["results"]
        assert {r["index"]: r["relevance_score"] for r in other} != scores  # the query takes part
        best = engine.rerank(query="what is it", documents=documents, top_n=2, return_documents=True)["results"]
        assert [r["index"] for r in best] == [r["index"] for r in reply["results"]][:2]
        assert all(r["document"] == {"text": documents[r["index"]]} for r in best)
        assert (
            engine.rerank({"query": "what is it", "documents": [{"text": d} for d in documents]})["results"]
            == reply["results"]
        )
        for wrong in (
            {"query": "", "documents": ["x"]},
            {"query": "x", "documents": []},
            {"query": "x", "documents": ["x"], "top_n": 0},
        ):
            with pytest.raises(ValidationError):
                engine.rerank(wrong)
        with pytest.raises(ContextLengthError):
            engine.rerank("x", ["ok", "a b c " * 200])
        with pytest.raises(ContextLengthError, match="^query: 3000 characters"):
            engine.rerank("a b c " * 500, ["ok"])


def test_a_reranking_template_is_filled_in_as_it_stands(tmp_path: Path) -> None:
    template = "<|im_start|>{query} and {document}<|im_end|>"
    path = tiny_archs.write(
        tmp_path / "m.gguf", "qwen3-reranker", metadata={"tokenizer.chat_template.rerank": template}
    )
    with Engine(path) as engine:
        assert engine.info()["labels"] == ["yes", "no"]
        used = engine.rerank("the", ["<|im_end|>{query}"])["usage"]["prompt_tokens"]
        # Control tokens and placeholders in a document are text. The BOS of `tokenize` is not counted.
        assert used == len(engine.tokenize("the and <|im_end|>{query}")) - 1 + 2


def test_a_text_longer_than_the_chat_context_is_embedded(smollm2: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. "
    with Engine(smollm2, n_ctx=512) as engine:
        assert engine.info()["n_ctx"] == 512
        reply = engine.embeddings(input=[text * 80, text * 40 + "Snow falls on the silent hills. " * 60])
        assert reply["usage"]["prompt_tokens"] > 1200  # each beyond the chat's context, within the model's
        long, other = (np.array(entry["embedding"]) for entry in reply["data"])
        assert not np.allclose(long, other, atol=1e-3)
        assert np.array_equal(long, vector(engine, text * 80))
        with pytest.raises(ContextLengthError, match=str(engine.info()["n_ctx_train"])):
            engine.embeddings(input=text * 2000)


@pytest.mark.peer
def test_a_text_in_chunks_is_pooled_over_all_its_tokens(smollm2: Path) -> None:
    """llama-cpp-python pools a text in a single pass."""
    llama_cpp = pytest.importorskip("llama_cpp")
    text = "".join(f"Sentence {i} of this text is about the number {i * i}. " for i in range(80))
    peer = llama_cpp.Llama(
        str(smollm2),
        embedding=True,
        n_ctx=2048,
        n_batch=2048,
        n_ubatch=2048,
        verbose=False,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
    )
    theirs = np.array(peer.create_embedding(text)["data"][0]["embedding"])
    peer.close()
    with Engine(smollm2) as engine:
        ours, half = vector(engine, text), vector(engine, text[: len(text) // 2])
    assert ours @ theirs / np.linalg.norm(theirs) > 0.9995 > half @ theirs / np.linalg.norm(theirs)
