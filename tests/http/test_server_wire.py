"""The wire: paths, shapes, key order and event sequences of every endpoint, byte by byte where it matters."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import pytest
from serving import ALIAS, SAID, SMOLLM2, ServerProcess

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SAID_MESSAGE, SAID_PROMPT = "\ue001", "\ue000"


def described(server: ServerProcess, name: str, value: Any) -> bool:
    """Whether the OpenAPI document's component `name` allows `value`."""
    document = server.get("/openapi.json").json()
    jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})
    return True


def chat(**fields: Any) -> dict[str, Any]:
    """Answers of exactly 8 tokens, unless told otherwise."""
    messages = [{"role": "user", "content": "Say hello"}]
    return {"model": SMOLLM2, "messages": messages, "max_tokens": 8, "ignore_eos": True, **fields}


def stream(server: ServerProcess, path: str, body: dict[str, Any]) -> tuple[httpx.Response, list[Any], bool]:
    """(reply, events as JSON, whether [DONE] came last). Every event must be one ASCII line and a blank one."""
    reply = server.post(path, body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.content.isascii()
    lines = [part for part in reply.content.split(b"\n\n") if part and not part.startswith(b":")]
    assert all(re.fullmatch(rb"data: [^\n]+", line) for line in lines)
    done = lines[-1] == b"data: [DONE]"
    return reply, [json.loads(line[6:]) for line in (lines[:-1] if done else lines)], done


def test_llama_servers_clients_find_the_prompt(server: ServerProcess) -> None:
    asked = chat(model="scripted", messages=[{"role": "user", "content": SAID_MESSAGE}], verbose=True)
    whole = server.post(CHAT, asked).json()
    assert SAID_MESSAGE in whole["prompt_text"] and whole["__verbose"] == {"prompt": whole["prompt_text"]}
    first, *others = stream(server, CHAT, {**asked, "stream": True})[1]
    assert first["__verbose"] == whole["__verbose"] and not any("__verbose" in chunk for chunk in others)
    assert "__verbose" not in server.post(CHAT, {**asked, "verbose": False}).json()


def test_chat_stream_is_role_content_reason_done(server: ServerProcess) -> None:
    reply, chunks, done = stream(server, CHAT, chat(model="scripted", stream=True, max_tokens=50, ignore_eos=False,
                                                    messages=[{"role": "user", "content": SAID_MESSAGE}]))  # fmt: skip
    assert done
    assert [list(chunk) for chunk in chunks] == [["id", "object", "created", "model", "choices"]] * len(chunks)
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk", chunks[0]["created"], "scripted")
    }
    assert re.fullmatch("chatcmpl-[0-9a-f]{24}", chunks[0]["id"])
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [list(choice) for choice in choices] == [["index", "delta", "finish_reason"]] * len(choices)
    assert choices[0]["delta"] == {"role": "assistant"}
    assert [choice["delta"] for choice in choices[1:-1]] == [{"content": piece} for piece in SAID]
    assert choices[-1] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert b"\\u2028" in reply.content


@pytest.mark.parametrize(("path", "extra"), [("/v1/completions/stream", {}), (TEXT, {"stream": True})])
def test_text_stream_is_text_reason_done(server: ServerProcess, path: str, extra: dict[str, Any]) -> None:
    body = {"model": "scripted", "prompt": SAID_PROMPT, "stop": None, "user": None, **extra}
    _, chunks, done = stream(server, path, body)
    assert done
    assert described(server, "CompletionChunk", chunks[0])
    assert re.fullmatch("cmpl-[0-9a-f]{24}", chunks[0]["id"])
    assert [list(chunk) for chunk in chunks] == [["id", "object", "created", "model", "choices"]] * len(chunks)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices == [
        *({"text": piece, "index": 0, "finish_reason": None} for piece in SAID),
        {"text": "", "index": 0, "finish_reason": "stop"},
    ]


def test_usage_chunk_only_when_asked(server: ServerProcess) -> None:
    _, chunks, _ = stream(server, CHAT, chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert not any("usage" in chunk for chunk in chunks[:-1])
    _, chunks, _ = stream(server, CHAT, chat(stream=True))
    assert not any("usage" in chunk for chunk in chunks)


def test_joined_stream_is_the_plain_answer(server: ServerProcess) -> None:
    body = chat(temperature=0, max_tokens=24)
    plain = server.post(CHAT, body).json()
    _, chunks, _ = stream(server, CHAT, {**body, "stream": True})
    joined = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert joined == plain["choices"][0]["message"]["content"] != ""
    assert chunks[-1]["choices"][0]["finish_reason"] == plain["choices"][0]["finish_reason"]


@pytest.mark.parametrize("n", [1, 300])
def test_what_was_dropped_of_a_schema_is_said_in_a_header(server: ServerProcess, n: int) -> None:
    names = [f"größe{i}" for i in range(n)]
    schema = {"type": "object", "properties": {name: {"type": "null", "not": {}} for name in names}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = chat(response_format=form, max_tokens=2)
    plain = server.post(CHAT, body)
    dropped = plain.json()["pg_metadata"]["dropped_keywords"]
    assert dropped == [f"response_format.json_schema.schema.properties.{name}.not" for name in names]
    streamed = server.post(CHAT, {**body, "stream": True}, headers={"Origin": "http://localhost"})
    for reply in (plain, streamed):
        header = reply.headers["x-polargrid-dropped-keywords"]
        assert header.isascii() and len(header) <= 4096
        said = json.loads(header)
        assert said == dropped or said == [*dropped[: len(said) - 1], f"and {n - len(said) + 1} more"]
        assert (said == dropped) == (n == 1)
    assert "x-polargrid-dropped-keywords" in streamed.headers["access-control-expose-headers"]
    assert "dropped" not in streamed.text
    assert "x-polargrid-dropped-keywords" not in server.post(CHAT, chat(max_tokens=1)).headers


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_seed_of_minus_one_is_another_each_time(server: ServerProcess, path: str) -> None:
    body = (
        chat(seed=-1, max_tokens=1) if path == CHAT else {"model": SMOLLM2, "prompt": "x", "seed": -1, "max_tokens": 1}
    )
    seeds = {server.post(path, body).json()["pg_metadata"]["seed"] for _ in range(4)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": "hi", "id": "7", "createdAt": "today"}, None),
        ({"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}, None),
        ({"role": "user", "content": ""}, None),
        (
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
            },
            None,
        ),
        ({"role": "user", "text": "hi"}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "assistant", "text": "hi"}, "messages[0].content"),
        ({"role": "assistant", "content": "hi", "function_call": {"name": "f", "arguments": "{}"}}, None),
        ({"role": "assistant", "content": "hi", "audio": {"id": "a"}}, "messages[0].audio"),
    ],
)
def test_unknown_keys_pass_where_nothing_is_lost(
    server: ServerProcess, message: dict[str, Any], field: str | None
) -> None:
    reply = server.post(CHAT, chat(messages=[message], max_tokens=1, max_token=5))
    assert reply.status_code == (200 if field is None else 400), reply.text
    if field is None:
        assert "max_token" in json.loads(reply.headers["x-polargrid-ignored"])
    else:
        assert reply.json()["error"]["param"] == field


def test_what_was_ignored_is_named_by_its_path(server: ServerProcess) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]
    body = chat(messages=messages, max_tokens=1, store=True, nothing=None) | {"caf\u00e9": 1}
    expected = ["caf\u00e9", "messages[0].content[0].cache_control"]
    assert json.loads(server.post(CHAT, body).headers["x-polargrid-ignored"]) == expected
    with httpx.stream("POST", f"{server.url}{CHAT}", json={**body, "stream": True}, trust_env=False) as reply:
        assert json.loads(reply.headers["x-polargrid-ignored"]) == expected
    assert "x-polargrid-ignored" not in server.post(CHAT, chat(max_tokens=1)).headers
    assert "nothing was made of caf\u00e9" in server.log


def test_a_strict_server_refuses_fields_that_nobody_knows(start: Callable[..., ServerProcess]) -> None:
    server = start(strict_fields=True, n_ctx=512).wait_ready()
    reply = server.post(CHAT, chat(model="random", max_tokens=1, max_token=5))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "max_token")
    assert server.post(CHAT, chat(model="random", max_tokens=1, store=True)).status_code == 200


def test_chat_answer_shape(server: ServerProcess) -> None:
    reply = server.post(CHAT, chat(model=ALIAS))
    answer = reply.json()
    remote = ["id", "object", "created", "model", "choices", "usage", "pg_metadata"]
    assert list(answer) == [*remote, "system_fingerprint"]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == ALIAS
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert answer["pg_metadata"]["region"] == "local"
    assert described(server, "ChatCompletionResponse", answer)
    told = answer["pg_metadata"]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": told["cached_tokens"]}
    assert told["system_fingerprint"] == answer["system_fingerprint"] == reply.headers["x-polargrid-fingerprint"]
    assert all(type(v) in (int, type(None)) for k, v in told.items() if k not in ("region", "system_fingerprint"))
    assert b": " not in reply.content.split(b'"content"')[0]  # compact
    _, chunks, _ = stream(server, CHAT, chat(model=ALIAS, stream=True))
    assert {chunk["model"] for chunk in chunks} == {ALIAS}


def test_list_prompt_gets_one_choice_each(server: ServerProcess) -> None:
    answer = server.post(TEXT, {"model": "scripted", "prompt": [SAID_PROMPT, "x" + SAID_PROMPT]}).json()
    assert [(c["index"], c["text"], c["logprobs"], c["finish_reason"]) for c in answer["choices"]] == [
        (0, "".join(SAID), None, "stop"),
        (1, "".join(SAID), None, "stop"),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"maxTokens": 3, "max_tokens": None},
        {"max_completion_tokens": 3, "max_tokens": None},
        {"max_tokens": 3, "stop": "zzzzz", "seed": 1, "unknown_key": {"a": 1}},
        {
            "max_tokens": 3.0,
            "messages": [
                {"role": "developer", "content": "Be brief"},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ],
        },
    ],
)
def test_forms_of_the_same_request(server: ServerProcess, fields: dict[str, Any]) -> None:
    reply = server.post(CHAT, chat(model="random", **fields))
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": None},
        {"max_tokens": -1},
        {"max_completion_tokens": -1},
        {"maxTokens": -1.0},
        {"max_completion_tokens": None, "max_tokens": None},
        {"max_tokens": 10**8},
    ],
)
def test_an_answer_may_fill_the_context(server: ServerProcess, path: str, fields: dict[str, Any]) -> None:
    """The remote's 150 and 100 tokens are its SDK's own default: clients that send none mean none."""
    body = {"model": "random", "prompt": "the", "messages": [{"role": "user", "content": "the"}], "ignore_eos": True}
    answer = server.post(path, {**body, **fields}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] in (2047, 2048)


@pytest.mark.parametrize("value", [0, -2, -1.5, "all", 2**31, True])
def test_other_numbers_of_tokens_are_refused(server: ServerProcess, value: Any) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = server.post(CHAT, chat(**{"max_tokens": None, field: value}))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "max_tokens")


def test_max_completion_tokens_wins_as_at_openai(server: ServerProcess) -> None:
    assert server.post(CHAT, chat(max_tokens=8, max_completion_tokens=3)).json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(("path", "kind"), [(CHAT, "chat"), (TEXT, "text")])
@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": False}, {}])
@pytest.mark.parametrize("name", ["stream_options", "streamOptions"])
def test_stream_options_need_a_stream(
    server: ServerProcess, path: str, kind: str, options: dict[str, bool], name: str
) -> None:
    body = {**chat(), "prompt": "the", name: options}
    for stream_field in ({}, {"stream": False}, {"stream": None}):
        reply = server.post(path, {**body, **stream_field})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "stream_options")
    assert server.post(path, {**body, name: None}).status_code == 200
    assert (
        server.post("/v1/completions/stream", body).status_code
        == server.post(path, {**body, "stream": True}).status_code
        == 200
    )


def test_a_byte_order_mark_is_passed_over(server: ServerProcess) -> None:
    for path, body in ((CHAT, chat()), (TEXT, {"model": "random", "prompt": "\ufeffthe", "max_tokens": 2}),
                       ("/v1/models/load", {"model_name": "random"})):  # fmt: skip
        content = b"\xef\xbb\xbf" + json.dumps(body).encode()
        assert (
            server.request("POST", path, content=content, headers={"Content-Type": "application/json"}).status_code
            == 200
        )


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/index.html",
        "/polargrid.js",
        "/docs",
        "/openapi.json",
        "/health",
        "/livez",
        "/metrics",
        "/v1/models",
        f"/v1/models/{SMOLLM2}",
        "/v1/models/status",
        "/v1/models/nope",
        "/v1/gpu/status",
        "/v1/status",
        "/nope",
    ],
)
def test_head_is_get_without_the_body(server: ServerProcess, path: str) -> None:
    head, get = server.request("HEAD", path), server.get(path)
    assert head.content == b"" != get.content
    assert head.status_code == get.status_code
    for name in ("content-type", "etag", "content-security-policy"):
        assert head.headers.get(name) == get.headers.get(name)
    if path not in ("/health", "/livez", "/metrics", "/v1/status"):  # whose length changes by itself
        assert head.headers["content-length"] == get.headers["content-length"]


def test_head_leaves_the_connection_usable(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert [client.request(method, "/v1/models").status_code for method in ("HEAD", "GET", "HEAD", "GET")] == [
            200
        ] * 4
        refusal = client.head(CHAT)
        assert (refusal.status_code, refusal.content) == (405, b"")
        assert client.head("/v1/models", headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("function_call", {"name": "f"}),
        ("tool_choice", "required"),
        ("audio", {"voice": "alloy", "format": "mp3"}),
        ("modalities", ["text", "audio"]),
        ("web_search_options", {}),
        ("reasoning_effort", "much"),
        ("verbosity", "low"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(server: ServerProcess, field: str, value: Any) -> None:
    reply = server.post(CHAT, chat(**{field: value}))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, chat(reasoning_effort="low"), "reasoning_effort"),
        (CHAT, chat(reasoning_effort="low", stream=True), "reasoning_effort"),
        ("/v1/responses", {"input": "x", "reasoning": {"effort": "xhigh"}}, "reasoning.effort"),
        ("/v1/messages", chat(output_config={"effort": "high"}, ignore_eos=None), "output_config.effort"),
        ("/api/chat", chat(think="low", max_tokens=None, ignore_eos=None), "think"),
    ],
)
def test_an_effort_that_changes_no_answer_is_named(
    server: ServerProcess, path: str, body: dict[str, Any], name: str
) -> None:
    reply = server.post(path, {"model": "scripted", **body} | {"model": "scripted"})
    assert reply.status_code == 200, reply.text
    assert json.loads(reply.headers["x-polargrid-ignored"]) == [name]


@pytest.mark.parametrize("path", [TEXT, "/completion"])
def test_a_prompt_that_is_too_long_is_counted(server: ServerProcess, path: str) -> None:
    error = server.post(path, {"model": SMOLLM2, "prompt": "word " * 3000}).json()["error"]
    assert error["n_prompt_tokens"] > 3000 > error["n_ctx"] > 0
    unknown = server.post(path, {"model": SMOLLM2, "prompt": "word " * 150_000}).json()["error"]
    assert "n_prompt_tokens" not in unknown and unknown["n_ctx"] == error["n_ctx"]
    assert "n_ctx" not in server.post(path, {"model": SMOLLM2, "prompt": "x", "top_p": 2}).json()["error"]


def test_the_tokens_of_no_input_are_refused_by_its_name(server: ServerProcess) -> None:
    refused = server.post("/v1/responses/input_tokens", {"model": "scripted"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    assert refused.json()["error"]["message"].startswith("input: ")


def test_what_changes_no_answer_is_accepted(server: ServerProcess) -> None:
    fields = {
        "metadata": {"a": "b"},
        "store": True,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "parallel_tool_calls": False,
        "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"],
        "reasoning_effort": "none",
        "verbosity": "medium",
        "function_call": "none",
        "functions": [],
        "tools": [],
    }
    plain, answer = (
        server.post(CHAT, chat(temperature=0)).json(),
        server.post(CHAT, chat(temperature=0, **fields)).json(),
    )
    assert answer["choices"] == plain["choices"]


def test_logprobs_0_shows_the_sampled_token(server: ServerProcess) -> None:
    body = {"model": "scripted", "prompt": SAID_PROMPT, "logprobs": 0}
    said = server.post(TEXT, body).json()["choices"][0]["logprobs"]
    assert said["tokens"][: len(SAID)] == SAID
    assert said["top_logprobs"] == [{token: value} for token, value in zip(said["tokens"], said["token_logprobs"])]
    _, chunks, _ = stream(server, TEXT, {**body, "stream": True})
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if "logprobs" in chunk["choices"][0]]
    assert {key: sum((part[key] for part in parts), []) for key in said} == said


def test_tokens_that_are_pieces_of_characters_have_names(server: ServerProcess) -> None:
    """SmolLM2 writes most emoji in byte tokens."""
    body = chat(
        messages=[{"role": "user", "content": "x"}], max_tokens=1, logprobs=True, top_logprobs=20, temperature=0
    )
    pieces = set()
    for emoji in ("\U0001f9ff", "\u27c1", "\u4e02"):
        prompt = {
            "model": SMOLLM2,
            "prompt": f"{emoji} {emoji} {emoji} {emoji} {emoji}",
            "max_tokens": 24,
            "temperature": 0,
            "logprobs": 5,
        }
        said = server.post(TEXT, prompt).json()["choices"][0]["logprobs"]
        for token, value, top in zip(said["tokens"], said["token_logprobs"], said["top_logprobs"]):
            assert top[token] == value
            assert 5 <= len(top) <= 6
            pieces |= {name for name in top if name.startswith("bytes:")}
    assert pieces
    assert not any("\ufffd" in name for name in pieces)
    for entry in server.post(CHAT, body).json()["choices"][0]["logprobs"]["content"]:
        assert len({top["token"] for top in entry["top_logprobs"]}) == 20
        for top in entry["top_logprobs"]:
            if not top["token"].startswith(("bytes:", "token_id:")):
                assert bytes(top["bytes"]).decode() == top["token"]


def test_max_tokens_is_bounded_by_the_context_only(server: ServerProcess) -> None:
    answer = server.post(TEXT, {"model": "random", "prompt": "the", "max_tokens": 5000, "ignore_eos": True}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 2000 < answer["usage"]["total_tokens"] <= 2048


ERRORS = [
    ("unknown model", CHAT, chat(model="gpt-nope"), 404, "model_not_loaded", "model", "Model not loaded"),
    ("a path is no model", CHAT, chat(model="/etc/passwd"), 404, "model_not_loaded", "model", "Model not loaded"),
    ("no messages", CHAT, chat(messages=[]), 400, "invalid_request", "messages", "messages"),
    ("wrong type", CHAT, chat(temperature="hot"), 400, "invalid_request", "temperature", "temperature"),
    ("out of range", CHAT, chat(top_p=1.5), 400, "invalid_request", "top_p", "top_p"),
    ("n", CHAT, chat(n=0), 400, "invalid_request", "n", "n:"),
    ("no prompt", TEXT, {"model": SMOLLM2}, 400, "invalid_request", "prompt", "prompt"),
    ("overflow", TEXT, {"model": SMOLLM2, "prompt": "word " * 3000}, 400, "context_length_exceeded", None, ""),
    (
        "overflow in a stream",
        CHAT,
        chat(messages=[{"role": "user", "content": "word " * 3000}], stream=True),
        400,
        "context_length_exceeded",
        None,
        "",
    ),
    (
        "image",
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        400,
        "invalid_request",
        "messages[0].content[0]",
        f"model '{SMOLLM2}' does not support image input",
    ),
    ("load unknown", "/v1/models/load", {"model_name": "nope"}, 404, "model_not_loaded", "model", "Model not loaded"),
    ("load nothing", "/v1/models/load", {}, 400, "invalid_request", "model_name", "model_name"),
    (
        "speech",
        "/v1/audio/speech",
        {"model": "tts-1", "input": "x", "voice": "alloy"},
        501,
        "not_supported",
        None,
        "audio",
    ),
    ("unknown path", "/v1/nope", {}, 404, "not_found", None, "no such path"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param", "start"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS]
)
def test_errors_read_well_in_both_families(
    server: ServerProcess, path: str, body: dict[str, Any], status: int, code: str, param: str | None, start: str
) -> None:
    reply = server.post(path, body)
    assert reply.status_code == status, reply.text
    answer = reply.json()
    assert list(answer) == ["detail", "error"]
    counts = ["n_prompt_tokens", "n_ctx"] if code == "context_length_exceeded" else []
    assert list(answer["error"]) == ["message", "type", "code", "param", *counts]
    assert answer["detail"] == answer["error"]["message"]
    assert answer["detail"].startswith(start)
    assert answer["error"]["code"] == code
    if param is not None:
        assert answer["error"]["param"] == param


def test_wrong_method(server: ServerProcess) -> None:
    reply = server.get(CHAT)
    assert (reply.status_code, reply.headers["allow"], reply.json()["error"]["code"]) == (
        405,
        "POST",
        "method_not_allowed",
    )


@pytest.mark.parametrize("path", ["/v1/models", "//v1/models", "/v1/v1/models", "/v1/models/", "//v1//v1///models"])
def test_paths_are_tolerant(server: ServerProcess, path: str) -> None:
    reply = httpx.get(server.url + path, trust_env=False)
    assert reply.json()["object"] == "list"


def test_models(server: ServerProcess) -> None:
    rows = {row["id"]: row for row in server.get("/v1/models").json()["data"]}
    assert rows[ALIAS]["root"] == SMOLLM2
    assert "*" not in rows
    for row in [rows[name] for name in (SMOLLM2, ALIAS, "random", "scripted")]:
        remote = ["id", "object", "created", "owned_by", "permission", "root", "parent"]
        ours = ["tasks", "max_model_len", "max_streams", "meta", "max_completion_tokens"]
        assert list(row) == [*remote, *ours]
        assert described(server, "ModelInfo", row)
    limits = {"max_model_len": 2048, "max_completion_tokens": 2048, "max_streams": 8}
    assert limits.items() <= rows[SMOLLM2].items()
    assert rows[SMOLLM2]["meta"] == {
        "n_vocab": 49152, "n_ctx_train": 8192, "n_embd": 576, "n_params": 134515008, "size": 96576768,
        "architecture": "llama", "quantization": "Q4_1",
    }  # fmt: skip
    assert server.get("/v1/models/HuggingFaceTB%2FSmolLM2-135M-Instruct").json() == {
        **rows[SMOLLM2], "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }  # fmt: skip
    assert server.get("/v1/models/a%2Fb").status_code == 404


def test_load_unload_status(server: ServerProcess) -> None:
    assert server.post("/v1/models/unload", {"model_name": "scripted"}).json() == {
        "status": "success", "model": "scripted", "message": "Model scripted unloaded successfully",
    }  # fmt: skip
    status = server.get("/v1/models/status").json()
    assert "scripted" not in status["loaded"]
    assert status["loading_status"]["scripted"] == "unloaded"
    assert status["repository"] == "/models"
    assert server.post("/v1/models/unload", {"model_name": "scripted"}).status_code == 404
    assert server.post("/v1/models/load", {"modelName": "scripted"}).json() == {
        "status": "success",
        "model": "scripted",
        "force_reload": False,
        "message": "Model scripted loaded successfully",
    }
    assert (
        server.post("/v1/models/load", {"model_name": "scripted", "force_reload": True}).json()["force_reload"] is True
    )
    assert server.get("/v1/models/status").json()["loading_status"]["scripted"] == "loaded"
    server.post("/v1/models/unload", {"model_name": "scripted"})
    answer = server.post(TEXT, {"model": "scripted", "prompt": SAID_PROMPT})  # on demand
    assert answer.json()["choices"][0]["text"] == "".join(SAID)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings_are_floats_or_base64_of_the_same(server: ServerProcess, encoding: str | None) -> None:
    body = {"model": SMOLLM2, "input": ["one", "two"]}
    plain = server.post("/v1/embeddings", body).json()
    reply = server.post("/v1/embeddings", {**body, "encoding_format": encoding})
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert list(answer) == ["object", "data", "model", "usage"]
    assert described(server, "EmbeddingResponse", answer)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    assert [(row["object"], row["index"]) for row in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    for row, floats in zip(answer["data"], plain["data"]):
        vector = row["embedding"]
        if encoding == "base64":
            vector = list(struct.unpack("<576f", base64.b64decode(vector, validate=True)))
        assert len(vector) == 576
        assert all(isinstance(value, float) for value in vector)
        assert vector == pytest.approx(floats["embedding"], abs=1e-6)


@pytest.mark.parametrize("encoding", ["numpy", "Base64", "", "int8", 1, ["float"]])
def test_other_encodings_are_refused_by_name(server: ServerProcess, encoding: Any) -> None:
    reply = server.post("/v1/embeddings", {"model": SMOLLM2, "input": "one", "encoding_format": encoding})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "encoding_format")
    assert "'float' or 'base64'" in reply.json()["detail"]


def test_machine(server: ServerProcess) -> None:
    health = server.get("/health").json()
    assert list(health) == ["status", "node", "runtime", "timestamp", "features", "backend"]
    gpus = server.get("/v1/gpu/status").json()
    assert list(gpus) == ["status", "timestamp", "gpus", "processes", "total_gpus"]
    assert gpus["total_gpus"] == len(gpus["gpus"]) == len(server.get("/v1/gpu/memory").json()["memory"])
    status = server.get("/v1/status").json()
    assert status["status"] == "healthy"
    assert {row["model_id"] for row in status["regions"][0]["models"]} >= {SMOLLM2, "random", "scripted"}


def test_usage_is_counted(server: ServerProcess) -> None:
    def counted() -> dict[str, Any]:
        rows = server.get("/v1/usage").json()["usage"]["by_model"]
        return next((row for row in rows if row["model_id"] == SMOLLM2), {"requests": 0, "tokens": 0})

    before = counted()
    tokens = server.post(CHAT, chat()).json()["usage"]["total_tokens"]
    stream(server, CHAT, chat(stream=True))
    server.wait_for(lambda: counted()["requests"] == before["requests"] + 2)
    assert counted()["tokens"] == before["tokens"] + 2 * tokens
    assert server.get("/v1/usage?start_date=2001-01-01&end_date=2001-01-02").json()["usage"]["total_requests"] == 0
    assert server.get("/v1/usage?start_date=yesterday").status_code == 400


def test_metrics_count(server: ServerProcess) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    names = ["polargrid_generated_tokens_total", "polargrid_first_token_seconds_count", "polargrid_token_seconds_count"]
    before = [server.metric(name) for name in names]
    stream(server, CHAT, chat(model="random", stream=True))
    server.wait_for(lambda: server.metric(names[1]) == before[1] + 1)
    after = [server.metric(name) for name in names]
    assert after[0] - before[0] == 8
    assert 1 <= after[2] - before[2] <= 7
    assert server.metric("polargrid_kv_cells") > 0
    families = {family.name for family in text_string_to_metric_families(server.get("/metrics").text)}
    assert {
        "polargrid_requests",
        "polargrid_waiting_requests",
        "polargrid_cached_prompt_tokens",
        "polargrid_kv_cells_used",
        "llamacpp:n_decode",
        "llamacpp:prompt_tokens",
        "llamacpp:prompt_tokens_cached",
        "llamacpp:prompt_tokens_seconds",
        "llamacpp:spec_decode_num_draft_tokens",
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
    } <= families
    assert server.metric("llamacpp:tokens_predicted_total") >= after[0]
    told: dict[str, float] = defaultdict(float)  # of one moment, over all models
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            told[sample.name] += sample.value
    n, seconds = (told[f"llamacpp:tokens_predicted{part}_total"] for part in ("", "_seconds"))
    assert seconds > 0 and told["llamacpp:predicted_tokens_seconds"] == pytest.approx(n / seconds)
    assert told["llamacpp:prompt_seconds_total"] == pytest.approx(told["polargrid_prompt_seconds_total"])


def test_openapi_and_docs_need_no_network(server: ServerProcess) -> None:
    document = server.get("/openapi.json").json()
    assert {CHAT, TEXT, "/v1/completions/stream", "/v1/embeddings", "/v1/models", "/health"} <= set(document["paths"])
    assert document["components"]["schemas"]["ChatCompletionRequest"]["properties"]["temperature"]["maximum"] == 2
    referred = set(re.findall(r"#/components/schemas/([^\"]+)", json.dumps(document)))
    assert referred <= set(document["components"]["schemas"])
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        assert document["components"]["schemas"][name]["properties"]["max_tokens"]["default"] == -1
    assert document["components"]["schemas"]["EmbeddingRequest"]["properties"]["encoding_format"]["enum"] == [
        "float",
        "base64",
    ]
    assert not any("head" in operations for operations in document["paths"].values())
    for path, operation in (
        ("/health", "get"),
        ("/livez", "get"),
        ("/v1/models", "get"),
        ("/v1/models/status", "get"),
        ("/v1/gpu/status", "get"),
        ("/v1/gpu/memory", "get"),
        ("/v1/status", "get"),
        ("/v1/usage", "get"),
    ):
        said = document["paths"][path][operation]["responses"]["200"]["content"]["application/json"]["schema"][
            "required"
        ]
        assert said == list(server.get(path).json()), path
    page = server.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "script" not in page.headers["content-security-policy"]
    assert "://" not in page.text
    assert "/v1/chat/completions" in page.text


def test_pages(server: ServerProcess) -> None:
    page = server.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    module = server.get("/polargrid.js")
    assert module.headers["content-type"] == "text/javascript; charset=utf-8"
    assert server.get("/polargrid.js", headers={"if-none-match": module.headers["etag"]}).status_code == 304
    assert server.request("HEAD", "/").content == b""
    for outside in ("/../errors.py", "/%2e%2e/errors.py", "/..%2ferrors.py", "/index.html/%2e%2e", "/vendor"):
        assert httpx.get(server.url + outside, trust_env=False).status_code == 404


def test_request_id_is_echoed(server: ServerProcess) -> None:
    assert server.get("/health", headers={"X-Request-ID": "req_1_abc"}).headers["x-request-id"] == "req_1_abc"
    assert server.get("/nope", headers={"X-Request-ID": "req_1_abc"}).headers["x-request-id"] == "req_1_abc"
    assert re.fullmatch("req_[0-9a-f]{32}", server.get("/health").headers["x-request-id"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/chat/completion", "did you mean '/v1/chat/completions'?"),
        ("/v1/assistants", "/v1/assistants is not offered here: POST /v1/responses"),
        ("/v1/threads/thread_1/runs", "/v1/threads is not offered here"),
        ("/v1/images/generations", "/v1/images is not offered here"),
        ("/api/pull", "polargrid-local pull"),
        ("/v1/imagesque", "no such path on this server"),
        ("/\u2028", "no such path on this server"),
    ],
)
def test_a_path_that_is_not_served_says_what_to_use(server: ServerProcess, path: str, said: str) -> None:
    reply = server.post(path, {})
    error = reply.json()["error"]
    assert reply.status_code == 404
    if path.startswith("/api/"):  # in Ollama's words
        assert said in error
        return
    assert error["code"] == "not_found"
    assert said in reply.json()["detail"]
