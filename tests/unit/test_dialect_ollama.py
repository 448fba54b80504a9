"""Ollama's words: what is made of a request, and what is said of an answer, in lines and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polargrid_local.api.parse import parse_request
from polargrid_local.api.replies import FileSummary
from polargrid_local.api.requests import Sampling
from polargrid_local.dialects.exchange import Kind, Moment, Refusal
from polargrid_local.dialects.ollama import (
    Generation,
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaExchange,
    OllamaGenerate,
)
from polargrid_local.dialects.ollama_models import ModelFile, digest_of, listed, running, shown, tagged
from polargrid_local.errors import ValidationError

NOW = Moment("0123456789abcdef01234567", 1767225600.25)
SAY = [{"role": "user", "content": "Hi"}]
KINDS: dict[type[OllamaExchange], Kind] = {
    OllamaChat: "chat",
    OllamaGenerate: "chat",
    OllamaEmbed: "embedding",
    OllamaEmbeddings: "embedding",
}


def chat(**body: Any) -> OllamaChat:
    return OllamaChat({"model": "m", "messages": SAY, **body}, NOW, "chat")


def generate(**body: Any) -> OllamaGenerate:
    return OllamaGenerate({"model": "m", "prompt": "Hi", **body}, NOW, "chat")


def parsed(exchange: OllamaExchange) -> Any:
    return parse_request(exchange.kind, exchange.body, max_tokens_limit=None, ignored=exchange.ignored)


# --- requests ---


def test_an_answer_is_streamed_unless_the_request_says_no() -> None:
    for exchange in (chat(), chat(stream=True), chat(stream=None), generate()):
        assert exchange.streaming and parsed(exchange).include_usage
    assert not chat(stream=False).streaming
    assert parsed(chat(stream=False)).stream_options == {}
    with pytest.raises(ValidationError, match="^stream: "):
        chat(stream="no")


def test_options_are_ours() -> None:
    values = {"temperature": 0.3, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.8, "repeat_last_n": 9}
    values |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "seed": 4, "stop": ["x"]}
    values |= {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2}
    request = parsed(chat(options={**values, "repeat_penalty": 1.2, "num_predict": 12}))
    assert {name: getattr(request, name) for name in values} == values
    assert (request.repetition_penalty, request.max_tokens) == (1.2, 12)
    plain = parsed(chat())
    ours = parse_request("chat", {"messages": SAY})
    assert {name: getattr(plain, name) for name in Sampling.model_fields} == {
        name: getattr(ours, name) for name in Sampling.model_fields
    }
    for everything in (-1, -2):
        assert parsed(chat(options={"num_predict": everything})).max_tokens == -1


def test_what_would_take_another_load_is_told_to_be_ignored_and_what_changes_nothing_is_not() -> None:
    exchange = chat(
        options={"num_ctx": 4096, "num_gpu": 9, "num_thread": 2, "use_mmap": True, "x": 1}, keep_alive="5m", y=1
    )
    parsed(exchange)
    assert sorted(exchange.ignored) == ["options.num_ctx", "options.x", "y"]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        (0, 0),
        ("0", 0),
        ("0s", 0),
        (90, 90),
        (0.5, 0.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        (-1, -1),
        ("-1m", -1),
        (10**400, -1),
        ("999999h", -1),
    ],
)
def test_how_long_a_model_stays(given: Any, seconds: float | None) -> None:
    exchange = chat(keep_alive=given)
    assert exchange.keep_alive_s == seconds and not exchange.ignored


@pytest.mark.parametrize("given", ["soon", "5 m", "m", True, [], {}])
def test_times_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError, match="^keep_alive: must be a number of seconds"):
        chat(keep_alive=given)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"suffix": "x", "system": "y"}, "system"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"images": ["aGk="]}, "images"),
        ({"raw": True, "system": "x"}, "system"),
        ({"raw": True, "think": True}, "think"),
        ({"think": 5}, "think"),
        ({"format": "xml"}, "format"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": []}, "options"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_what_there_is_not_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        generate(**body)
    assert caught.value.param == field and caught.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_predict": -3}, "options.num_predict"),
        ({"repeat_penalty": 11}, "options.repeat_penalty"),
        ({"temperature": "hot"}, "options.temperature"),
        ({"stop": [""]}, "options.stop"),
    ],
)
def test_errors_of_our_parser_say_the_names_of_the_request(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(chat(options=options))
    error = caught.value
    words = OllamaChat.error(Refusal(error.message, error.type, error.code, error.param, 400))
    assert set(words) == {"error"} and words["error"].startswith(f"{field}: ")


def test_formats() -> None:
    assert parsed(chat(format="json")).response_format == {"type": "json_object"}
    schema = {"type": "object"}
    assert parsed(chat(format=schema)).response_format["json_schema"]["schema"] == schema
    for nothing in (None, ""):
        assert parsed(chat(format=nothing)).response_format is None
    told = OllamaChat.error(
        Refusal("response_format.json_schema.schema.not: x", "", "", "response_format.json_schema.schema.not", 400)
    )
    assert told == {"error": "format.not: x"}


def test_thinking() -> None:
    assert parsed(chat()).reasoning_format == "deepseek"
    assert [parsed(chat(think=think)).enable_thinking for think in (True, False, None)] == [True, False, None]
    assert parsed(chat(think="low")).reasoning_effort == "low"


def test_calls_and_results_find_each_other() -> None:
    def call(name: str, **more: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"x": "é"}, "index": 0}, **more}

    messages = [
        *SAY,
        {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [call("a"), call("b"), call("a")]},
        {"role": "tool", "tool_name": "a", "content": "1"},
        {"role": "tool", "tool_name": "a", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "tool_calls": [call("c", id="own")]},
        {"role": "tool", "tool_call_id": "own", "content": "4"},
        {"role": "tool", "tool_name": "z", "content": "5"},
    ]
    exchange = chat(messages=messages)
    said = parsed(exchange).messages
    first, second, third = [given.id for given in said[1].tool_calls]
    assert said[1].reasoning_content == "Hm" and len({first, second, third}) == 3
    assert said[1].tool_calls[0].function.arguments == '{"x": "é"}'
    assert [message.tool_call_id for message in said[2:5]] == [first, third, second]
    assert (said[6].tool_call_id, said[7].tool_call_id, said[7].name) == ("own", None, "z")
    assert exchange.ignored == []


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([{"role": "user", "content": "x", "images": ["a"]}], "messages[0].images"),
        (["x"], "messages[0]"),
        ("x", "messages"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [5]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"function": 5}]}], "messages[0].tool_calls[0].function"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function.name"),
        ([{"role": "nobody", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": {}}], "messages[0].content"),
    ],
)
def test_wrong_messages_are_refused_by_their_place(messages: Any, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(chat(messages=messages))
    assert caught.value.param == field


def test_a_prompt_is_a_chat_or_raw() -> None:
    request = parsed(generate(system="S", options={"seed": 1}))
    assert [(message.role, message.content) for message in request.messages] == [("system", "S"), ("user", "Hi")]
    raw = generate(raw=True, format="json", logprobs=True, top_logprobs=3)
    assert raw.kind == "completion"
    request = parsed(raw)
    assert (request.prompt, request.logprobs, request.response_format) == ("Hi", 3, {"type": "json_object"})
    assert parsed(generate(raw=True, logprobs=True)).logprobs == 0
    assert parsed(generate(raw=True)).logprobs is None


def test_whatever_a_body_holds_is_answered_or_refused() -> None:
    fields = ("model", "messages", "prompt", "input", "options", "format", "think", "tools", "stream", "raw", "system")
    for cls, kind in KINDS.items():
        for field in fields:
            for value in (5, 1.5, "x", "", [], [5], [[]], {}, {"x": 5}, True, None, "\ud800"):
                try:
                    exchange = cls({"messages": SAY, "prompt": "x", "input": "x", field: value}, NOW, kind)
                    parsed(exchange)
                except ValidationError as error:
                    assert error.param


# --- answers ---

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
TIMINGS = {"queue_ms": 1.0, "prefill_ms": 3.0, "first_token_ms": 3.5, "total_ms": 13.0}


def call_of(i: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}


def answered(reason: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "", **message}, "finish_reason": reason}
    return {"model": "m", "choices": [choice], "usage": USAGE, "timings": TIMINGS}


def deltas(answer: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """An answer of ours as the chunks that it comes in, their pieces of that size."""
    message, found = answer["choices"][0]["message"], [{"role": "assistant"}]

    def pieces(text: str) -> list[str]:
        return [text[at : at + size] for at in range(0, len(text), size)]

    for key in ("reasoning_content", "content"):
        found += [{key: piece} for piece in pieces(message.get(key) or "")]
    for i, call in enumerate(message.get("tool_calls", ())):
        head = {**call, "index": i, "function": {**call["function"], "arguments": ""}}
        found.append({"tool_calls": [head]})
        found += [
            {"tool_calls": [{"index": i, "function": {"arguments": piece}}]}
            for piece in pieces(call["function"]["arguments"])
        ]
    chunks = [{"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in found]
    chunks.append(
        {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": answer["choices"][0]["finish_reason"]}]}
    )
    return [*chunks, {"model": "m", "choices": [], "usage": USAGE, "timings": TIMINGS}]


def lines_of(exchange: Generation, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    said = b"".join(line for chunk in chunks for line in exchange.chunk(chunk)) + b"".join(exchange.end())
    assert said.isascii() and said.endswith(b"\n")
    return [json.loads(line) for line in said.decode().splitlines()]


ANSWERS = {
    "text": answered(content="Hello \u2028é😀"),
    "nothing": answered(),
    "cut": answered("length", content="Hel"),
    "thought": answered(content="Hi", reasoning_content="Hm, hm."),
    "calls": answered("tool_calls", content="So:", tool_calls=[call_of(0, "a", '{"x": "é"}'), call_of(1, "b", "{}")]),
    "calls alone": answered("tool_calls", content=None, tool_calls=[call_of(0, "a", "{}")]),
    "a call that was cut": answered("length", content="", tool_calls=[call_of(0, "a", "{}"), call_of(1, "b", '{"x')]),
}


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("name", ANSWERS)
def test_joined_lines_are_the_whole_answer(name: str, size: int) -> None:
    answer = ANSWERS[name]
    whole: Any = chat(stream=False).reply(answer)
    *lines, last = lines_of(chat(), deltas(answer, size))
    message = {"role": "assistant", "content": "".join(line["message"]["content"] for line in lines)}
    if thinking := "".join(line["message"].get("thinking", "") for line in lines):
        message["thinking"] = thinking
    if calls := [call for line in lines for call in line["message"].get("tool_calls", ())]:
        message["tool_calls"] = calls
    assert {**last, "message": message} == whole
    assert [line["done"] for line in lines] == [False] * len(lines) and last["done"]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert "\n" not in "".join(map(json.dumps, lines))


def test_what_a_whole_answer_says() -> None:
    assert chat(stream=False).reply(ANSWERS["calls"]) == {
        "model": "m",
        "created_at": "2026-01-01T00:00:00.250000Z",
        "message": {
            "role": "assistant",
            "content": "So:",
            "tool_calls": [
                {"id": "call_0", "function": {"index": 0, "name": "a", "arguments": {"x": "é"}}},
                {"id": "call_1", "function": {"index": 1, "name": "b", "arguments": {}}},
            ],
        },
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 5,
        "eval_count": 7,
        "total_duration": 13_000_000,
        "load_duration": 0,
        "prompt_eval_duration": 2_000_000,
        "eval_duration": 10_000_000,
    }
    cut: Any = chat(stream=False).reply(ANSWERS["a call that was cut"])
    assert cut["done_reason"] == "length" and [call["id"] for call in cut["message"]["tool_calls"]] == ["call_0"]


def test_how_long_a_whole_answer_took() -> None:
    exchange = chat(stream=False)
    assert parsed(exchange).timings_per_token
    exchange.load_ms, exchange.total_ms = 3.0, 20.0
    timings = {"cache_n": 1, "prompt_n": 4, "predicted_n": 7, "prompt_ms": 5.0, "predicted_ms": 11.5}
    whole: Any = exchange.reply({**ANSWERS["text"], "timings": timings})
    assert {name: value for name, value in whole.items() if name.endswith("duration")} == {
        "total_duration": 20_000_000,
        "load_duration": 3_000_000,
        "prompt_eval_duration": 5_000_000,
        "eval_duration": 11_500_000,
    }


def test_what_is_generated() -> None:
    whole: Any = generate(stream=False).reply(ANSWERS["thought"])
    assert (whole["response"], whole["thinking"], "message" in whole) == ("Hi", "Hm, hm.", False)
    logprobs = {"tokens": ["é", "bytes:\\xf0\\x9f"], "token_logprobs": [-1.0, -2.0]}
    logprobs["top_logprobs"] = [{"é": -1.0, "token_id:7": -3.0}, {"bytes:\\xf0\\x9f": -2.0}]
    choice = {"index": 0, "text": "é", "logprobs": logprobs, "finish_reason": "stop"}
    raw: Any = generate(raw=True, stream=False).reply({"model": "m", "choices": [choice], "usage": USAGE})
    assert raw["response"] == "é"
    assert raw["logprobs"][0] == {
        "token": "é",
        "logprob": -1.0,
        "bytes": [0xC3, 0xA9],
        "top_logprobs": [
            {"token": "é", "logprob": -1.0, "bytes": [0xC3, 0xA9]},
            {"token": "token_id:7", "logprob": -3.0, "bytes": []},
        ],
    }
    assert raw["logprobs"][1]["bytes"] == [0xF0, 0x9F]


def test_a_request_that_says_nothing_loads_and_tells_nothing() -> None:
    for exchange in (generate(prompt=""), generate(prompt=None), chat(messages=[]), chat(messages=None)):
        request = parsed(exchange)
        assert (exchange.kind, request.model, request.max_tokens) == ("completion", "m", 1)
        (line,) = lines_of(
            exchange, [{"model": "m", "choices": [{"index": 0, "text": "x", "finish_reason": "length"}]}]
        )
        assert (line["done"], line["done_reason"]) == (True, "load") and "eval_count" not in line
    reply: Any = generate(prompt="", stream=False).reply({"model": "m", "choices": [], "usage": USAGE})
    assert (reply["response"], reply["done_reason"]) == ("", "load")


def test_a_stream_that_fails_has_no_last_line() -> None:
    exchange = chat()
    told = [line for chunk in deltas(ANSWERS["text"], 3)[:3] for line in exchange.chunk(chunk)]
    told += exchange.failure(Refusal("broken", "server_error", "internal_error", None, 500))
    lines = [json.loads(line) for line in told]
    assert lines[-1] == {"error": "broken"} and not any(line.get("done") for line in lines)


def test_embeddings() -> None:
    answer = {"model": "m", "data": [{"embedding": [0.5]}, {"embedding": [0.25]}], "usage": {"prompt_tokens": 3}}
    embed = OllamaEmbed(
        {"model": "m", "input": ["a", "b"], "truncate": True, "options": {"num_ctx": 5}}, NOW, "embedding"
    )
    assert parsed(embed).input == ["a", "b"] and not embed.streaming and embed.ignored == []
    assert {"embeddings": [[0.5], [0.25]], "prompt_eval_count": 3}.items() <= dict(embed.reply(answer)).items()
    older = OllamaEmbeddings({"model": "m", "prompt": "a"}, NOW, "embedding")
    assert parsed(older).input == "a" and older.reply(answer) == {"embedding": [0.5]}
    with pytest.raises(ValidationError, match="^input: required"):
        parsed(OllamaEmbed({"model": "m"}, NOW, "embedding"))


# --- models ---


def a_file(id: str = "m", **summary: Any) -> ModelFile:
    metadata = {"general.architecture": "llama", "general.version": "1.0", "llama.context_length": "8192"}
    metadata |= {"llama.eps": "1e-05", "tokenizer.ggml.add_bos_token": "false", "tokenizer.chat_template": "T"}
    known: Any = {"architecture": "llama", "n_params": 1_235_814_432, "quantization": "Q4_K_M", "chat_template": "T"}
    found: FileSummary = {**known, "tasks": ["generate"], "metadata": metadata, **summary}
    return ModelFile(id, 10, NOW.created, None, found)


def test_models() -> None:
    assert [tagged(id) for id in ("m", "m:8b", "a:b/m")] == ["m:latest", "m:8b", "a:b/m:latest"]
    row = listed(a_file())
    assert (row["name"], row["digest"], row["size"]) == ("m:latest", digest_of(a_file()), 10)
    assert row["details"]["parameter_size"] == "1.236B" and row["modified_at"] == "2026-01-01T00:00:00.250000Z"
    other = a_file(n_params=5)
    assert digest_of(a_file()) != digest_of(other) and len(digest_of(other)) == 64
    assert digest_of(other._replace(sha256="ab" * 32)) == "ab" * 32
    known = shown(a_file(tasks=["generate", "embed"], chat_template="<think>"))
    assert 'TEMPLATE """<think>"""' in known["modelfile"] and "temperature" in known["parameters"]
    assert known["capabilities"] == ["completion", "tools", "embedding", "thinking"]
    assert shown(a_file(tasks=["embed"]))["capabilities"] == ["embedding"]
    holes = {f"tokenizer.ggml.fim_{place}_token_id": "7" for place in ("pre", "suf", "mid")}
    assert "insert" in shown(a_file(metadata=holes))["capabilities"]
    assert known["model_info"] == {
        "general.architecture": "llama",
        "general.version": "1.0",
        "general.parameter_count": 1_235_814_432,
        "llama.context_length": 8192,
        "llama.eps": 1e-05,
        "tokenizer.ggml.add_bos_token": False,
    }
    loaded = running(a_file(), 2048, 99, 7, NOW.created)
    assert (loaded["context_length"], loaded["size"], loaded["size_vram"]) == (2048, 99, 7)
    assert loaded["expires_at"].startswith("2026-") and "expires_at" not in running(a_file(), 1, 1, 0, None)
