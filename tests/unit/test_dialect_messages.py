"""The Anthropic Messages API's words: every field of a request honoured, refused or told of, and a stream whose events
make the plain reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.exchange import Moment, Refusal
from polargrid_local.dialects.message_events import arguments_of
from polargrid_local.dialects.message_request import CANNOT, HARMLESS, chat_fields
from polargrid_local.dialects.messages import MessagesExchange
from polargrid_local.errors import ValidationError

MOMENT = Moment("0123456789abcdef01234567", 1.5)
USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}


def exchange(**fields: Any) -> MessagesExchange:
    return MessagesExchange({"model": "m", "max_tokens": 64, "messages": [USER], **fields}, MOMENT, "chat")


def asked(**fields: Any) -> dict[str, Any]:
    """The fields of our request, which its own parser takes without leaving any out."""
    body = exchange(**fields).body
    ignored: list[str] = []
    parse_request("chat", body, ignored=ignored, max_tokens_limit=None)
    assert not ignored
    return body


def said(*messages: Any, **fields: Any) -> Any:
    return asked(messages=list(messages), **fields)["messages"]


def refusal(**fields: Any) -> tuple[str | None, str]:
    with pytest.raises(ValidationError) as error:
        asked(**fields)
    return error.value.param, error.value.message


# --- requests ---------------------------------------------------------------------------------------------------------


def test_what_both_apis_have_is_passed_on() -> None:
    body = asked(temperature=0.5, top_p=0.8, top_k=7, stop_sequences=["a", "b"], stream=True)
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p", "top_k", "stop")} == {
        "model": "m", "max_tokens": 64, "temperature": 0.5, "top_p": 0.8, "top_k": 7, "stop": ["a", "b"],
    }  # fmt: skip
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert exchange(stream=True).streaming and not exchange().streaming
    assert "stream_options" not in asked()


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {"a": 1}}]])
def test_the_system_prompt_comes_first(system: Any) -> None:
    assert said(USER, system=system) == [{"role": "system", "content": "Be brief."}, USER]


def test_texts_stay_apart_and_turns_of_one_role_are_one() -> None:
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    parts = [{"type": "text", "text": text} for text in "abc"]
    assert said({"role": "user", "content": blocks}, {"role": "user", "content": "c"}) == [
        {"role": "user", "content": parts}
    ]


def test_calls_and_results() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"größe": 1}}
    again = {"type": "tool_use", "id": "toolu_2", "name": "add", "input": {}, "caller": {"type": "direct"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "2"}]}
    failed = {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True}
    answer = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "text", "text": "I add."},
        call,
        again,
    ]
    assert said(
        USER,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [result, failed, {"type": "text", "text": "And?"}]},
    )[1:] == [
        {
            "role": "assistant",
            "content": "I add.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": '{"größe": 1}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "2"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "error: no"},
        {"role": "user", "content": "And?"},
    ]


def test_a_result_may_be_empty() -> None:
    call = {"type": "tool_use", "id": "t", "name": "add", "input": {}}
    for content in ({}, {"content": None}, {"content": []}, {"content": ""}):
        result = {"type": "tool_result", "tool_use_id": "t", **content}
        turns = said(USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]})
        assert turns[-1] == {"role": "tool", "tool_call_id": "t", "content": ""}


def test_an_answer_that_the_client_has_begun_is_continued() -> None:
    begun = [{"type": "text", "text": "The weather is"}]
    body = asked(messages=[USER, {"role": "assistant", "content": begun}])
    assert body["continue_final_message"] is True
    assert body["messages"] == [USER, {"role": "assistant", "content": "The weather is"}]
    assert "continue_final_message" not in asked()


def test_encrypted_thoughts_are_told_of() -> None:
    blocks = [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}]
    messages = [USER, {"role": "assistant", "content": blocks}, USER]
    assert exchange(messages=messages).ignored == ["messages[1].content[0].data"]
    assert said(*messages)[1] == {"role": "assistant", "content": "a"}


def test_tools() -> None:
    tools = [TOOL | {"type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}, TOOL | {"name": "sub"}]
    body = asked(tools=tools)
    parameters = {"type": "object", "properties": {}}
    assert body["tools"] == [
        {"type": "function", "function": {"name": "add", "description": "Adds.", "strict": True,
                                          "parameters": parameters}},
        {"type": "function", "function": {"name": "sub", "description": "Adds.", "parameters": parameters}},
    ]  # fmt: skip
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "ours"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
    ],
)
@pytest.mark.parametrize("alone", [None, True, False])
def test_the_choice_of_a_tool(choice: Any, ours: Any, alone: bool | None) -> None:
    body = asked(tools=[TOOL], tool_choice=choice | {"disable_parallel_tool_use": alone})
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (ours, not alone)


def test_thinking() -> None:
    assert asked()["enable_thinking"] is False
    assert asked()["reasoning_format"] == "deepseek"
    for kind, thinks in (("enabled", True), ("adaptive", True), ("disabled", False)):
        assert asked(thinking={"type": kind})["enable_thinking"] is thinks
    held = exchange(thinking={"type": "enabled", "budget_tokens": 1024})
    assert held.body["thinking_token_budget"] == 1024 and held.ignored == []
    assert held.all_ignored(["thinking_token_budget"]) == ["thinking.budget_tokens"]  # of a model that does not think
    with pytest.raises(ValidationError, match="thinking.budget_tokens: must be 1 or more, got 0"):
        exchange(thinking={"type": "enabled", "budget_tokens": 0})


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_schema_of_the_answer(field: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    given = {"output_config": {"format": form, "effort": "low"}} if field == "output_config" else {field: form}
    assert asked(**given)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
    }
    assert exchange(**given).ignored == []


def test_an_effort_is_for_the_template_to_know() -> None:
    held = exchange(output_config={"effort": "xhigh"})
    assert (held.body["reasoning_effort"], held.ignored) == ("xhigh", [])
    assert held.all_ignored(["reasoning_effort"]) == ["output_config.effort"]  # where it does not
    assert refusal(output_config={"effort": "none"})[0] == "output_config.effort"


@pytest.mark.parametrize("field", HARMLESS)
def test_what_changes_no_answer_is_accepted(field: str) -> None:
    assert exchange(**{field: {"any": "thing"}}).ignored == []
    assert asked(**{field: {"any": "thing"}}) == asked()


def test_what_nobody_knows_is_told_of() -> None:
    block = {"type": "text", "text": "a", "colour": 1}
    held = exchange(colour=1, messages=[{"role": "user", "content": [block], "name": "x"}], tools=[TOOL | {"x": 1}])
    assert sorted(held.ignored) == ["colour", "messages[0].content[0].colour", "messages[0].name", "tools[0].x"]


@pytest.mark.parametrize("field", CANNOT)
def test_what_cannot_be_done_is_refused_by_name(field: str) -> None:
    assert refusal(**{field: {"id": "x"}})[0] == field
    for nothing in (None, [], {}):
        assert asked(**{field: nothing}) == asked()


def test_context_that_is_left_as_it_is() -> None:
    keep = {"type": "clear_thinking_20251015", "keep": "all"}
    assert asked(context_management={"edits": [keep]}) == asked(context_management={"edits": []}) == asked()
    clear = {"type": "clear_tool_uses_20250919"}
    assert refusal(context_management={"edits": [keep, clear]})[0] == "context_management"


def turn(role: str, *blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"context_management": {"edits": 5}}, "context_management"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"content": ""}]}, "messages[0].role"),
        (turn("user", "Hi"), "messages[0].content[0]"),
        (turn("user", {"type": "image", "source": {}}), "messages[0].content[0].type"),
        (turn("user", {"type": "document", "source": {}}), "messages[0].content[0].type"),
        (turn("user", {"type": "tool_use"}), "messages[0].content[0].type"),
        (turn("user", {"type": "text"}), "messages[0].content[0].text"),
        (turn("user", {"text": "a"}), "messages[0].content[0].type"),
        (turn("user", {"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
        (
            turn("user", {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}),
            "messages[0].content[0].content[0].type",
        ),
        (turn("assistant", {"type": "tool_result"}), "messages[0].content[0].type"),
        (turn("assistant", {"type": "server_tool_use"}), "messages[0].content[0].type"),
        (turn("assistant", {"type": "tool_use", "name": "a", "input": "{}"}), "messages[0].content[0].input"),
        (turn("assistant", {"type": "tool_use", "id": "t", "name": "a", "input": {}}), "messages[0]"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [TOOL | {"input_examples": [{}]}]}, "tools[0].input_examples"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "display": "loud"}}, "thinking.display"),
        ({"output_format": {"type": "json"}}, "output_format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(fields: dict[str, Any], path: str) -> None:
    param, message = refusal(**fields)
    assert param == path and message.startswith(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("system", "tools", "tool_choice", "thinking", "output_config", "output_format", "stop_sequences", "messages",
          "max_tokens", "stream", "container", "context_management", "metadata", "model")  # fmt: skip
KEYS = st.sampled_from(("type", "text", "content", "role", "name", "input", "id", "input_schema", "format", "edits"))
TYPES = st.sampled_from(("text", "tool_use", "tool_result", "thinking", "user", "assistant", "custom", "json_schema"))
NEAR = st.recursive(
    JSON | TYPES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@settings(deadline=None, derandomize=True, database=None)
@given(st.dictionaries(st.sampled_from(FIELDS), NEAR))
def test_no_body_is_a_crash(fields: dict[str, Any]) -> None:
    for given_fields in (fields, {"max_tokens": 5, "messages": [USER], **fields}):
        try:
            asked(**given_fields)
        except ValidationError as error:
            assert error.message
        try:
            chat_fields(given_fields, [], counted=True)
        except ValidationError as error:
            assert error.param


# --- answers ----------------------------------------------------------------------------------------------------------


def events(parts: Iterable[bytes]) -> list[Any]:
    """The data of each event, which is named as it names itself."""
    found = []
    for part in parts:
        head, data, *rest = part.decode("ascii").split("\n")
        assert rest == ["", ""] and part.endswith(b"\n\n")
        words = json.loads(data.removeprefix("data: "))
        assert head == f"event: {words['type']}"
        found.append(words)
    return found


def folded(told: list[Any]) -> Any:
    """The message that a client makes of the events; blocks are whole before the next one begins."""
    assert [words["type"] for words in told[:2]] == ["message_start", "ping"]
    assert [words["type"] for words in told[-2:]] == ["message_delta", "message_stop"]
    message = told[0]["message"]
    pieces, is_open = "", False
    for words in told[2:-2]:
        if words["type"] == "content_block_start":
            assert not is_open and words["index"] == len(message["content"])
            message["content"].append(words["content_block"])
            pieces, is_open = "", True
            continue
        assert is_open and words["index"] == len(message["content"]) - 1
        block = message["content"][-1]
        if words["type"] == "content_block_stop":
            is_open = False
            if block["type"] == "tool_use":
                block["input"] = arguments_of(pieces)
        elif words["delta"]["type"] == "input_json_delta":
            assert block["type"] == "tool_use"
            pieces += words["delta"]["partial_json"]
        else:
            (field,) = set(words["delta"]) - {"type"}
            assert words["delta"]["type"] == f"{field}_delta"
            block[field] += words["delta"][field]
    assert not is_open
    message |= told[-2]["delta"]
    message["usage"] |= told[-2]["usage"]
    return message


class Answer:
    """An answer of ours in both forms."""

    def __init__(self, reason: str, *deltas: Any, cached: int = 0, n_generated: int = 64, **choice: Any) -> None:
        self.usage: dict[str, Any] = {
            "prompt_tokens": 9,
            "completion_tokens": n_generated,
            "total_tokens": 9 + n_generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        self.end = {"finish_reason": reason, **choice}
        self.deltas = deltas

    def chunks(self) -> Iterable[dict[str, Any]]:
        yield {"model": "m", "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
        counted = {"usage": {**self.usage, "completion_tokens": 1}}  # with each, and so far
        for delta in self.deltas:
            yield {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **counted}
        yield {"model": "m", "choices": [{"index": 0, "delta": {}, **self.end}], **counted}
        yield {"model": "m", "choices": [], "usage": self.usage}

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        calls: dict[int, Any] = {}
        for delta in self.deltas:
            for field in ("content", "reasoning_content"):
                if field in delta:
                    message[field] = message.get(field, "") + delta[field]
            for call in delta.get("tool_calls", ()):
                index = call["index"]
                calls.setdefault(index, {"id": call.get("id"), "function": dict(call["function"], arguments="")})
                calls[index]["function"]["arguments"] += call["function"]["arguments"]
        if calls:
            message |= {"content": message["content"] or None, "tool_calls": list(calls.values())}
        return {"model": "m", "choices": [{"index": 0, "message": message, **self.end}], "usage": {**self.usage}}


def call(index: int, name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    return {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}


def arguments(index: int, text: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


ANSWERS = {
    "empty": Answer("stop"),
    "text": Answer("stop", {"content": "Hi "}, {"content": "caf\u00e9\u2028"}, cached=4),
    "thought": Answer("stop", {"reasoning_content": "Hm"}, {"reasoning_content": "."}, {"content": "Yes"}),
    "thought alone": Answer("length", {"reasoning_content": "Hm"}),
    "calls": Answer("tool_calls", {"content": "I add."}, call(0, "add"), arguments(0, '{"a": 1'), arguments(0, "}"),
                    call(1, "add"), arguments(1, '{"a": [2, "x"]}'), call(2, "now"), arguments(2, "{}")),
    "cut call": Answer("length", call(0, "add"), arguments(0, '{"a": 1, "b": "xy')),
    "begun call": Answer("length", call(0, "add")),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_the_folded_stream_is_the_plain_reply(name: str, display: str) -> None:
    answer = ANSWERS[name]
    thinking = {"type": "enabled", "display": display}
    streamed, plain = exchange(stream=True, thinking=thinking), exchange(thinking=thinking)
    parts = [part for chunk in answer.chunks() for part in streamed.chunk(chunk)]
    told = events([*parts, *streamed.end()])
    reply = plain.reply(answer.whole())
    assert folded(told) == reply
    thoughts = [block["thinking"] for block in reply["content"] if block["type"] == "thinking"]
    assert all(bool(thought) == (display == "summarized") for thought in thoughts)


def test_a_plain_reply() -> None:
    reply = exchange().reply(ANSWERS["calls"].whole())
    assert reply == {
        "id": f"msg_{MOMENT.id}",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "text", "text": "I add."},
            {"type": "tool_use", "id": "toolu_0", "name": "add", "input": {"a": 1}},
            {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": [2, "x"]}},
            {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 9,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 64,
            "output_tokens_details": {"thinking_tokens": 0},
            "service_tier": "standard",
        },
    }


def test_cached_tokens_are_counted_apart() -> None:
    usage = exchange().reply(ANSWERS["text"].whole())["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 4)
    told = ANSWERS["text"].whole()
    told["usage"].pop("prompt_tokens_details")
    assert exchange().reply(told | {"pg_metadata": {"cached_tokens": 3}})["usage"]["cache_read_input_tokens"] == 3


@pytest.mark.parametrize(
    ("answer", "reason", "sequence"),
    [
        (Answer("stop"), "end_turn", None),
        (Answer("stop", stop_reason="###"), "stop_sequence", "###"),
        (Answer("stop", stop_reason=None), "end_turn", None),
        (Answer("stop", stop_reason=5), "end_turn", None),
        (Answer("length"), "max_tokens", None),
        (Answer("length", n_generated=63), "model_context_window_exceeded", None),
        (Answer("tool_calls"), "tool_use", None),
        (Answer("content_filter"), "refusal", None),
    ],
)
def test_why_it_ended(answer: Answer, reason: str, sequence: str | None) -> None:
    reply = exchange().reply(answer.whole())
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)


def test_a_failed_stream_ends_with_its_error() -> None:
    held = exchange(stream=True)
    role, first, *_ = ANSWERS["text"].chunks()
    assert not list(held.chunk(role))  # how long the prompt is comes with the first piece
    said = list(held.chunk(first))
    told = events([*said, *held.failure(Refusal("gone", "server_error", "device_lost", None, 503))])
    assert [words["type"] for words in told] == [
        "message_start", "ping", "content_block_start", "content_block_delta", "error"
    ]  # fmt: skip
    assert told[0]["message"]["usage"]["input_tokens"] == 5
    assert told[-1]["error"] == {
        "type": "overloaded_error",
        "message": "gone",
        "details": {"error_code": "device_lost"},
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"),
     (429, "rate_limit_error"), (503, "overloaded_error"), (500, "api_error"), (501, "api_error")],
)  # fmt: skip
def test_refusals(status: int, kind: str) -> None:
    words = MessagesExchange.error(Refusal("why", "x", "y", None, status))
    inner = {"type": kind, "message": "why", "details": {"error_code": "y"}}
    assert words == {"type": "error", "error": inner, "request_id": None}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stop[0]: x", "stop_sequences[0]: x"),
        ("stop: x", "stop_sequences: x"),
        ("response_format.json_schema.schema.not: x", "output_config.format.schema.not: x"),
        ("tools[1].function.parameters.properties.a: x", "tools[1].input_schema.properties.a: x"),
        ("tools[1].function.name: x", "tools[1].name: x"),
        ("stop_token_ids: x", "stop_token_ids: x"),
        ("temperature: x", "temperature: x"),
    ],
)
def test_fields_go_by_their_names_here(ours: str, theirs: str) -> None:
    assert MessagesExchange.error(Refusal(ours, "x", "y", None, 400))["error"]["message"] == theirs


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(st.recursive(st.integers() | st.text(max_size=8) | st.booleans(), lambda x: st.dictionaries(st.text(), x)))
def test_arguments_may_be_cut_anywhere(value: Any) -> None:
    text = json.dumps({"a": value})
    assert arguments_of(text) == {"a": value}
    for end in range(len(text)):
        assert isinstance(arguments_of(text[:end]), dict)
    assert arguments_of(re.sub("^.", "[", text)) == {}
