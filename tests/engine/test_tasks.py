"""What a model can be asked for: generate, embed, rank. Anything else is refused by name, whatever the model is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_archs

from polargrid_local import Engine, InvalidModelError, ValidationError, inspect_model
from polargrid_local.api.parse import parse_request
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
                    if task in tasks or (task == "rank" and tasks == ["embed"]):  # by the cosine of vectors
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


def scores_of(engine: Engine, query: str, documents: list[str], **options: Any) -> list[float]:
    """In the order of the documents."""
    results = engine.rerank(query, documents, **options)["results"]
    return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]


def test_activated_scores_are_logistic_and_in_the_same_order(tmp_path: Path) -> None:
    documents = ["a dog", "it is a cat", "x", "what is it", "it is a cat", "a b c d e f"]
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "bert-reranker")) as engine:
        raw = engine.rerank("what is it", documents)["results"]
        activated = engine.rerank("what is it", documents, use_activation=True)["results"]
        assert [row["index"] for row in activated] == [row["index"] for row in raw]
        expected = [1 / (1 + math.exp(-row["relevance_score"])) for row in raw]
        assert [row["relevance_score"] for row in activated] == pytest.approx(expected, rel=1e-12)
        assert engine.rerank("what is it", documents, use_activation=False)["results"] == raw
        joined = scores_of(engine, "what is it", documents, use_activation=True)
        alone = [scores_of(engine, "what is it", [text], use_activation=True)[0] for text in documents]
        assert joined == alone


def test_scores_that_are_shares_are_activated_already(tmp_path: Path) -> None:
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "qwen3-reranker")) as engine:
        raw = scores_of(engine, "the", ["a dog", "it is"])
        assert scores_of(engine, "the", ["a dog", "it is"], use_activation=True) == raw
        assert all(0 <= score <= 1 for score in raw)
    path = tiny_archs.write(
        tmp_path / "labels.gguf",
        "bert-reranker",
        metadata={"bert.classifier.output_labels": ["no", "yes"]},
        tensors={"cls.output.weight": (2, tiny_archs.N_EMBD), "cls.output.bias": (2,)},
    )
    with Engine(path) as engine:
        scores_of(engine, "who", ["a dog"])
        with pytest.raises(ValidationError, match="^use_activation: must be false: this model tells 2 labels apart"):
            engine.rerank("who", ["a dog"], use_activation=True)


def test_a_pair_that_is_cut_is_the_shorter_pair(tmp_path: Path) -> None:
    template = {"tokenizer.chat_template.rerank": "{query}<|im_end|>{document}"}
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "qwen3-reranker", metadata=template)) as engine:

        def tokens(text: str) -> list[int]:
            return engine.tokenize(text)[1:]  # without the one that begins a text

        def cut(n: int, **options: Any) -> list[float]:
            reply = engine.rerank(query, [document], truncate_prompt_tokens=n, **options)
            assert reply["usage"]["prompt_tokens"] == min(n, n_all)
            return [reply["results"][0]["relevance_score"]]

        query, document = "who is it", "the dog and the cat"
        in_query, in_document = tokens(query), tokens(document)
        n_all = len(in_query) + 1 + len(in_document)
        compared = 0
        for k in range(1, len(in_document) + 1):
            shorter = engine.detokenize(in_document[:k])
            if tokens(shorter) == in_document[:k]:
                compared += 1
                assert cut(len(in_query) + 1 + k, truncation_side="right") == scores_of(engine, query, [shorter])
        for k in range(1, len(in_query) + 1):
            shorter = engine.detokenize(in_query[-k:])
            if tokens(shorter) == in_query[-k:]:
                compared += 1
                assert cut(k + 1 + len(in_document)) == scores_of(engine, shorter, [document])
        assert compared > 10
        whole = scores_of(engine, query, [document])
        assert cut(n_all) == cut(n_all + 1) == cut(1000, truncation_side="right") == whole != cut(n_all - 1)
        assert cut(1) != cut(1, truncation_side="right")


def test_a_pair_that_is_too_long_is_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "bert-reranker")) as engine:
        long, longer = "a b c " * 60, "a b c " * 20000
        right = engine.rerank("who", [long], truncate_prompt_tokens=-1, truncation_side="right")
        assert right["usage"]["prompt_tokens"] == engine.info()["n_ctx_train"]
        for query, document, side in (("who", longer, "right"), ("who", longer, "left"), (longer, "who", "left")):
            reply = engine.rerank(query, [document], truncate_prompt_tokens=-1, truncation_side=side)
            assert reply["usage"]["prompt_tokens"] == engine.info()["n_ctx_train"]
            assert side == "left" or reply["results"] == right["results"]
        left = [engine.rerank(query, [long], truncate_prompt_tokens=-1)["results"] for query in ("who", "it is")]
        assert left[0] == left[1]  # nothing of the query is left
        with pytest.raises(ContextLengthError):
            engine.rerank("who", [long])
        with pytest.raises(ContextLengthError):
            engine.rerank("who", [long], truncate_prompt_tokens=1000)


def by_index(results: list[Any]) -> dict[int, float]:
    return {row["index"]: row["relevance_score"] for row in results}


@pytest.mark.parametrize("kind", ["bert", "gemma-embedding", "llama", "llama-last"])
def test_a_chats_vector_is_that_of_its_prompt(kind: str, tmp_path: Path) -> None:
    messages: Any = [
        {"role": "user", "content": "it <|im_end|>"},
        {"role": "assistant", "content": "a"},
    ]

    with Engine(tiny_archs.write(tmp_path / "m.gguf", kind)) as engine:

        def embedded(**more: Any) -> np.ndarray:
            reply = engine.embeddings(encoding_format="numpy", **more)
            assert len(reply["data"]) == 1 and np.isclose(np.linalg.norm(reply["data"][0]["embedding"]), 1, atol=1e-5)
            return reply["data"][0]["embedding"]

        tokens = engine.tokenize(messages=messages)  # with what begins an answer
        opened = embedded(messages=messages, add_generation_prompt=True)
        assert np.array_equal(opened, embedded(input=tokens))
        plain, cut = embedded(messages=messages), embedded(messages=messages, continue_final_message=True)
        if kind.startswith("llama"):  # whose tasks tell the prompt's tokens
            whole: Any = {"messages": messages, "add_generation_prompt": False}
            for vector_of, more in (plain, {}), (cut, {"continue_final_message": True}):
                text = engine.apply_template(**whole, **more)
                assert "it <|im_end|>" in text
                parsed = parse_request("chat", {**whole, **more})
                assert np.array_equal(vector_of, embedded(input=engine.tokenize(messages=parsed)))
        assert not np.array_equal(plain, opened) and not np.array_equal(plain, cut)
        assert np.allclose(plain, embedded(messages=messages, dimensions=tiny_archs.N_EMBD), atol=1e-6)
        kept = engine.embeddings(messages=messages, truncate_prompt_tokens=5)
        assert kept["usage"]["prompt_tokens"] == 5
        for options in ({}, {"truncate_prompt_tokens": 1000}):
            with pytest.raises(ContextLengthError):
                engine.embeddings(messages=[{"role": "user", "content": "a b c " * 20000}], **options)


@pytest.mark.parametrize("kind", ["bert", "gemma-embedding"])
def test_a_model_that_only_embeds_ranks_by_the_cosine(kind: str, tmp_path: Path) -> None:
    query, documents = "what is it", ["a dog", "it is a cat", "x", "what is it", "a dog"]
    with Engine(tiny_archs.write(tmp_path / "m.gguf", kind)) as engine:
        assert engine.info()["ranks_by"] == "cosine"
        vectors = {text: vector(engine, text) for text in {query, *documents}}
        cosines = [float(vectors[query] @ vectors[text]) for text in documents]
        reply = engine.rerank(query, documents)
        results = reply["results"]
        assert scores_of(engine, query, documents) == pytest.approx(cosines, abs=1e-6)
        assert [row["index"] for row in results] == sorted(range(5), key=lambda i: -by_index(results)[i])
        assert results[0]["index"] == 3 and results[0]["relevance_score"] == pytest.approx(1, abs=1e-6)
        distinct = engine.embeddings(input=list(vectors))["usage"]
        assert reply["usage"] == distinct  # a text is read once, wherever it stands
        asked = {"query": ["x", "a dog", "x"], "documents": ["what is it", "x", "a dog"]}
        pairs = by_index(engine.rerank(asked)["results"])
        assert pairs[0] == scores_of(engine, "x", ["what is it"])[0] and pairs[1] == pairs[2]
        best = engine.rerank(query, documents, top_n=2, return_documents=True)
        assert [row["document"]["text"] for row in best["results"]] == [documents[row["index"]] for row in results[:2]]
        activated = engine.rerank(query, documents, use_activation=True)
        assert activated["results"] == results and "pg_metadata" not in reply
        assert activated["pg_metadata"] == {"ignored_fields": ["use_activation"]}


def test_texts_that_are_ranked_by_the_cosine_are_cut_one_by_one(tmp_path: Path) -> None:
    long = "a b c " * 60
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "bert")) as engine:
        for query, document in ((long, "who"), ("who", long), ("who", long * 1000)):
            with pytest.raises(ContextLengthError):
                engine.rerank(query, [document])
        for side in ("left", "right"):
            options: Any = {"truncate_prompt_tokens": -1, "truncation_side": side}
            data = engine.embeddings(input=["who is it", long], **options)
            one, other = (np.array(row["embedding"]) for row in data["data"])
            cut = engine.rerank("who is it", [long], **options)
            assert cut["results"][0]["relevance_score"] == pytest.approx(float(one @ other), abs=1e-6)
            assert cut["usage"] == data["usage"]
        first = scores_of(engine, "who is it", ["a b c"])
        assert scores_of(engine, "who is it", [long], max_tokens_per_doc=3) == first
        both = engine.rerank("who", [long, long + "d"], max_tokens_per_doc=3)  # which are one text then
        assert both["usage"] == engine.embeddings(input=["who", "a b c"])["usage"]


def test_the_vectors_of_a_model_that_generates_rank_nothing(tmp_path: Path) -> None:
    with Engine(tiny_archs.write(tmp_path / "m.gguf", "llama")) as engine:
        assert engine.info()["ranks_by"] is None
        with pytest.raises(ValidationError, match="does not rank documents; what it can do: generate, embed$"):
            engine.rerank("who", ["a dog"])


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
