"""What llama-server and vLLM serve beside OpenAI's API, over a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import openai
import pytest
import tiny_archs
import tiny_model
from serving import SAID, SMOLLM2, ServerProcess

import polargrid_local

TEXT = "".join(SAID)
PROMPT = {"model": "scripted", "prompt": "\ue000"}


def events(server: ServerProcess, body: dict[str, Any], path: str = "/completion") -> list[dict[str, Any]]:
    with httpx.Client(trust_env=False) as client:
        with httpx_sse.connect_sse(client, "POST", f"{server.url}{path}", json={**body, "stream": True}) as source:
            return [json.loads(event.data) for event in source.iter_sse()]


def test_completion(server: ServerProcess) -> None:
    reply = server.post("/completion", PROMPT).json()
    assert (reply["content"], reply["stop"], reply["stop_type"]) == (TEXT, True, "eos")
    assert (reply["tokens_predicted"], reply["truncated"], reply["model"]) == (len(SAID), False, "scripted")
    assert reply["timings"]["predicted_n"] == len(SAID) and reply["tokens_evaluated"] >= 1
    for part in ("prompt", "predicted"):
        assert {f"{part}_ms", f"{part}_per_token_ms", f"{part}_per_second"} < reply["timings"].keys()
    assert reply["has_new_line"] is ("\n" in TEXT)
    cut = server.post("/completion", {**PROMPT, "n_predict": 2, "temperature": 0.5}).json()
    assert (cut["content"], cut["stop_type"]) == ("".join(SAID[:2]), "limit")
    settings = cut["generation_settings"]
    assert {"n_predict": 2, "temperature": 0.5, "top_p": 0.9, "repeat_penalty": 1.0}.items() <= settings.items()
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
    same = {"content": TEXT, "timings": 0, "generation_settings": 0}
    assert {**last, **same} == {**whole, **same}
    settings = [said["generation_settings"] for said in (last, whole)]
    assert all(said["seed"] >= 0 for said in settings)
    assert {**settings[0], "seed": 0} == {**settings[1], "seed": 0}


def test_probabilities(server: ServerProcess) -> None:
    body = {**PROMPT, "n_probs": 3}
    whole = server.post("/completion", body).json()["completion_probabilities"]
    assert [entry["token"] for entry in whole][: len(SAID)] == SAID
    assert all(bytes(entry["bytes"]).decode() == token for entry, token in zip(whole, SAID))
    said = server.post("/completion", {**body, "return_tokens": True}).json()["tokens"]
    assert [entry["id"] for entry in whole] == said
    assert all(entry["id"] in [top["id"] for top in entry["top_logprobs"]] for entry in whole)
    streamed = [entry for event in events(server, body) for entry in event.get("completion_probabilities", ())]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]


def test_tokens_timings_and_samplers(server: ServerProcess) -> None:
    body = {"model": SMOLLM2, "prompt": "The capital of France is", "n_predict": 8, "temperature": 0}
    body |= {"return_tokens": True, "samplers": ["top_k", "temperature"], "logit_bias": [[" Paris", False]]}
    whole = server.post("/completion", body).json()
    assert " Paris" not in whole["content"] and len(whole["tokens"]) == whole["tokens_predicted"] == 8
    text = server.post("/detokenize", {"model": SMOLLM2, "tokens": whole["tokens"], "skip_special_tokens": True}).json()
    assert text["content"] == whole["content"]
    *told, last = events(server, {**body, "timings_per_token": True, "return_progress": True})
    assert [token for event in told for token in event["tokens"]] == whole["tokens"] and last["tokens"] == []
    times = [event["timings"].get("prompt_ms", 0.0) for event in told if "prompt_progress" in event]
    assert times == sorted(times) and times[0] == 0
    counts = [event["timings"]["predicted_n"] for event in told if event["content"]]
    assert counts == sorted(counts) and counts[-1] == 8


def test_several_prompts_and_their_parts(server: ServerProcess) -> None:
    body: dict[str, Any] = {"model": SMOLLM2, "n_predict": 6, "temperature": 0, "return_tokens": True}
    text = "The capital of France is"
    (first, *rest) = server.post("/tokenize", {"model": SMOLLM2, "content": text}).json()["tokens"]
    prompts = [text, [first, *rest], {"prompt_string": "One, two, three,"}]
    singles = [server.post("/completion", {**body, "prompt": prompt}).json() for prompt in prompts]
    assert singles[0]["content"] == singles[1]["content"] != singles[2]["content"]
    several = server.post("/completion", {**body, "prompt": prompts}).json()
    apart = {"index": 0, "timings": 0, "generation_settings": 0}
    assert [{**reply, **apart} for reply in several] == [{**reply, **apart} for reply in singles]
    assert [reply["index"] for reply in several] == [0, 1, 2]
    said = events(server, {**body, "prompt": prompts})
    for i, whole in enumerate(singles):
        *told, last = [event for event in said if event["index"] == i]
        assert "".join(event["content"] for event in told) == whole["content"]
        assert [token for event in told for token in event["tokens"]] == whole["tokens"]
        assert {**last, **apart} == {**whole, **apart, "content": "", "tokens": []}
    mixed = server.post("/completion", {**body, "prompt": [first, " capital", *rest[1:]]}).json()
    asked = ("content", "tokens_evaluated")
    assert [mixed[name] for name in asked] == [singles[0][name] for name in asked]
    completed = server.post("/v1/completions", {**body, "max_tokens": 6, "prompt": ["The capital", *rest[1:]]}).json()
    assert completed["choices"][0]["text"] == singles[0]["content"]
    parts = {"response_fields": ["content", "generation_settings/n_predict", "nothing"]}
    biased = {"logit_bias": {" Paris": -100, str(first): 0}}
    told = server.post("/completion", {**body, "prompt": text, **biased, **parts}).json()
    assert list(told) == ["content", "generation_settings/n_predict"] and told["generation_settings/n_predict"] == 6
    assert " Paris" in singles[0]["content"] and " Paris" not in told["content"]


def test_embeddings_in_lists(server: ServerProcess) -> None:
    (first, *rest) = server.post("/tokenize", {"model": SMOLLM2, "content": "one two three"}).json()["tokens"]
    inputs = ["one two three", [first, *rest], [first, " two", *rest[1:]], "four"]
    ours = server.post("/v1/embeddings", {"model": SMOLLM2, "input": inputs}).json()["data"]
    one, ids, mixed, other = [row["embedding"] for row in ours]
    assert one == pytest.approx(ids, abs=1e-5) and one == pytest.approx(mixed, abs=1e-5)
    assert one != pytest.approx(other, abs=1e-2)
    theirs = server.post("/embedding", {"model": SMOLLM2, "content": inputs}).json()
    assert [row["index"] for row in theirs] == [0, 1, 2, 3]
    assert theirs[3]["embedding"] == [pytest.approx(other, abs=1e-5)]
    refused = server.post("/embedding", {"model": SMOLLM2, "content": [5, ""]})
    assert refused.status_code == 400 and refused.json()["error"]["message"].startswith("content[1]: ")


def test_fields_of_vllm_over_http(server: ServerProcess) -> None:
    body = {"model": SMOLLM2, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
    asked = {"return_token_ids": True, "prompt_logprobs": 1, "timings_per_token": True}
    reply = server.post("/v1/chat/completions", {**body, **asked}).json()
    assert len(reply["choices"][0]["token_ids"]) == reply["timings"]["predicted_n"] == 3
    first, second, *_ = reply["prompt_logprobs"]
    assert first is None and second[str(reply["prompt_token_ids"][1])]["rank"] >= 1
    for field, value in (("chat_template", "{{ messages[0].content }}"), ("logits_processor", "print")):
        refused = server.post("/v1/chat/completions", {**body, field: value})
        assert (refused.status_code, refused.json()["error"]["message"].split()[0]) == (400, f"{field}:"), refused.text
    assert "allow_chat_template" in server.post("/apply-template", {**body, "chat_template": "x"}).text


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
    other_order = ["top_p", "top_k"]
    for field, value in (
        ("response_fields", "content"),
        ("n_predict", -3),
        ("repeat_penalty", 11),
        ("samplers", other_order),
        ("prompt", ["a", {"prompt": "b"}]),
        ("min_keep", 3),
    ):
        reply = server.post("/completion", {**PROMPT, field: value})
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, 400) and error["message"].startswith(field), error
    missing = server.post("/completion", {**PROMPT, "model": "nope"})
    assert missing.status_code == 404 and "nope" in missing.json()["error"]["message"]


@pytest.fixture
def filler(models_dir: Path) -> Iterator[str]:
    """A model of the server that fills gaps."""
    path = tiny_model.write_filler(models_dir / "filler.gguf")
    yield path.stem
    path.unlink()


def test_a_gap_is_filled(server: ServerProcess, filler: str) -> None:
    asked: dict[str, Any] = {"model": filler, "n_predict": 4, "temperature": 0, "return_tokens": True}
    body = {**asked, "input_prefix": "the ", "prompt": "c", "input_suffix": " and", "input_extra": []}
    whole = server.post("/infill", body)
    written = {"prompt": "<|fim_prefix|>the c<|fim_suffix|> and<|fim_middle|>"}
    for reply in (whole, server.post("/infill", {**body, "input_prefix": "the c", "prompt": None})):
        filled, completed = reply.json(), server.post("/completion", {**asked, **written}).json()
        assert completed.pop("prompt") == written["prompt"]
        assert {**filled, "timings": 0, "generation_settings": 0} == {
            **completed, "timings": 0, "generation_settings": 0
        }  # fmt: skip
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        completion = client.completions.create(model=filler, prompt="the c", suffix=" and", max_tokens=4, temperature=0)
    assert completion.choices[0].text == whole.json()["content"]
    told = events(server, body, "/infill")
    assert "".join(event["content"] for event in told) == whole.json()["content"]
    reply = server.post("/infill", {**body, "model": "scripted"})
    assert reply.status_code == 400 and reply.json()["error"]["message"].startswith(
        "input_suffix: model 'scripted' cannot fill"
    )
    missing = server.post("/infill", {**body, "input_suffix": None})
    assert missing.json()["error"]["message"].startswith("input_suffix: required")
    shown = server.post("/api/show", {"model": filler}).json()
    assert "insert" in shown["capabilities"]
    said = server.post("/api/generate", {"model": filler, "prompt": "the c", "suffix": " and", "stream": False,
                                         "options": {"num_predict": 4, "temperature": 0}})  # fmt: skip
    assert said.json()["response"] == whole.json()["content"]


def test_what_nobody_reads_is_named_by_every_endpoint(server: ServerProcess) -> None:
    message = {"role": "user", "content": "x", "mood": 1}
    for path, body, ignored in (
        ("/tokenize", {"content": "x", "new": 1}, ["new"]),
        ("/tokenize", {"messages": [message]}, ["messages[0].mood"]),
        ("/detokenize", {"tokens": [], "new": 1}, ["new"]),
        ("/apply-template", {"messages": [message], "new": 1}, ["new", "messages[0].mood"]),
        (
            "/v1/messages/count_tokens",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
            ["max_tokens"],
        ),
        ("/v1/responses/input_tokens", {"input": "x", "max_output_tokens": 5}, ["max_output_tokens"]),
        ("/v1/models/load", {"model_name": "scripted", "new": 1}, ["new"]),
    ):
        assert json.loads(server.post(path, body).headers["x-polargrid-ignored"]) == ignored, path
    assert json.loads(server.get("/v1/models", params={"new": 1}).headers["x-polargrid-ignored"]) == ["new"]


def test_a_strict_server_takes_no_field_that_nobody_reads(start: Callable[..., ServerProcess]) -> None:
    server = start(strict_fields=True, model="scripted", n_ctx=512).wait_ready()
    for path, body in (
        ("/tokenize", {"content": "x", "new": 1}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}], "new": 1}),
        ("/v1/models/load", {"model_name": "random", "new": 1}),
    ):
        reply = server.post(path, body)
        assert reply.status_code == 400 and "new: unknown field" in reply.text
    assert server.get("/v1/models/status").json()["loaded"] == ["scripted"]  # it was not loaded either
    assert server.post("/tokenize", {"content": "x"}).status_code == 200


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
    asked = {"model": SMOLLM2, "prompt": "cat \U0001f680", "return_token_strs": True}
    told = server.post("/tokenize", asked).json()
    assert told["token_strs"][0] == "cat" and len(told["token_strs"]) == told["count"]
    assert any(name.startswith("bytes:") for name in told["token_strs"])
    for model, more in ((SMOLLM2, 0), ("scripted", 1)):  # whose template begins with <s>
        asked = {"model": model, "messages": messages}
        alone = server.post("/tokenize", asked).json()["tokens"]
        special = server.post("/tokenize", {**asked, "add_special_tokens": True}).json()["tokens"]
        assert special == alone[:more] + alone
    for wrong, field in (
        ({"content": "x", "return_token_strs": True}, "return_token_strs"),
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
    info = server.get("/tokenizer_info", params={"model": SMOLLM2}).json()
    assert (info["bos_token"], info["eos_token"], info["add_bos_token"]) == ("<|im_start|>", "<|im_end|>", False)
    assert (info["model_max_length"], info["chat_template"]) == (2048, props["chat_template"])
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
    message = {"model": "scripted", "max_tokens": 20, "messages": [{"role": "user", "content": "\ue001"}]}
    assert server.post("/messages", message).json()["content"][0]["text"] == TEXT
    counted = server.post("/messages/count_tokens", {**message, "max_tokens": None}).json()
    assert counted == server.post("/v1/messages/count_tokens", {**message, "max_tokens": None}).json()
    assert server.get("/version").json() == {"version": polargrid_local.__version__}
    assert server.get("/ping").json()["status"] == "healthy"


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
    pairs = server.post("/score", {"queries": ["what is it", "a dog"], "documents": texts[:2]}).json()["data"]
    crossed = server.post("/score", {"data_1": "a dog", "data_2": texts[1]}).json()["data"]
    expected = [reply["data"][0]["score"], crossed[0]["score"]]
    assert [row["score"] for row in pairs] == pytest.approx(expected)
    assert expected[1] != pytest.approx(reply["data"][1]["score"])
    ranking = server.post("/rerank", {"query": "what is it", "texts": texts, "top_n": 2, "return_text": True}).json()
    assert [(row["index"], row["text"]) for row in ranking] == [
        (row["index"], texts[row["index"]]) for row in ranked[:2]
    ]
    assert [row["score"] for row in ranking] == pytest.approx([row["relevance_score"] for row in ranked[:2]])
    for wrong, field in (
        ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ({"queries": "a", "documents": [""]}, "documents[0]"),
        ({"text_1": {"a": "b"}, "text_2": "c"}, "text_1"),
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
    halves = server.post("/tokenize", {"content": "\U0001f9ff", "with_pieces": True}).json()["tokens"]
    assert all(isinstance(half["piece"], list) for half in halves)  # none is a whole character
    assert bytes(byte for half in halves for byte in half["piece"]).decode() == "\U0001f9ff"
    for tokens in ([-1], [10**6], ["x"], None):
        reply = server.post("/detokenize", {"tokens": tokens})
        assert reply.status_code == 400, reply.text
