"""Tools of a request: what the model is told, what its answer is held to, and how the answer tells of calls."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from fakes import INFO, Event

from polargrid_local.api.parse import parse_request
from polargrid_local.api.prepare import prepare
from polargrid_local.api.prompts import Target
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.chat.tool_formats import mark_of
from polargrid_local.errors import SchemaError, ValidationError

NOW = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
ID = "0123456789abcdef01234567"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Looks out of the window.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
SHOWS_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
CALLS = (
    '{% for c in m.tool_calls or [] %}<tool_call>\n{{ \'{"name": \' }}{{ c.function.name | tojson }}, "arguments": '
    "{{ c.function.arguments | tojson }}{{ '}' }}\n</tool_call>{% endfor %}"
)
HERMES = SHOWS_TOOLS + "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + CALLS + "{% endfor %}"
BARE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
THINKS = BARE + "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"


def made(
    template: str | None = BARE, *, info: Any = INFO, compile: Any = None, tool_format: str | None = None, **fields: Any
) -> Any:
    request = parse_request("chat", {"model": "M", "messages": HI, **fields})
    target = Target("M", info, ChatTemplate(template, tool_format=tool_format))
    if compile is not None:
        target = target._replace(compile=compile)
    return prepare(request, target, now=NOW, id=ID, seed=42)


def prompt(job: Any) -> str:
    return "".join(text for text, _ in job.requests[0]["prompt"])


def answered(job: Any, *events: Any, reason: str = "stop") -> tuple[list[Any], dict[str, Any]]:
    """The deltas of a stream, without the first and the last, and the plain answer's choice."""
    made_events = [event if isinstance(event, Event) else Event(1, "text", event) for event in events]
    chunks = job.assembler.start()
    for event in [*made_events, Event(1, "finished", reason=reason)]:
        chunks += job.assembler.feed(event, 0)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant"}
    choice = job.assembler.response()["choices"][0]
    assert [entry["finish_reason"] for entry in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == choice["finish_reason"]
    return [entry["delta"] for entry in choices[1:-1]], choice


def joined(deltas: list[Any]) -> dict[str, Any]:
    """The message that a client puts together."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for delta in deltas:
        for key in ("content", "reasoning_content"):
            if key in delta:
                assert delta[key]
                message[key] = (message.get(key) or "") + delta[key]
        for call in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                assert call["id"] and call["type"] == "function" and call["function"]["name"]
                calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
            else:
                assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
                assert call["function"]["arguments"]
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


# --- what the model is told -------------------------------------------------------------------------------------------


def test_a_template_that_shows_tools_is_given_them():
    job = made(HERMES, tools=TOOLS)
    shown, _ = json.JSONDecoder().raw_decode(prompt(job))
    assert shown == [WEATHER, TIME]  # as they came, `strict` aside
    assert (json.dumps("Looks out of the window."), False) not in job.requests[0]["prompt"]
    assert any("window" in text and not trusted for text, trusted in job.requests[0]["prompt"])  # never a control token


def test_one_that_shows_none_is_told_in_the_system_message():
    alone = prompt(made(tools=TOOLS))
    assert alone.startswith("[system]") and "Looks out of the window." in alone and "<tool_call>" in alone
    with_system = prompt(made(tools=TOOLS, messages=[{"role": "system", "content": "Be kind."}, *HI]))
    assert with_system.count("[system]") == 1 and with_system.startswith("[system]Be kind.\n\n")


def test_tools_that_cannot_be_called_are_not_told():
    assert prompt(made(HERMES, tools=TOOLS, tool_choice="none")) == "[user]hi" == prompt(made(HERMES))
    named = {"type": "function", "function": {"name": "time"}}
    assert "weather" in prompt(made(HERMES, tools=TOOLS, tool_choice=named))  # which tool is forced is no news to it


CALLED = [
    *HI,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
]


def test_calls_and_results_are_written_for_a_template_that_shows_none():
    known = "{% if m.role in ['user', 'assistant', 'system'] %}"
    lacking = "{% for m in messages %}" + known + "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    text = prompt(made(lacking, messages=CALLED))
    assert text == (
        f'[user]hi[assistant]{CALL}\n<tool_call>\n{{"name": "time", "arguments": {{}}}}\n</tool_call>'
        "[user]<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    )


def test_two_calls_of_one_turn_are_two_turns_where_a_template_takes_one_only():
    single = "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    template = "{% for m in messages %}" + single + "[{{ m.role }}{{ m.name }}]{{ m.content }}" + CALLS + "{% endfor %}"
    second = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    assert prompt(made(template, messages=CALLED)) == (
        f"[user]hi[assistant]{CALL}[toolweather]sunny[assistant]{second}[tooltime]noon"
    )


def test_ids_are_shortened_for_those_that_want_nine_signs():
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_call_id }}{% for c in m.tool_calls or [] %}"
        "{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
        "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    text = prompt(made(template, messages=CALLED))
    ids = [part[:9] for part in text.split("[CALL_ID]")[1:]]
    assert len(set(ids)) == 2 and text.endswith(f"[tool]sunny{ids[0]}[tool]noon{ids[1]}")
    kept = json.loads(json.dumps(CALLED).replace("call_1", "abcdefghi"))
    assert "[CALL_ID]abcdefghi[ARGS]" in prompt(made(template, messages=kept))


# --- what the answer is held to ---------------------------------------------------------------------------------------


def test_without_tools_an_answer_is_free():
    request = made(HERMES).requests[0]
    assert "constraint" not in request and "marks" not in request
    assert "constraint" not in made(HERMES, tools=TOOLS, tool_choice="none").requests[0]


def test_with_tools_it_has_one_grammar():
    asked = []
    job = made(HERMES, tools=TOOLS, compile=asked.append)
    assert [constraint.kind for constraint in asked] == ["lark"]
    assert job.requests[0]["constraint"] == asked[0]._asdict()
    assert '"weather"' in asked[0].text and '"time"' in asked[0].text
    forced = made(HERMES, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "time"}})
    assert '"weather"' not in forced.requests[0]["constraint"]["text"]
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "name": "time"}]},
    }
    assert '"weather"' not in made(HERMES, tools=TOOLS, tool_choice=allowed).requests[0]["constraint"]["text"]


def unknown_format(constraint: Any) -> None:
    """A compiler that knows no formats."""
    if '"format"' in constraint.text:
        raise SchemaError("Unknown format: odd")


def test_keywords_that_cannot_be_held_are_dropped_and_said_or_refused():
    tool = json.loads(json.dumps(WEATHER))
    tool["function"]["parameters"]["properties"]["city"]["format"] = "odd"
    job = made(HERMES, tools=[TIME, tool], compile=unknown_format)
    path = "tools[1].function.parameters.properties.city.format"
    assert job.assembler.dropped_keywords == [path]
    assert '"format"' not in job.requests[0]["constraint"]["text"]
    tool["function"]["strict"] = True
    with pytest.raises(SchemaError, match="Unknown format") as caught:
        made(HERMES, tools=[TIME, tool], compile=unknown_format)
    assert caught.value.param == path


def test_in_tags_texts_have_no_demands():
    tool = json.loads(json.dumps(WEATHER))
    tool["function"]["parameters"]["properties"]["city"]["pattern"] = "^B"
    path = "tools[0].function.parameters.properties.city.pattern"
    assert made(tools=[tool], tool_format="qwen3-coder").assembler.dropped_keywords == [path]
    tool["function"]["strict"] = True
    with pytest.raises(SchemaError, match="qwen3-coder") as caught:
        made(tools=[tool], tool_format="qwen3-coder")
    assert caught.value.param == path


@pytest.mark.parametrize("parameters", [{"type": "string"}, {"type": ["array", "null"]}])
def test_arguments_are_an_object(parameters):
    with pytest.raises(ValidationError, match="must be 'object'") as caught:
        made(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    assert caught.value.param == "tools[0].function.parameters.type"


def test_a_grammar_of_ones_own_cannot_stand_beside_tools():
    with pytest.raises(ValidationError, match="beside tools"):
        made(tools=TOOLS, grammar="start: one\none: /x/")
    assert made(tools=TOOLS, regex="a/b").requests[0]["constraint"]["kind"] == "lark"


@pytest.mark.parametrize(
    ("schema", "alike"),
    [
        ({"type": "object"}, True),
        ({"type": "object", "properties": {"parameters": {}}, "additionalProperties": False}, True),
        ({"type": "object", "properties": {"name": {}}, "additionalProperties": False}, False),
        ({"type": "array"}, False),
    ],
)
def test_an_answer_that_may_look_like_a_call_is_none(schema, alike):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    text = '{"name": "time", "parameters": {}}'
    _, choice = answered(made(tools=TOOLS, tool_format="llama3", response_format=form), text)
    assert ("tool_calls" in choice["message"]) == (not alike)
    _, choice = answered(made(tools=TOOLS, tool_format="llama3", response_format=form), "<|python_tag|>" + text)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "time"


def test_a_grammar_that_takes_too_long_is_tried_once():
    asked = []

    def slow(constraint: Any) -> None:
        asked.append(constraint)
        raise SchemaError("it takes longer than a second to compile: make it smaller")

    with pytest.raises(SchemaError, match="longer than a second"):
        made(tools=TOOLS, compile=slow)
    assert len(asked) == 1


def test_control_tokens_of_the_format_are_asked_for():
    info = {**INFO, "control_tokens": {"[TOOL_CALLS]": 9, "[ARGS]": 7, "</s>": 2}}
    request = made(info=info, tools=TOOLS, tool_format="devstral").requests[0]
    assert request["marks"] == ["[TOOL_CALLS]", "[ARGS]"]
    assert "<[9]>" in request["constraint"]["text"] and "<[7]>" in request["constraint"]["text"]


# --- how the answer tells of calls ------------------------------------------------------------------------------------


def test_calls_are_streamed_and_joined():
    job = made(HERMES, tools=TOOLS)
    pieces = [
        "Let me ",
        "look. <tool",
        '_call>\n{"name": "weather", "argu',
        'ments": {"city": "B',
        'onn"}}\n</tool_call>',
    ]
    deltas, choice = answered(job, *pieces, '\n<tool_call>{"name": "time", "arguments": {}}</tool_call>')
    message = choice["message"]
    assert joined(deltas) == message and choice["finish_reason"] == "tool_calls"
    assert message["content"] == "Let me look. "
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Bonn"}'},
        {"name": "time", "arguments": "{}"},
    ]
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2 and all(len(id) == 29 and id.startswith("call_") for id in ids)
    assert job.assembler.tool_calls == message["tool_calls"] and job.assembler.text == "Let me look. "


def test_the_first_delta_of_a_call_is_the_remotes():
    deltas, _ = answered(made(HERMES, tools=TOOLS), CALL)
    assert deltas[0]["tool_calls"] == [
        {"index": 0, "id": f"call_{ID}", "type": "function", "function": {"name": "weather", "arguments": ""}}
    ]
    assert deltas[1] == {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Bonn"}'}}]}


def test_content_is_null_where_there_are_only_calls():
    _, choice = answered(made(HERMES, tools=TOOLS), CALL)
    assert choice["message"]["content"] is None
    _, choice = answered(made(HERMES, tools=TOOLS))
    assert choice["message"] == {"role": "assistant", "content": ""} and choice["finish_reason"] == "stop"


def test_an_answer_cut_in_a_call_says_length():
    deltas, choice = answered(made(HERMES, tools=TOOLS), CALL[:50], reason="length")
    assert choice["finish_reason"] == "length" and joined(deltas) == choice["message"]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"cit'}


def test_the_older_form_is_answered_in_the_older_form():
    job = made(HERMES, functions=[WEATHER["function"]], function_call="auto")
    deltas, choice = answered(job, CALL)
    assert [delta["function_call"] for delta in deltas] == [
        {"name": "weather", "arguments": ""},
        {"arguments": '{"city": "Bonn"}'},
    ]
    assert choice["finish_reason"] == "function_call" and "tool_calls" not in choice["message"]
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"city": "Bonn"}'}


def test_a_mark_opens_a_call_and_its_text_does_not():
    info = {**INFO, "control_tokens": {"[TOOL_CALLS]": 9, "[ARGS]": 7}}
    job = made(info=info, tools=TOOLS, tool_format="devstral")
    events = [Event(1, "text", "Hm. ", mark="[TOOL_CALLS]"), Event(1, "text", "time", mark="[ARGS]"), "{}"]
    _, choice = answered(job, *events)
    assert choice["message"]["content"] == "Hm. " and choice["message"]["tool_calls"][0]["function"]["name"] == "time"
    job = made(info=info, tools=TOOLS, tool_format="devstral")
    _, choice = answered(job, "[TOOL_CALLS]time[ARGS]{}")
    assert choice["message"] == {"role": "assistant", "content": "[TOOL_CALLS]time[ARGS]{}"}
    assert mark_of("[ARGS]") not in choice["message"]["content"]


def test_stop_strings_are_for_content():
    job = made(HERMES, tools=TOOLS, stop=["Bonn", "STOP"])
    assert job.requests[0]["stop"] == [] and job.assembler.watches
    _, choice = answered(job, CALL, "\nwell ST", "OP there")
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bonn"}'
    assert choice["message"]["content"] == "\nwell " and choice["finish_reason"] == "tool_calls"
    assert job.assembler.to_cancel == [0]
    assert made(HERMES, stop=["STOP"]).requests[0]["stop"] == ["STOP"]  # content alone is the engine's


def test_filters_see_all_that_the_model_wrote():
    job = made(HERMES, tools=TOOLS, content_filter=lambda text: "Bonn" in text)
    _, choice = answered(job, CALL[:53], CALL[53:])
    assert choice["finish_reason"] == "content_filter"
    assert "Bonn" not in json.dumps(choice["message"])


def test_logprobs_of_all_tokens_are_told_once():
    job = made(HERMES, tools=TOOLS, logprobs=True)
    tokens = [CALL[at : at + 5] for at in range(0, len(CALL), 5)]
    entries = [{"token": i, "logprob": -1.0, "bytes": token.encode(), "top": []} for i, token in enumerate(tokens)]
    events = [Event(1, "text", token, logprobs=[entry]) for token, entry in zip(tokens, entries)]
    chunks = job.assembler.start()
    for event in [*events, Event(1, "finished", reason="stop")]:
        chunks += job.assembler.feed(event, 0)
    streamed = [entry for chunk in chunks for entry in chunk["choices"][0].get("logprobs", {}).get("content", ())]
    assert streamed == job.assembler.response()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in streamed] == tokens


def test_an_answer_held_to_a_schema_begins_no_call_in_a_string():
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "string"}}}
    text = json.dumps("<function=time>{1</function>")
    _, choice = answered(made(HERMES, tools=TOOLS, tool_format="functionary3.1", response_format=form), text)
    assert choice["message"] == {"role": "assistant", "content": text}


def test_logprobs_of_what_a_filter_held_back_are_told_of_nobody():
    job = made(HERMES, tools=TOOLS, logprobs=True, content_filter=lambda text: "Bonn" in text)
    chunks = job.assembler.start()
    for i, token in enumerate(["<tool_call>", " Bonn"]):
        entry = {"token": i, "logprob": -1.0, "bytes": token.encode(), "top": []}
        chunks += job.assembler.feed(Event(1, "text", token, logprobs=[entry]), 0)
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert "logprobs" not in chunks[-1]["choices"][0]
    assert job.assembler.response()["choices"][0]["logprobs"]["content"] == []


# --- reasoning --------------------------------------------------------------------------------------------------------

THOUGHT = "hm\n</think>\n\nYes."


def test_reasoning_is_inline_unless_asked_for_apart():
    deltas, choice = answered(made(THINKS), THOUGHT)
    assert choice["message"] == {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."} == joined(deltas)
    deltas, choice = answered(made(THINKS, reasoning_format="deepseek"), THOUGHT)
    assert choice["message"] == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"} == joined(deltas)
    opens_itself = BARE + "{# <think> #}"
    for template in (opens_itself, BARE):
        _, choice = answered(made(template, reasoning_format="deepseek"), "<think>" + THOUGHT)
        assert choice["message"] == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}
    _, choice = answered(made(opens_itself), "<think>" + THOUGHT)
    assert choice["message"]["content"] == "<think>" + THOUGHT


def test_tags_that_are_control_tokens_are_spelled_where_reasoning_is_inline():
    info = {**INFO, "control_tokens": {"[THINK]": 5, "[/THINK]": 6}}
    template = BARE + "{# [THINK] #}"
    events = [Event(1, "text", "", mark="[THINK]"), Event(1, "text", "hm", mark="[/THINK]"), "Yes."]
    job = made(template, info=info)
    assert job.requests[0]["marks"] == ["[THINK]", "[/THINK]"]
    assert answered(job, *events)[1]["message"]["content"] == "[THINK]hm[/THINK]Yes."
    _, choice = answered(made(template, info=info, reasoning_format="deepseek"), *events)
    assert choice["message"] == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}


def test_a_call_inside_reasoning_is_none():
    for form, content in (("none", f"<think>\n{CALL}</think>Yes."), ("deepseek", "Yes.")):
        _, choice = answered(made(THINKS, tools=TOOLS, reasoning_format=form), CALL + "</think>Yes.")
        assert choice["message"]["content"] == content and "tool_calls" not in choice["message"]


def test_content_held_to_a_schema_has_no_reasoning_in_it():
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    _, choice = answered(made(THINKS, response_format=form), "5")
    assert choice["message"]["content"] == "5"
    job = made(THINKS, response_format=form, reasoning_format="deepseek")
    assert job.requests[0]["constraint"]["kind"] == "lark"
    _, choice = answered(job, "hm</think>5")
    assert choice["message"] == {"role": "assistant", "content": "5", "reasoning_content": "hm"}


def test_a_users_text_opens_no_reasoning():
    typed = "{% for m in messages %}{{ m.content }}{% endfor %}{# <think> #}"
    _, choice = answered(made(typed, messages=[{"role": "user", "content": "say <think>"}]), "Yes.")
    assert choice["message"]["content"] == "Yes."


HARMONY = SHOWS_TOOLS + (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.tool_calls %}"
    " to=functions.{{ m.tool_calls[0].function.name }}"
    "<|channel|>commentary json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% else %}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
    "{% if '<|channel|>' in m.content %}{{ raise_exception('channels') }}{% endif %}"
    "<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CHANNELS = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes."


def test_channels_become_fields_and_go_back():
    _, choice = answered(made(HARMONY), CHANNELS)
    assert choice["message"]["content"] == "<think>\nhm\n</think>\n\nYes."
    back = prompt(made(HARMONY, messages=[*HI, choice["message"], *HI]))
    assert "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|message|>Yes.<|end|>" in back
    _, choice = answered(made(HARMONY, reasoning_format="deepseek"), CHANNELS)
    assert choice["message"] == {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}
    assert prompt(made(HARMONY, messages=[*HI, choice["message"], *HI])) == back
    called = "<|channel|>commentary to=functions.time <|constrain|>json<|message|>{}"
    _, choice = answered(made(HARMONY, tools=TOOLS), called)
    assert choice["finish_reason"] == "tool_calls"
    assert "to=functions.time<|channel|>" in prompt(made(HARMONY, messages=[*HI, choice["message"], *CALLED[2:3]]))
