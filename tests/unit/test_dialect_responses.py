"""The Responses API as an exchange: what of a request is honoured, refused or ignored; a stream is its whole answer."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import openai.types.responses as official
import pytest
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import TypeAdapter

from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.exchange import Moment, Refusal
from polargrid_local.dialects.responses import ResponsesExchange
from polargrid_local.errors import NotFoundError, PolarGridError, ValidationError
from polargrid_local.service.kept import KeptResponses

ID = "0123456789abcdef01234567"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def exchange(kept: Any = None, *, id: str = ID, **body: Any) -> ResponsesExchange:
    """Also: what it asks is one of our requests, and the body it was made of stays as it was."""
    before = copy.deepcopy(body)
    made = ResponsesExchange(body, Moment(id, 1.5, kept), "chat")
    assert body == before
    parse_request("chat", made.body, max_tokens_limit=None, ignored=made.ignored)
    return made


def messages(*items: Any, **body: Any) -> Any:
    return exchange(input=list(items), **body).body["messages"]


def refused(**body: Any) -> ValidationError:
    with pytest.raises(ValidationError) as error:
        exchange(**body)
    assert error.value.param and error.value.param in error.value.message
    return error.value


def token(text: str) -> dict[str, Any]:
    return {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}


Delta = Mapping[str, Any]
CALLS: list[Delta] = [
    {"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    {"tool_calls": [{"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": ""}}]},
    {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
]
THOUGHT: list[Delta] = [{"reasoning_content": "Let me"}, {"reasoning_content": " see"}]
WORDS: list[Delta] = [{"content": "caf\u00e9"}, {"content": " \u2028"}, {"content": "\U0001f600"}]


def chunks(deltas: Sequence[Delta], reason: str, logprobs: bool = False) -> list[dict[str, Any]]:
    """As our chat would stream them; with a token for each delta, and one for the end of the turn."""
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    made = []
    for delta in [{"role": "assistant"}, *deltas, {}]:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None if delta else reason}
        if logprobs and "role" not in delta:
            text = delta.get("content") or delta.get("reasoning_content") or ""
            choice["logprobs"] = {"content": [token(text)]}
        made.append({**common, "choices": [choice]})
    return [*made, {**common, "choices": [], "usage": USAGE}]


def answer(deltas: Sequence[Delta], reason: str, logprobs: bool = False) -> dict[str, Any]:
    """The same in one piece, as our chat would give it."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(d.get("content", "") for d in deltas)}
    if thought := "".join(d.get("reasoning_content", "") for d in deltas):
        message["reasoning_content"] = thought
    calls: list[dict[str, Any]] = []
    for call in itertools.chain.from_iterable(d.get("tool_calls", ()) for d in deltas):
        if "id" in call:
            calls.append({"id": call["id"], "type": "function", "function": {**call["function"]}})
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if calls:
        message |= {"tool_calls": calls, "content": message["content"] or None}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
    if logprobs:
        told = [c["choices"][0]["logprobs"] for c in chunks(deltas, reason, True)[1:-1]]
        choice["logprobs"] = {"content": [entry for entries in told for entry in entries["content"]]}
    return {"model": "m", "choices": [choice], "usage": USAGE, "pg_metadata": {"cached_tokens": 0}}


def streamed(made: ResponsesExchange, deltas: Sequence[Delta], reason: str, logprobs: bool = False) -> list[Any]:
    """The events, each as it comes over the wire: named by its type, numbered, and as the official client reads it."""
    wire = [data for chunk in chunks(deltas, reason, logprobs) for data in made.chunk(chunk)]
    return read([*wire, *made.end()])


def read(wire: list[bytes]) -> list[Any]:
    events = []
    for data in wire:
        assert data.isascii()
        head, line, *rest = data.decode().split("\n")
        event = json.loads(line.removeprefix("data: "))
        assert (head, rest) == (f"event: {event['type']}", ["", ""])
        EVENTS.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def folded(events: list[Any]) -> list[Any]:
    """The output that a client makes of deltas alone, but for what only the ends of items tell."""
    output: list[Any] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(output)
            output.append(event["item"])
        elif kind == "response.content_part.added":
            output[event["output_index"]]["content"].append(event["part"])
        elif kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            part = output[event["output_index"]]["content"][event["content_index"]]
            part["text"] += event["delta"]
            if "logprobs" in event:
                part["logprobs"] += event["logprobs"]
        elif kind == "response.function_call_arguments.delta":
            output[event["output_index"]]["arguments"] += event["delta"]
        elif kind == "response.output_item.done":
            output[event["output_index"]]["status"] = event["item"]["status"]
            assert output[event["output_index"]] == event["item"]
        if "item_id" in event:
            assert output[event["output_index"]]["id"] == event["item_id"]
    return output


# --- answers ----------------------------------------------------------------------------------------------------------

ANSWERS = [
    *(
        (thought + words + calls, reason)
        for thought, words, calls in itertools.product(([], THOUGHT), ([], WORDS), ([], CALLS))
        for reason in ("stop", "tool_calls", "length", "content_filter")
    ),
]


@pytest.mark.parametrize(("deltas", "reason"), ANSWERS)
def test_a_stream_is_the_whole_answer(deltas: list[Delta], reason: str) -> None:
    plain = exchange(input="x").reply(answer(deltas, reason))
    official.Response.model_validate(plain)
    *events, last = streamed(exchange(input="x", stream=True), deltas, reason)
    assert last["response"] == plain
    assert last["type"] == f"response.{plain['status']}"
    assert folded(events) == plain["output"]
    assert plain["status"] == ("incomplete" if reason in ("length", "content_filter") else "completed")
    said = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason)
    assert plain["incomplete_details"] == (said and {"reason": said})
    if plain["output"]:
        assert [item["status"] for item in plain["output"][:-1]] == ["completed"] * (len(plain["output"]) - 1)
        assert plain["output"][-1]["status"] == plain["status"]


def test_the_order_of_events() -> None:
    events = streamed(exchange(input="x", stream=True), THOUGHT + WORDS[:1] + CALLS[:3], "tool_calls")
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["usage"] is None and events[0]["response"]["output"] == []
    assert events[-1]["response"]["usage"]["output_tokens"] == 7


def test_words_behind_a_call_are_an_item_of_their_own_in_a_stream() -> None:
    deltas = [*CALLS[:3], *WORDS]
    *events, last = streamed(exchange(input="x", stream=True), deltas, "tool_calls")
    assert folded(events) == last["response"]["output"]
    assert [item["type"] for item in last["response"]["output"]] == ["function_call", "message"]
    plain = exchange(input="x").reply(answer(deltas, "tool_calls"))
    assert [item["type"] for item in plain["output"]] == ["message", "function_call"]


@pytest.mark.parametrize("thought", [[], THOUGHT])
@pytest.mark.parametrize("calls", [[], CALLS])
def test_logprobs_are_those_of_the_words(thought: list[Delta], calls: list[Delta]) -> None:
    deltas, asked = thought + WORDS + calls, {"input": "x", "include": ["message.output_text.logprobs"]}
    *events, last = streamed(exchange(stream=True, **asked), deltas, "stop", logprobs=True)
    plain = exchange(**asked).reply(answer(deltas, "stop", logprobs=True))
    assert folded(events) == last["response"]["output"] == plain["output"]
    [message] = [item for item in plain["output"] if item["type"] == "message"]
    assert message["content"][0]["logprobs"] == [token(delta["content"]) for delta in WORDS]


def test_logprobs_of_what_no_tokens_spell_are_those_of_all_tokens() -> None:
    asked = exchange(input="x", top_logprobs=2)
    given = answer([{"content": "\ufffd"}], "length")
    given["choices"][0]["logprobs"] = {"content": [{**token(""), "bytes": [0xF0]}]}
    [message] = asked.reply(given)["output"]
    assert len(message["content"][0]["logprobs"]) == 1


def test_a_complete_answer_without_words_is_an_empty_message() -> None:
    [message] = exchange(input="x").reply(answer([], "stop"))["output"]
    assert message["content"][0]["text"] == ""
    assert exchange(input="x").reply(answer([], "length"))["output"] == []


@pytest.mark.parametrize("n", range(6))
def test_a_failure_ends_a_stream_in_place_of_its_end(n: int) -> None:
    made = exchange(input="x", stream=True, model="m")
    refusal = Refusal("max_tokens: too many", "server_error", "engine_crashed", "max_tokens", 503)
    wire = [data for chunk in chunks(WORDS, "stop")[:n] for data in made.chunk(chunk)]
    events = read([*wire, *made.failure(refusal)])
    assert [events[0]["type"], events[-1]["type"]] == ["response.created", "response.failed"]
    failed = events[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert failed["error"]["message"] == "max_output_tokens: too many"
    assert not any(event["type"] == "response.completed" for event in events)


def test_a_response_says_what_was_asked() -> None:
    asked: dict[str, Any] = {
        "instructions": "be brief", "max_output_tokens": 9, "max_tool_calls": 2, "metadata": {"a": "b"},
        "parallel_tool_calls": False, "prompt_cache_key": "k", "safety_identifier": "s", "store": False,
        "temperature": 0.25, "tools": [TOOL], "tool_choice": "required", "top_logprobs": 3, "top_p": 0.5,
        "truncation": "disabled", "user": "u",
    }  # fmt: skip
    said = exchange(input="x", model="m", **asked).reply(answer(WORDS, "stop"))
    assert {name: said[name] for name in asked} == asked
    assert (said["id"], said["object"], said["created_at"], said["model"]) == (f"resp_{ID}", "response", 1, "m")
    assert said["usage"] == {
        "input_tokens": 5, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12,
    }  # fmt: skip
    unasked = exchange(input="x").reply(answer(WORDS, "stop"))
    assert (unasked["temperature"], unasked["top_p"], unasked["tool_choice"]) == (0.7, 0.9, "auto")
    assert (unasked["text"], unasked["store"]) == ({"format": {"type": "text"}}, True)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_text_is_a_message_of_the_user_behind_the_instructions() -> None:
    made = exchange(input="hi", instructions="be brief", model="m")
    assert made.body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert (made.body["model"], made.streaming, made.ignored) == ("m", False, [])


def test_what_a_model_gave_in_one_turn_is_one_message() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_a", "name": "f", "arguments": "{}"}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    said = {
        "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
        "content": [
            {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "b"},
        ],
    }  # fmt: skip
    result = {"type": "function_call_output", "call_id": "call_a", "output": "42"}
    asked = {"role": "user", "content": "hi"}
    function = {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": "ab", "reasoning_content": "hm", "tool_calls": [function]}
    for items in itertools.permutations([thought, said, call]):
        if items[0] is said and items[1] is thought:
            continue  # a thought behind words begins another turn
        assert messages(asked, *items, result, asked)[1:3] == [
            turn,
            {"role": "tool", "tool_call_id": "call_a", "content": "42"},
        ]
    other = {**call, "call_id": "call_b"}
    [both] = messages(call, other)
    assert [made["id"] for made in both["tool_calls"]] == ["call_a", "call_b"]
    assert [turn["content"] for turn in messages(said, said)] == ["ab", "ab"]
    made = exchange(input=[asked, thought, said, call, result])
    assert made.ignored == []


def test_reasoning_without_its_text() -> None:
    summed = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "so"}]}
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"}
    assert messages(summed) == [{"role": "assistant", "content": "", "reasoning_content": "so"}]
    made = exchange(input=[{"role": "user", "content": "hi"}, sealed])
    assert [message["role"] for message in made.body["messages"]] == ["user"]
    assert made.ignored == ["input[1].encrypted_content"]


def test_results_in_parts() -> None:
    result = {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "42"}]}
    assert messages(result)[0]["content"] == [{"type": "text", "text": "42"}]


def test_fields_of_the_chat() -> None:
    schema = {"type": "object", "properties": {"x": {"enum": [None, 1], "default": None}}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    made = exchange(
        input="x", max_output_tokens=5.0, temperature=0, top_p=1, stream=True, tools=[TOOL], parallel_tool_calls=False,
        tool_choice={"type": "function", "name": "f"}, text={"format": form, "verbosity": "medium"},
        reasoning={"effort": "none", "summary": "auto"}, include=["message.output_text.logprobs"], top_logprobs=2,
        seed=7, top_k=3, stop=["a"], min_p=0.5, logit_bias={"1": 2}, topP=0.1,
        stream_options={"include_obfuscation": False},
    )  # fmt: skip
    function = {name: TOOL[name] for name in ("name", "description", "parameters", "strict")}
    expected = {
        "max_tokens": 5, "temperature": 0, "top_p": 1, "stream": True, "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": function}], "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "name": "f"}, "logprobs": True, "top_logprobs": 2,
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
        "reasoning_effort": "none", "reasoning_format": "deepseek",
        "seed": 7, "top_k": 3, "stop": ["a"], "min_p": 0.5, "logit_bias": {"1": 2},
    }  # fmt: skip
    assert {name: made.body[name] for name in expected} == expected
    assert made.ignored == []
    said = made.reply(answer(WORDS, "stop"))
    assert said["text"]["format"] == form


@pytest.mark.parametrize("form", [{"type": "text"}, {"type": "json_object"}])
def test_other_formats(form: dict[str, Any]) -> None:
    assert exchange(input="x", text={"format": form}).body["response_format"] == form


def test_some_tools_only() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    assert exchange(input="x", tools=[TOOL], tool_choice=choice).body["tool_choice"] == choice


def test_what_changes_no_answer_is_accepted() -> None:
    nothing = {
        "metadata": {}, "user": "u", "safety_identifier": "s", "service_tier": "flex", "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}, "truncation": "disabled",
        "background": False, "store": True, "max_tool_calls": 1, "include": ["reasoning.encrypted_content"],
        "conversation": None, "prompt": None, "instructions": None, "text": {}, "reasoning": {"summary": "concise"},
        "context_management": [], "tools": [], "n": 1,
    }  # fmt: skip
    plain = exchange(input="x").body
    made = exchange(input="x", **nothing)
    assert {**made.body, "n": 1} == {**plain, "n": 1}
    assert made.ignored == []


def test_what_nobody_knows_is_named() -> None:
    made = exchange(
        input=[{"role": "user", "content": [{"type": "input_text", "text": "a", "color": "red"}], "mood": "glad"}],
        tools=[{**TOOL, "defer_loading": True}],
        text={"format": {"type": "text", "font": "serif"}},
        include=["everything"],
        future=1,
    )
    named = ["input[0].mood", "input[0].content[0].color", "tools[0].defer_loading", "text.format.font", "include[0]"]
    assert sorted(made.ignored) == sorted([*named, "future"])


IMAGE = {"type": "input_image", "image_url": "https://example.org/x.png"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": 5}, "input"),
    ({"input": [5]}, "input[0]"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]"),
    ({"input": [{"type": "computer_call_output"}]}, "input[0]"),
    ({"input": [{}]}, "input[0]"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": {}}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": [IMAGE]}]}, "input[0].output[0]"),
    ({"input": [{"type": "item_reference", "role": "user"}]}, "input[0].id"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"input": "x", "tools": [TOOL, {"type": "custom", "name": "f"}]}, "tools[1].type"),
    ({"input": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
    ({"input": "x", "tools": "f"}, "tools"),
    ({"input": "x", "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ({"input": "x", "tool_choice": "sometimes"}, "tool_choice"),
    ({"input": "x", "background": True}, "background"),
    ({"input": "x", "conversation": "conv_1"}, "conversation"),
    ({"input": "x", "prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"input": "x", "moderation": {"model": "m"}}, "moderation"),
    ({"input": "x", "return_token_ids": True}, "return_token_ids"),
    ({"input": "x", "timings_per_token": True}, "timings_per_token"),
    ({"input": "x", "context_management": [{"type": "compaction"}]}, "context_management"),
    ({"input": "x", "truncation": "auto"}, "truncation"),
    ({"input": "x", "n": 2}, "n"),
    ({"input": "x", "reasoning": {"effort": "much"}}, "reasoning.effort"),
    ({"input": "x", "reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"input": "x", "reasoning": "much"}, "reasoning"),
    ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity"),
    ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"input": "x", "text": {"format": {"type": "json_schema", "schema": []}}}, "text.format.schema"),
    ({"input": "x", "instructions": ["x"]}, "instructions"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "x", "max_output_tokens": "5"}, "max_output_tokens"),
    ({"input": "x", "temperature": 3}, "temperature"),
    ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
    ({"input": "x", "metadata": {"a": 1}}, "metadata.a"),
    ({"input": "x", "store": "yes"}, "store"),
    ({"input": "x", "stream": "yes"}, "stream"),
    ({"input": "x", "messages": []}, "messages"),
    ({"input": "x", "max_tokens": 5}, "max_tokens"),
    ({"input": "x", "response_format": {}}, "response_format"),
    ({"input": "x", "reasoning_effort": "low"}, "reasoning_effort"),
    ({"input": "x", "logprobs": True}, "logprobs"),
    ({"input": "x", "seed": "a"}, "seed"),
]


@pytest.mark.parametrize(("body", "field"), REFUSED)
def test_what_is_refused_is_named(body: dict[str, Any], field: str) -> None:
    assert refused(**body).param == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": []}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * 1025}, "input"),
    ],
)
def test_what_our_chat_refuses_is_named_as_it_is_called_here(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as error:
        exchange(**{"input": "x", **body})
    raised = error.value
    said = ResponsesExchange.error(Refusal(raised.message, raised.type, raised.code, raised.param, 400))
    assert said["error"]["param"] == field
    assert said["error"]["message"].startswith(f"{field}: ")
    assert said["detail"] == said["error"]["message"]


def test_a_refusal_without_a_place_stays_as_it_is() -> None:
    assert ResponsesExchange.error(Refusal("no", "t", "c", None, 500))["error"]["message"] == "no"


JUNK = [None, True, 0, -1, 1e300, "", "x", [], [None], [[]], {}, {"type": None}, {"type": "message"}, {"id": 5}]


@pytest.mark.parametrize("junk", JUNK)
def test_no_body_is_a_crash(junk: Any) -> None:
    bodies: list[dict[str, Any]] = [{"input": junk}, {"input": [junk]}]
    fields = ("content", "call_id", "output", "id", "name", "arguments", "summary")
    for kind in ("message", "function_call", "function_call_output", "reasoning", "item_reference", None):
        bodies.append({"input": [{"type": kind, "role": "user", **dict.fromkeys(fields, junk)}]})
    bodies += [{"input": [{"role": "user", "content": [junk]}]}]
    names = ("instructions", "model", "tools", "tool_choice", "text", "reasoning", "include", "previous_response_id",
             "metadata", "stream", "store", "background", "conversation", "prompt", "top_logprobs", "stream_options",
             "max_output_tokens", "n", "stop", "service_tier", "truncation", "temperature", "foo")  # fmt: skip
    bodies += [{"input": "x", name: junk} for name in names]
    bodies += [{"input": "x", "tools": [junk]}, {"input": "x", "include": [junk]}]
    bodies += [{"input": "x", "text": {"format": junk}}, {"input": "x", "reasoning": {"effort": junk}}]
    for body in bodies:
        try:
            exchange(KeptResponses(), **body)
        except PolarGridError as error:
            assert error.status in (400, 404) and error.param, body


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on() -> None:
    kept = KeptResponses()
    first = exchange(kept, id="a" * 24, input="one", instructions="be brief")
    said = first.reply(answer(THOUGHT + WORDS + CALLS, "tool_calls"))
    results = [{"type": "function_call_output", "call_id": id, "output": "42"} for id in ("call_a", "call_b")]
    second = exchange(kept, id="b" * 24, input=results, previous_response_id=said["id"], stream=True)
    words = "".join(delta["content"] for delta in WORDS)
    assert [(m["role"], m["content"]) for m in second.body["messages"]] == [
        ("user", [{"type": "text", "text": "one"}]),
        ("assistant", words),
        ("tool", "42"),
        ("tool", "42"),
    ]
    assert second.body["messages"][1]["reasoning_content"] == "Let me see"
    last = streamed(second, WORDS, "stop")[-1]["response"]
    assert last["previous_response_id"] == said["id"]
    third = exchange(kept, id="c" * 24, input="two", previous_response_id=last["id"])
    assert third.body["messages"][:4] == second.body["messages"]
    assert [m["role"] for m in third.body["messages"][4:]] == ["assistant", "user"]
    assert list(kept) == [said["id"], last["id"]]
    assert kept[last["id"]]["response"] == last


def test_nothing_is_kept_where_nothing_is_to_be() -> None:
    kept = KeptResponses()
    exchange(kept, input="x", store=False).reply(answer(WORDS, "stop"))
    made = exchange(kept, input="x", stream=True)
    read([*made.failure(Refusal("no", "server_error", "c", None, 500))])
    exchange(kept, input="x")
    exchange(None, input="x").reply(answer(WORDS, "stop"))
    assert len(kept) == 0


def test_an_unknown_response_is_not_found() -> None:
    for kept in (None, KeptResponses()):
        with pytest.raises(NotFoundError) as error:
            exchange(kept, input="x", previous_response_id="resp_gone")
        assert error.value.param == "previous_response_id" and "'resp_gone'" in error.value.message
        assert error.value.status == 404


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {"type": None}, {}])
def test_items_may_be_referred_to(kind: dict[str, Any]) -> None:
    kept = KeptResponses()
    said = exchange(kept, id="a" * 24, input="one").reply(answer(THOUGHT + WORDS + CALLS, "tool_calls"))
    asked = kept[said["id"]]["input"][0]["id"]
    references = [{**kind, "id": id} for id in [asked, *(item["id"] for item in said["output"])]]
    whole = [{"role": "user", "content": [{"type": "input_text", "text": "one"}]}, *said["output"]]
    made = exchange(kept, input=references)
    assert made.body["messages"] == messages(*whole)
    assert made.ignored == []
    for id in (f"msg_{'a' * 24}9999", "msg_other", "x", f"rs_{'b' * 24}0000"):
        with pytest.raises(NotFoundError) as error:
            exchange(kept, input=["x", {**kind, "id": id}][1:])
        assert error.value.param == "input[0].id"


def kept_one(n: int) -> dict[str, Any]:
    items = [{"id": f"msg_{i}", "type": "message"} for i in range(n)]
    return {"response": {"id": "r", "output": []}, "input": items[2:], "history": items[:2]}


def test_the_least_recently_used_goes_first() -> None:
    kept = KeptResponses(max_responses=2)
    kept["a"], kept["b"] = {"n": 1}, {"n": 2}
    assert kept["a"] == {"n": 1}
    kept["c"] = {"n": 3}
    assert sorted(kept) == ["a", "c"]
    kept["a"] = {"n": 4}
    assert (len(kept), kept["a"]) == (2, {"n": 4})


def test_what_is_kept_is_bounded_in_bytes() -> None:
    size = len('{"n":"xxxxxxxxxx"}')
    kept = KeptResponses(max_bytes=3 * size)
    for id in "abcd":
        kept[id] = {"n": "x" * 10}
    assert sorted(kept) == ["b", "c", "d"]
    kept["e"] = {"n": "x" * 20}
    assert sorted(kept) == ["d", "e"]
    kept["f"] = {"n": "x" * 1000}
    assert sorted(kept) == ["d", "e"]
    kept["e"] = {"n": "x" * 1000}  # what took its place is too large: nothing stale stays
    assert sorted(kept) == ["d"]
    del kept["d"]
    kept["g"] = {"n": "x" * 46}
    assert list(kept) == ["g"]


def test_what_is_kept_does_not_change() -> None:
    kept = KeptResponses()
    given = {"items": [1]}
    kept["a"] = given
    given["items"].append(2)
    kept["a"]["items"].append(3)
    assert kept["a"] == {"items": [1]}


async def test_kept_items_come_in_pages() -> None:
    kept = KeptResponses()
    kept["r"] = kept_one(5)
    ask: dict[str, Any] = {"response_id": "r"}
    whole = await kept.input_items(ask)
    assert [item["id"] for item in whole["data"]] == [f"msg_{i}" for i in (4, 3, 2, 1, 0)]
    assert (whole["first_id"], whole["last_id"], whole["has_more"]) == ("msg_4", "msg_0", False)
    page = await kept.input_items({**ask, "order": "asc", "limit": "2", "after": "msg_1"})
    assert [item["id"] for item in page["data"]] == ["msg_2", "msg_3"]
    assert page["has_more"] is True
    none = await kept.input_items({**ask, "after": "msg_0"})
    assert (none["data"], none["first_id"], none["has_more"]) == ([], None, False)
    for wrong in ({"order": "up"}, {"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"after": "msg_9"}):
        with pytest.raises(ValidationError) as error:
            await kept.input_items({**ask, **wrong})
        assert [error.value.param] == list(wrong)


async def test_kept_responses_are_answered_and_deleted() -> None:
    kept = KeptResponses()
    kept["r"] = kept_one(1)
    ask = {"response_id": "r"}
    assert (await kept.retrieve(ask))["id"] == "r"
    with pytest.raises(ValidationError):
        await kept.retrieve({**ask, "stream": "true"})
    assert await kept.delete(ask) == {"id": "r", "object": "response", "deleted": True}
    for gone in (kept.retrieve, kept.delete, kept.input_items):
        with pytest.raises(NotFoundError) as error:
            await gone(ask)
        assert "'r'" in error.value.message
