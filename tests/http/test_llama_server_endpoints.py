"""What llama-server and vLLM serve beside OpenAI's API, over a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import openai
import pytest
import tiny_archs
from serving import SAID, SMOLLM2, ServerProcess

TEXT = "".join(SAID)
PROMPT = {"model": "scripted", "prompt": "\ue000"}


def events(server: ServerProcess, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.Client(trust_env=False) as client:
        with httpx_sse.connect_sse(client, "POST", f"{server.url}/completion", json={**body, "stream": True}) as source:
            return [json.loads(event.data) for event in source.iter_sse()]


def test_completion(server: ServerProcess) -> None:
    reply = server.post("/completion", PROMPT).json()
    assert (reply["content"], reply["stop"], reply["stop_type"]) == (TEXT, True, "eos")
    assert (reply["tokens_predicted"], reply["truncated"], reply["model"]) == (len(SAID), False, "scripted")
    assert reply["timings"]["predicted_n"] == len(SAID) and reply["tokens_evaluated"] >= 1
    cut = server.post("/completion", {**PROMPT, "n_predict": 2, "temperature": 0.5}).json()
    assert (cut["content"], cut["stop_type"]) == ("".join(SAID[:2]), "limit")
    assert cut["generation_settings"] == {"n_predict": 2, "temperature": 0.5}
    stopped = server.post("/completion", {**PROMPT, "stop": ["nothing", "caf"]}).json()
    assert (stopped["content"], stopped["stop_type"], stopped["stopping_word"]) == (
        "".join(SAID[:2]) + " ",
        "word",
        "caf",
    )


def test_a_completion_comes_in_events(server: ServerProcess) -> None:
    *told, last = events(server, PROMPT)
    assert [event["content"] for event in told] == SAID
    assert not any(event["stop"] for event in told)
    assert [event["tokens_predicted"] for event in told] == list(range(1, len(SAID) + 1))
    whole = server.post("/completion", PROMPT).json()
    assert {**last, "content": TEXT, "timings": 0} == {**whole, "timings": 0}


def test_probabilities(server: ServerProcess) -> None:
    body = {**PROMPT, "n_probs": 3}
    whole = server.post("/completion", body).json()["completion_probabilities"]
    assert [entry["token"] for entry in whole][: len(SAID)] == SAID
    assert all(bytes(entry["bytes"]).decode() == token for entry, token in zip(whole, SAID))
    streamed = [entry for event in events(server, body) for entry in event.get("completion_probabilities", ())]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]


def test_a_completion_held_to_a_schema_and_biased(server: ServerProcess) -> None:
    body = {"model": SMOLLM2, "prompt": "A person: ", "temperature": 0}
    schema = {"type": "object", "properties": {"age": {"enum": [1, 2]}}, "required": ["age"]}
    schema["additionalProperties"] = False
    held = server.post("/completion", {**body, "json_schema": schema}).json()
    assert json.loads(held["content"])["age"] in (1, 2)
    free = server.post("/completion", {**body, "n_predict": 1, "n_probs": 1}).json()
    (token,) = server.post("/tokenize", {"model": SMOLLM2, "content": free["content"]}).json()["tokens"]
    banned = server.post("/completion", {**body, "n_predict": 1, "logit_bias": [[token, False]]}).json()
    assert banned["content"] != free["content"]


def test_errors_name_the_field(server: ServerProcess) -> None:
    for field, value in (("n_predict", -3), ("repeat_penalty", 11), ("samplers", ["top_k"]), ("prompt", ["a", "b"])):
        reply = server.post("/completion", {**PROMPT, field: value})
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, 400) and error["message"].startswith(f"{field}: "), error
    missing = server.post("/completion", {**PROMPT, "model": "nope"})
    assert missing.status_code == 404 and "nope" in missing.json()["error"]["message"]


def test_tokens(server: ServerProcess) -> None:
    asked: dict[str, Any] = {"model": SMOLLM2, "content": "Hello<|im_end|>"}
    special = server.post("/tokenize", asked).json()["tokens"]
    plain = server.post("/tokenize", {**asked, "parse_special": False}).json()["tokens"]
    assert len(special) == 2 and len(plain) > 3
    scripted = {"model": "scripted", "content": "the"}  # a model whose texts begin with a token of their own
    assert len(server.post("/tokenize", {**scripted, "add_special": True}).json()["tokens"]) == 2
    assert len(server.post("/tokenize", scripted).json()["tokens"]) == 1
    prompt = server.post("/tokenize", {"model": "scripted", "prompt": "the"}).json()
    assert (prompt["count"], prompt["max_model_len"], len(prompt["tokens"])) == (2, 2048, 2)
    messages = [{"role": "user", "content": "Hello"}]
    chat = server.post("/tokenize", {"model": SMOLLM2, "messages": messages}).json()
    usage = server.post("/chat/completions", {"model": SMOLLM2, "messages": messages, "max_tokens": 1}).json()["usage"]
    assert chat["count"] == len(chat["tokens"]) == usage["prompt_tokens"]
    for wrong, field in (
        ({}, "content"),
        ({"content": 5}, "content"),
        ({"content": "x", "with_pieces": "yes"}, "with_pieces"),
    ):
        assert server.post("/tokenize", wrong).json()["error"]["message"].startswith(f"{field}: ")


def test_the_prompt_of_a_chat(server: ServerProcess) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    tool = {"type": "function", "function": {"name": "get_weather", "description": "The weather."}}
    prompt = server.post("/apply-template", {"model": SMOLLM2, "messages": messages}).json()["prompt"]
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n") and "Be brief." in prompt
    tools = server.post("/apply-template", {"model": SMOLLM2, "messages": messages, "tools": [tool]}).json()["prompt"]
    assert "get_weather" in tools
    assert server.post("/apply-template", {"model": SMOLLM2}).json()["error"]["message"].startswith("messages: ")


def test_how_a_model_is_served(server: ServerProcess) -> None:
    props = server.get("/props", params={"model": SMOLLM2}).json()
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (8, 2048)
    assert props["model_path"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert props["modalities"] == {"vision": False, "audio": False} and "<|im_start|>" in props["chat_template"]
    slots = server.get("/slots", params={"model": SMOLLM2}).json()
    assert [slot["id"] for slot in slots] == list(range(8))
    assert {slot["n_ctx"] for slot in slots} == {2048}


def test_paths_without_a_version(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=server.url, api_key="any", max_retries=0) as client:
        assert SMOLLM2 in {model.id for model in client.models.list()}
        chat = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "\ue001"}])
        assert chat.choices[0].message.content == TEXT
        assert client.completions.create(**PROMPT).choices[0].text == TEXT
        assert len(client.embeddings.create(model=SMOLLM2, input="one").data[0].embedding) == 576


def test_scores_stand_in_the_order_of_the_texts(start: Callable[..., ServerProcess], tiny_dir: Path) -> None:
    tiny_archs.write(tiny_dir / "ranks.gguf", "bert-reranker")
    server = start(model="ranks").wait_ready()
    texts = ["a dog", "it is a cat", "x"]
    ranked = server.post("/v1/rerank", {"query": "what is it", "documents": texts}).json()["results"]
    reply = server.post("/v1/score", {"text_1": "what is it", "text_2": texts}).json()
    assert [row["index"] for row in reply["data"]] == [0, 1, 2] and reply["id"].startswith("score-")
    assert {row["index"]: row["score"] for row in reply["data"]} == pytest.approx(
        {row["index"]: row["relevance_score"] for row in ranked}
    )
    single = server.post("/score", {"text_1": "what is it", "text_2": texts[1]}).json()
    assert [row["score"] for row in single["data"]] == pytest.approx([reply["data"][1]["score"]])
    for wrong, field in (
        ({"text_1": ["a"]}, "text_1"),
        ({"text_1": "a"}, "text_2"),
        ({"text_1": "a", "text_2": [1]}, "text_2[0]"),
    ):
        refused = server.post("/v1/score", wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


def test_tokens_are_a_text_again(server: ServerProcess) -> None:
    text = "Hello, caf\u00e9 \U0001f600!"
    tokens = server.post("/tokenize", {"content": text}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json() == {"content": text, "prompt": text}
    pieces = server.post("/tokenize", {"content": "Hello, you", "with_pieces": True}).json()["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == "Hello, you"
    for tokens in ([-1], [10**6], ["x"], None):
        reply = server.post("/detokenize", {"tokens": tokens})
        assert reply.status_code == 400, reply.text
