"""Requests: the remote's fields, ranges and defaults; errors that name the path; nothing of the caller's changed."""

import copy
import math

import polargrid.types as sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError as PydanticError

from polargrid_local import types
from polargrid_local.errors import ValidationError
from polargrid_local.types import parse_request

HI = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return parse_request("chat", {"messages": HI, **fields})


def refused(kind="chat", **fields):
    base = {"chat": {"messages": HI}, "completion": {"prompt": "x"}, "embedding": {"input": "x"}, "generate": {"prompt": "x"}}
    with pytest.raises(ValidationError) as caught:
        parse_request(kind, {**base[kind], **fields})
    error = caught.value
    assert error.status == 400 and error.param == error.details["field"]
    return error


@pytest.mark.parametrize(("kind", "ours", "theirs"), [
    ("chat", {"messages": HI}, sdk.ChatCompletionRequest(model="m", messages=HI)),
    ("completion", {"prompt": "x"}, sdk.CompletionRequest(model="m", prompt="x")),
    ("generate", {"prompt": "x"}, sdk.GenerateRequest(model="m", prompt="x")),
])
def test_defaults_are_the_sdks(kind, ours, theirs):
    request = parse_request(kind, ours)
    off = {"top_k": 0, "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "min_p": 0, "stop": []}
    for field, value in theirs.model_dump().items():
        if field not in ("model", "messages", "prompt", "request_id"):
            assert getattr(request, field) == (off.get(field) if value is None else value), field


@pytest.mark.parametrize(("field", "low", "high"), [
    ("max_tokens", 1, 4096), ("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0),
    ("frequency_penalty", -2.0, 2.0), ("presence_penalty", -2.0, 2.0),
])
def test_ranges_are_the_sdks(field, low, high):
    step = 1 if isinstance(low, int) else 0.001
    for value in (low, high):
        assert getattr(chat(**{field: value}), field) == value
        sdk.ChatCompletionRequest(model="m", messages=HI, **{field: value})
    for value in (low - step, high + step):
        error = refused(**{field: value})
        assert error.param == field and error.message.startswith(f"{field}: ")
        assert any(limit in error.details.values() for limit in (low, high))
        with pytest.raises(PydanticError):
            sdk.ChatCompletionRequest(model="m", messages=HI, **{field: value})


def test_a_server_lets_the_context_be_the_limit():
    request = parse_request("chat", {"messages": HI, "max_tokens": 100_000}, max_tokens_limit=None)
    assert request.max_tokens == 100_000
    assert parse_request("chat", request) is request


@pytest.mark.parametrize(("fields", "path"), [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": HI * 1025}, "messages"),
    ({"messages": [*HI, {"role": "user", "content": 7}]}, "messages[1].content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
     "messages[0].tool_calls[0].function.arguments"),
    ({"messages": [{"role": "user", "content": "half \ud83d"}]}, "messages[0].content"),
    ({"model": ""}, "model"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["fine", ""]}, "stop"),
    ({"stop": "é" * 129}, "stop"),
    ({"stop": [5]}, "stop[0]"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"5": math.nan}}, "logit_bias[5]"),
    ({"logit_bias": {2**31: 1}}, "logit_bias"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"n": 2}, "n"),
    ({"n": 10**6}, "n"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"content_filter": [""]}, "content_filter"),
    ({"content_filter": 5}, "content_filter"),
    ({"stream_options": "yes"}, "stream_options"),
    ({"user": 5}, "user"),
])
def test_a_bad_field_is_named_with_its_path(fields, path):
    assert refused(**fields).param == path


@pytest.mark.parametrize(("kind", "fields", "path"), [
    ("completion", {"prompt": ""}, "prompt"),
    ("completion", {"prompt": []}, "prompt"),
    ("completion", {"prompt": ["a", ""]}, "prompt[1]"),
    ("completion", {"prompt": 5}, "prompt"),
    ("completion", {"echo": True}, "echo"),
    ("completion", {"best_of": 3}, "best_of"),
    ("completion", {"suffix": "x"}, "suffix"),
    ("completion", {"logprobs": True}, "logprobs"),
    ("embedding", {"input": ["a", 5]}, "input[1]"),
    ("embedding", {"dimensions": 5}, "dimensions"),
    ("generate", {"temperature": 3}, "temperature"),
])
def test_the_other_kinds_too(kind, fields, path):
    assert refused(kind, **fields).param == path


@pytest.mark.parametrize("missing", ["chat", "completion", "embedding", "generate"])
def test_a_missing_field_is_required(missing):
    with pytest.raises(ValidationError, match="required"):
        parse_request(missing, {})
    with pytest.raises(ValidationError, match="must be a dict"):
        parse_request(missing, ["not", "a", "request"])


def test_images_are_refused_with_the_remotes_words():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    error = refused(model="llama", messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, part]}])
    assert error.message == "model 'llama' does not support image input"
    assert error.param == "messages[0].content[1]"


def test_camel_case_is_an_alias_and_snake_case_wins():
    request = parse_request("chat", {
        "maxTokens": 7, "topP": 0.5, "top_p": 0.25, "frequencyPenalty": 1, "minP": 0.1, "enableThinking": True,
        "streamOptions": {"includeUsage": True},
        "messages": [{"role": "tool", "toolCallId": "c", "content": "x"},
                     {"role": "assistant", "toolCalls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}],
    })
    assert (request.max_tokens, request.top_p, request.frequency_penalty, request.min_p) == (7, 0.25, 1, 0.1)
    assert request.enable_thinking is True and request.include_usage
    assert request.messages[0].tool_call_id == "c" and request.messages[1].tool_calls[0].function.name == "f"


def test_null_means_omitted_keywords_override_and_unknown_keys_are_ignored():
    request = parse_request("chat", {"messages": HI, "max_tokens": 5, "top_p": None, "stop": None, "colour": 1}, {
        "max_tokens": 6, "temperature": None, "shape": 2,
    })
    assert (request.max_tokens, request.top_p, request.temperature, request.stop) == (6, 0.9, 0.7, [])


def test_zero_is_a_value():
    request = chat(temperature=0, top_p=0, top_k=0)
    assert (request.temperature, request.top_p, request.top_k) == (0, 0, 0)
    assert parse_request("completion", {"prompt": "x", "top_k": 0}).top_k == 0


def test_other_clients_spellings():
    assert chat(max_completion_tokens=9).max_tokens == 9
    assert chat(max_completion_tokens=9, max_tokens=8).max_tokens == 9  # the newer name wins, as at OpenAI
    assert parse_request("chat", {"messages": HI, "max_completion_tokens": 9}, {"max_tokens": 8}).max_tokens == 8
    assert chat(stop="END").stop == ["END"]
    assert chat(max_tokens=150.0).max_tokens == 150
    assert chat(messages=({"role": "developer", "content": ("x",)[0]},)).messages[0].role == "developer"
    assert chat(logit_bias={"5": 1, 6: -100}).logit_bias == {5: 1, 6: -100}
    assert chat(tools=[], tool_choice="none", response_format={"type": "text"}, n=1).tools == []


@pytest.mark.parametrize(("kind", "default"), [("chat", 150), ("completion", 100), ("generate", 150)])
def test_max_tokens_is_the_sdks_unless_what_the_context_leaves_is_asked_for(kind, default):
    base = {"messages": HI} if kind == "chat" else {"prompt": "x"}
    assert parse_request(kind, base).max_tokens == parse_request(kind, {**base, "max_tokens": None}).max_tokens == default
    for value in (-1, -1.0):
        assert parse_request(kind, {**base, "max_tokens": value}).max_tokens == -1
    for value in (0, -2, 2**31, 4097):
        assert refused(kind, max_tokens=value).param == "max_tokens"


@pytest.mark.parametrize("field", sorted(types.NO_EFFECT))
def test_what_never_changes_an_answer_is_accepted(field):
    for value in (True, "x", {"a": "b"}, None):
        assert chat(**{field: value}) == chat()


@pytest.mark.parametrize(("field", "nothing", "something"), [
    ("audio", None, {"voice": "alloy", "format": "wav"}),
    ("function_call", "none", "auto"),
    ("function_call", None, {"name": "f"}),
    ("functions", [], [{"name": "f"}]),
    ("modalities", ["text"], ["text", "audio"]),
    ("moderation", None, {"model": "m"}),
    ("reasoning_effort", "none", "high"),
    ("verbosity", "medium", "low"),
    ("web_search_options", None, {}),
    ("functionCall", "none", "auto"),
    ("webSearchOptions", None, {"search_context_size": "low"}),
])
def test_what_asks_for_another_answer_is_refused_by_name(field, nothing, something):
    assert chat(**{field: nothing}) == chat()
    assert refused(**{field: something}).param in types.ASKS_NOTHING


OPENAI_FIELDS = {  # of openai-python 3.57
    "chat": """messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
        metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
        prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream
        stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options""",
    "completion": """model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
        stream_options suffix temperature top_p user""",
    "embedding": "input model dimensions encoding_format user",
}


def test_every_field_of_openais_client_is_honoured_harmless_or_refused():
    tables = {"max_completion_tokens", *types.NO_EFFECT, *types.ASKS_NOTHING}
    for kind, fields in OPENAI_FIELDS.items():
        assert set(fields.split()) <= {*types.KINDS[kind].model_fields, *tables}
    assert tables <= set(OPENAI_FIELDS["chat"].split())


@pytest.mark.parametrize("value", ["float", "base64", "numpy"])
def test_encodings_of_embeddings(value):
    assert parse_request("embedding", {"input": "x", "encoding_format": value}).encoding_format == value
    assert parse_request("embedding", {"input": "x", "encodingFormat": value}).encoding_format == value


@pytest.mark.parametrize("value", ["", "Base64", "int8", 1, ["float"], {}])
def test_other_encodings_are_refused(value):
    assert refused("embedding", encoding_format=value).param == "encoding_format"


def test_sdk_objects_are_requests():
    theirs = sdk.ChatCompletionRequest(model="m", messages=[sdk.Message(role="user", content=[{"type": "text", "text": "x"}])],
                                       temperature=0.0, stop=["a"])
    request = parse_request("chat", theirs, {"max_tokens": 3})
    assert (request.model, request.temperature, request.stop, request.max_tokens) == ("m", 0, ["a"], 3)
    assert request.messages[0].content[0].text == "x"
    nested = parse_request("chat", {"messages": [sdk.Message(role="user", content="x")]})
    assert nested.messages[0].content == "x"
    assert parse_request("embedding", sdk.EmbeddingRequest(model="m", input="x")).inputs == ["x"]


def test_the_callers_objects_are_left_alone():
    given_dict = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}], "toolCalls": None}],
                  "stop": ["a"], "logitBias": {"1": 2}, "streamOptions": {"includeUsage": True}, "topP": None}
    before = copy.deepcopy(given_dict)
    parse_request("chat", given_dict, {"stop": "b"})
    assert given_dict == before


def test_deep_nesting_is_refused_not_overflowed():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert refused(tools=deep).param == "tools"
    while deep:  # not left to the collector's recursion
        deep = deep.pop()


TEXT = st.text("a1é \0\ud800👩", max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8,
)
FIELDS = st.sampled_from([*types.ChatCompletionRequest.model_fields, "maxTokens", "toolCalls", "max_completion_tokens",
                          *types.NO_EFFECT, *types.ASKS_NOTHING])


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_json_is_a_request_or_a_validation_error(fields):
    try:
        request = parse_request("chat", {"messages": HI, **fields})
    except ValidationError as error:
        assert error.param and error.message
    else:
        assert 1 <= request.max_tokens <= 4096 and math.isfinite(request.temperature)
