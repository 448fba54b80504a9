"""Requests: the remote's fields, ranges and defaults; errors that name the path; nothing of the caller's changed."""

import copy
import enum
import functools
import itertools
import math
from collections.abc import Mapping

import numpy
import polargrid.types as sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError as PydanticError

from polargrid_local.api import keys, requests, samplers
from polargrid_local.api.parse import parse_request
from polargrid_local.errors import ValidationError

HI = [{"role": "user", "content": "hi"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**fields):
    return parse_request("chat", {"messages": HI, **fields})


def refused(kind="chat", **fields):
    base = {
        "chat": {"messages": HI},
        "completion": {"prompt": "x"},
        "embedding": {"input": "x"},
        "generate": {"prompt": "x"},
        "rerank": {"query": "x", "documents": ["x"]},
    }
    with pytest.raises(ValidationError) as caught:
        parse_request(kind, {**base[kind], **fields})
    error = caught.value
    assert error.status == 400 and error.param == error.details["field"]
    return error


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("chat", {"messages": HI}, sdk.ChatCompletionRequest(model="m", messages=HI)),
        ("completion", {"prompt": "x"}, sdk.CompletionRequest(model="m", prompt="x")),
        ("generate", {"prompt": "x"}, sdk.GenerateRequest(model="m", prompt="x")),
    ],
)
def test_defaults_are_the_sdks(kind, ours, theirs):
    request = parse_request(kind, ours)
    off = {"top_k": 0, "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "min_p": 0, "stop": []}
    for field, value in theirs.model_dump().items():
        if field not in ("model", "messages", "prompt", "request_id"):
            assert getattr(request, field) == (off.get(field) if value is None else value), field


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("max_tokens", 1, 4096),
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
    ],
)
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


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": HI * 1025}, "messages"),
        ({"messages": [*HI, {"role": "user", "content": 7}]}, "messages[1].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
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
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 10**6}, "n"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "parametres": {}}}]}, "tools[0].function.parametres"),
        ({"tools": [TOOL], "functions": [TOOL["function"]]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}},
            "tool_choice.allowed_tools.tools",
        ),
        ({"tools": [TOOL], "function_call": {"name": "f"}}, "function_call"),
        ({"function_call": "always"}, "function_call"),
        ({"reasoning_format": "loud"}, "reasoning_format"),
        ({"content_filter": [""]}, "content_filter"),
        ({"content_filter": 5}, "content_filter"),
        ({"stream_options": "yes"}, "stream_options"),
        ({"user": 5}, "user"),
        ({"prediction": 5}, "prediction"),
        ({"prediction": ["x"]}, "prediction"),
        ({"prediction": {}}, "prediction.type"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"prediction": {"type": "content", "content": None}}, "prediction.content"),
        ({"prediction": {"type": "content", "content": {"text": "x"}}}, "prediction.content"),
        ({"prediction": {"type": "text", "content": "x"}}, "prediction.type"),
        ({"prediction": {"type": "content", "content": ["x"]}}, "prediction.content[0]"),
        ({"prediction": {"type": "content", "content": [{"type": "text"}]}}, "prediction.content[0].text"),
        (
            {"prediction": {"type": "content", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}},
            "prediction.content[0].type",
        ),
        ({"prediction": {"type": "content", "content": "half \ud83d"}}, "prediction.content"),
    ],
)
def test_a_bad_field_is_named_with_its_path(fields, path):
    assert refused(**fields).param == path


@pytest.mark.parametrize(
    ("kind", "fields", "path"),
    [
        ("completion", {"prompt": ""}, "prompt"),
        ("completion", {"prompt": []}, "prompt"),
        ("completion", {"prompt": ["a", ""]}, "prompt[1]"),
        ("completion", {"prompt": 5}, "prompt"),
        ("completion", {"echo": 1}, "echo"),
        ("completion", {"best_of": 3}, "best_of"),
        ("completion", {"suffix": "x", "echo": True}, "echo"),
        ("completion", {"logprobs": True}, "logprobs"),
        ("embedding", {"input": ["a", None]}, "input[1]"),
        ("embedding", {"dimensions": 0}, "dimensions"),
        ("rerank", {"query": ["x", "y"]}, "query"),
        ("rerank", {"query": [5]}, "query[0]"),
        ("generate", {"temperature": 3}, "temperature"),
        ("generate", {"prediction": 5}, "prediction"),
        ("completion", {"prediction": {"type": "content", "content": 5}}, "prediction.content"),
    ],
)
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
    request = parse_request(
        "chat",
        {
            "maxTokens": 7,
            "topP": 0.5,
            "top_p": 0.25,
            "frequencyPenalty": 1,
            "minP": 0.1,
            "enableThinking": True,
            "streamOptions": {"includeUsage": True},
            "messages": [
                {"role": "tool", "toolCallId": "c", "content": "x"},
                {"role": "assistant", "toolCalls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            ],
        },
    )
    assert (request.max_tokens, request.top_p, request.frequency_penalty, request.min_p) == (7, 0.25, 1, 0.1)
    assert request.enable_thinking is True and request.include_usage
    assert request.messages[0].tool_call_id == "c" and request.messages[1].tool_calls[0].function.name == "f"


def test_null_means_omitted_and_keywords_override():
    request = parse_request(
        "chat",
        {"messages": HI, "max_tokens": 5, "top_p": None, "stop": None},
        {
            "max_tokens": 6,
            "temperature": None,
        },
    )
    assert (request.max_tokens, request.top_p, request.temperature, request.stop) == (6, 0.9, 0.7, [])


def test_zero_is_a_value():
    request = chat(temperature=0, top_p=0, top_k=0)
    assert (request.temperature, request.top_p, request.top_k) == (0, 0, 0)
    assert parse_request("completion", {"prompt": "x", "top_k": 0}).top_k == 0


def test_other_clients_spellings():
    assert chat(max_completion_tokens=9).max_tokens == chat(n_predict=9).max_tokens == 9
    assert chat(n_cmpl=2).n == parse_request("completion", {"prompt": "x", "n_cmpl": 2}).n == 2
    assert chat(max_completion_tokens=9, max_tokens=8).max_tokens == 9  # the newer name wins, as at OpenAI
    assert parse_request("chat", {"messages": HI, "max_completion_tokens": 9}, {"max_tokens": 8}).max_tokens == 8
    assert chat(stop="END").stop == ["END"]
    assert chat(max_tokens=150.0).max_tokens == 150
    assert chat(messages=({"role": "developer", "content": ("x",)[0]},)).messages[0].role == "developer"
    assert chat(logit_bias={"5": 1, 6: -100}).logit_bias == [(5, 1), (6, -100)]
    assert chat(tools=[], tool_choice="none", response_format={"type": "text"}, n=1).tools == []
    assert chat(tools=[TOOL], tool_choice="any").tool_choice == "any"


@pytest.mark.parametrize(("kind", "default"), [("chat", 150), ("completion", 100), ("generate", 150)])
def test_max_tokens_is_the_sdks_unless_what_the_context_leaves_is_asked_for(kind, default):
    base = {"messages": HI} if kind == "chat" else {"prompt": "x"}
    assert (
        parse_request(kind, base).max_tokens == parse_request(kind, {**base, "max_tokens": None}).max_tokens == default
    )
    for value in (-1, -1.0):
        assert parse_request(kind, {**base, "max_tokens": value}).max_tokens == -1
    for value in (0, -2, 2**31, 4097):
        assert refused(kind, max_tokens=value).param == "max_tokens"


@pytest.mark.parametrize("field", sorted(keys.NO_EFFECT))
def test_what_never_changes_an_answer_is_accepted(field):
    for value in (True, "x", {"a": "b"}, None):
        assert chat(**{field: value}) == chat()


@pytest.mark.parametrize(
    ("field", "nothing", "something"),
    [
        ("audio", None, {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text"], ["text", "audio"]),
        ("moderation", None, {"model": "m"}),
        ("verbosity", "medium", "low"),
        ("web_search_options", None, {}),
        ("webSearchOptions", None, {"search_context_size": "low"}),
    ],
)
def test_what_asks_for_another_answer_is_refused_by_name(field, nothing, something):
    assert chat(**{field: nothing}) == chat()
    assert refused(**{field: something}).param in keys.ASKS_NOTHING


@pytest.mark.parametrize("kind", ["chat", "completion", "generate"])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("a b", "a b"),
        ({"type": "content", "content": "a b"}, "a b"),
        ({"type": "content", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}, "a b"),
        ({"type": "content", "content": ({"type": "text", "text": "a b"},)}, "a b"),
        ({"type": "content", "content": []}, ""),
        ("", ""),
    ],
)
def test_a_prediction_is_a_text_in_any_of_its_forms(kind, given, text):
    base = {"messages": HI} if kind == "chat" else {"prompt": "x"}
    for ignored in (None, []):
        assert parse_request(kind, {**base, "prediction": given}, ignored=ignored).prediction.text == text
    assert parse_request(kind, {**base, "prediction": None}).prediction is None


def test_unknown_keys_of_a_prediction_are_refused_here_and_dropped_over_http():
    part = {"type": "text", "text": "x", "cache": 1}
    for prediction, path in [
        ({"type": "content", "content": "x", "contents": 1}, "prediction.contents"),
        ({"type": "content", "content": [part]}, "prediction.content[0].cache"),
    ]:
        assert refused(prediction=prediction).param == path
        tolerated = parse_request("chat", {"messages": HI, "prediction": prediction}, ignored=[])
        assert tolerated.prediction.text == "x"


OPENAI_FIELDS = {  # of openai-python 3.57
    "chat": """messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
        max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
        prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier
        stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity
        web_search_options""",
    "completion": """model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed
        stop stream stream_options suffix temperature top_p user""",
    "embedding": "input model dimensions encoding_format user",
}


def test_every_field_of_openais_client_is_honoured_harmless_or_refused():
    tables = {"max_completion_tokens", *keys.NO_EFFECT, *keys.ASKS_NOTHING}
    for kind, fields in OPENAI_FIELDS.items():
        assert set(fields.split()) <= {*requests.KINDS[kind].model_fields, *tables}
    assert tables <= set(OPENAI_FIELDS["chat"].split())


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"prompt_string": "a"}, ["a"]),
        ({"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}, ["a b"]),
        (["a", {"prompt_string": "b"}, [5]], ["a", "b", [5]]),
    ],
)
def test_inputs_in_llama_servers_words(given, texts):
    assert parse_request("embedding", {"input": given}).inputs == texts


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"prompt_string": 5},
        {"prompt_string": "a", "multimodal_data": ["b"]},
        {"content": "a"},
        {"content": []},
        {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        ["a", {"content": [{"type": "text"}]}],
    ],
)
def test_an_input_that_is_no_text_is_refused(given):
    error = refused("embedding", input=given)
    assert error.param == "input" and "prompt_string" in error.message


VLLM_FIELDS = """add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
    chat_template_kwargs continue_final_message documents early_stopping ec_transfer_params echo ignore_eos
    include_reasoning include_stop_str_in_output kv_transfer_params length_penalty logits_processors logprob_token_ids
    media_io_kwargs min_p min_tokens mm_payload mm_processor_kwargs priority prompt_logprobs repetition_detection
    repetition_penalty request_id return_mm_kwargs return_prompt_text return_token_ids return_token_offsets
    return_tokens_as_token_ids return_weight_versions routed_experts_prompt_start session_id skip_special_tokens
    spaces_between_special_tokens stop_token_ids stream_interval structured_outputs thinking_token_budget top_k
    truncate_prompt_tokens truncation_side use_beam_search vllm_xargs watermarking"""
LLAMA_SERVER_FIELDS = """adaptive_target backend_sampling cache_prompt dry_allowed_length dry_base dry_multiplier
    dry_penalty_last_n dry_sequence_breakers dynatemp_exponent dynatemp_range generation_prompt grammar grammar_lazy
    grammar_triggers id_slot ignore_eos json_schema lora min_keep min_p mirostat mirostat_eta mirostat_tau n_cache_reuse
    n_cmpl n_discard n_indent n_keep n_predict n_probs parse_tool_calls preserved_tokens reasoning_budget_message
    reasoning_budget_tokens reasoning_control repeat_last_n repeat_penalty response_fields return_progress return_tokens
    samplers speculative.n_max sse_ping_interval t_max_predict_ms t_max_prompt_ms thinking_budget_tokens
    timings_per_token top_k top_n_sigma typical_p verbose xtc_probability xtc_threshold"""
VLLM_FIELDS_OF_VECTORS = """embed_dtype endianness instruction late_chunking_params max_tokens_per_doc
    max_tokens_per_query padding priority request_id truncate_prompt_tokens truncation_side use_activation"""


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_every_field_of_vllm_and_llama_server_is_honoured_harmless_or_refused(kind):
    known = keys.REQUEST[kind]
    for field in f"{VLLM_FIELDS} {LLAMA_SERVER_FIELDS} post_sampling_probs".split():
        assert known.aliases.get(field, field) in known.fields, field


@pytest.mark.parametrize("kind", ["embedding", "rerank"])
def test_every_field_of_vllms_vectors_is_honoured_harmless_or_refused(kind):
    assert {*VLLM_FIELDS_OF_VECTORS.split(), "normalize", "embd_normalize"} <= keys.REQUEST[kind].fields


@pytest.mark.parametrize(
    ("kind", "field", "nothing", "something"),
    [
        ("embedding", "normalize", True, False),
        ("embedding", "use_activation", True, False),
        ("embedding", "embed_dtype", "float32", "float16"),
        ("embedding", "endianness", "little", "big"),
        ("embedding", "endianness", "native", "big"),
        ("embedding", "embd_normalize", 2, -1),
        ("embedding", "late_chunking_params", None, {}),
        ("rerank", "max_tokens_per_query", 0, 5),
        ("rerank", "instruction", None, "find it"),
        ("embedding", "logprob_token_ids", [], [5]),
        ("embedding", "post_sampling_probs", False, True),
        ("completion", "thinking_token_budget", -1, 8),
        ("completion", "include_reasoning", True, False),
        ("chat", "reasoning_budget_message", "", "Now."),
        ("chat", "t_max_predict_ms", -1, 50),
        ("chat", "adaptive_target", -1, 0.5),
        ("chat", "watermarking", False, True),
        ("generate", "echo", False, True),
    ],
)
def test_a_field_of_other_engines_that_asks_for_another_answer_is_refused(kind, field, nothing, something):
    error = refused(kind, **{field: something})
    assert error.param == field and error.message.startswith(f"{field}: not supported by this engine")
    base = {"query": "x", "documents": ["x"]} if kind == "rerank" else {"messages": HI, "prompt": "x", "input": "x"}
    base = {name: value for name, value in base.items() if name in requests.KINDS[kind].model_fields}
    if kind == "embedding":
        del base["messages"]  # which stand in place of `input`
    ignored = []
    assert parse_request(kind, {**base, field: nothing}, ignored=ignored) == parse_request(kind, base)
    assert ignored == []


@pytest.mark.parametrize(
    ("kind", "field", "values", "message"),
    [
        ("chat", "top_logprobs", {"top_logprobs": -1, "logprobs": True}, "must be greater than or equal to 0, got -1"),
        ("chat", "prompt_logprobs", {"prompt_logprobs": -1}, "must be greater than or equal to 0, got -1"),
        ("completion", "prompt_logprobs", {"prompt_logprobs": -1}, "must be greater than or equal to 0, got -1"),
        ("completion", "logprobs", {"logprobs": -1}, "must be greater than or equal to 0, got -1"),
        ("embedding", "truncate_prompt_tokens", {"truncate_prompt_tokens": -2}, "must be greater than or equal to -1"),
        ("rerank", "max_tokens_per_doc", {"max_tokens_per_doc": -1}, "must be greater than or equal to 0, got -1"),
    ],
)
def test_numbers_that_mean_something_elsewhere_are_refused_with_what_is_allowed(kind, field, values, message):
    error = refused(kind, **values)
    assert error.param == field and message in error.message


@pytest.mark.parametrize("name", ["use_activation", "useActivation", "activation", "softmax"])
def test_names_of_activated_scores(name):
    base = {"query": "x", "documents": ["x"]}
    for value in (True, False):
        assert parse_request("rerank", {**base, name: value}).use_activation is value
    assert parse_request("rerank", {**base, name: None}) == parse_request("rerank", base)
    assert refused("rerank", **{name: "yes"}).param == "use_activation"


@pytest.mark.parametrize("value", ["float", "base64", "numpy"])
def test_encodings_of_embeddings(value):
    assert parse_request("embedding", {"input": "x", "encoding_format": value}).encoding_format == value
    assert parse_request("embedding", {"input": "x", "encodingFormat": value}).encoding_format == value


@pytest.mark.parametrize("value", ["", "Base64", "int8", 1, ["float"], {}])
def test_other_encodings_are_refused(value):
    assert refused("embedding", encoding_format=value).param == "encoding_format"


def test_sdk_objects_are_requests():
    theirs = sdk.ChatCompletionRequest(
        model="m",
        messages=[sdk.Message(role="user", content=[{"type": "text", "text": "x"}])],
        temperature=0.0,
        stop=["a"],
    )
    request = parse_request("chat", theirs, {"max_tokens": 3})
    assert (request.model, request.temperature, request.stop, request.max_tokens) == ("m", 0, ["a"], 3)
    assert request.messages[0].content[0].text == "x"
    nested = parse_request("chat", {"messages": [sdk.Message(role="user", content="x")]})
    assert nested.messages[0].content == "x"
    assert parse_request("embedding", sdk.EmbeddingRequest(model="m", input="x")).inputs == ["x"]


def test_the_callers_objects_are_left_alone():
    given_dict = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}], "toolCalls": None}],
        "stop": ["a"],
        "logitBias": {"1": 2},
        "streamOptions": {"includeUsage": True},
        "topP": None,
    }
    before = copy.deepcopy(given_dict)
    parse_request("chat", given_dict, {"stop": "b"})
    assert given_dict == before


# --- unknown keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "path", "meant"),
    [
        ("chat", {"max_token": 5}, "max_token", "max_tokens"),
        ("chat", {"maxToken": 5}, "maxToken", "max_tokens"),
        ("chat", {"num_predict": 5}, "num_predict", "max_tokens"),
        ("chat", {"message": HI}, "message", "messages"),
        ("chat", {"zzzz": 1}, "zzzz", None),
        ("completion", {"max_tokns": 5}, "max_tokns", "max_tokens"),
        ("completion", {"messages": HI}, "messages", None),
        ("embedding", {"inputs": "x"}, "inputs", "input"),
        ("generate", {"top_q": 0.5}, "top_q", "top_p"),
        ("rerank", {"topn": 1}, "topn", "top_n"),
        ("rerank", {"documents": [{"text": "x", "texts": "y"}]}, "documents[0].texts", "text"),
        ("chat", {"stream_options": {"include_usge": True}}, "stream_options.include_usge", "include_usage"),
        ("completion", {"streamOptions": {"includeUsag": True}}, "stream_options.includeUsag", "include_usage"),
        ("chat", {"response_format": {"typ": "text"}}, "response_format.typ", "type"),
        ("chat", {"response_format": {"type": "text", "shema": {}}}, "response_format.shema", "schema"),
        ("chat", {"messages": [{"role": "user", "text": "hi"}]}, "messages[0].text", "content"),
        ("chat", {"messages": [*HI, {"role": "user", "content": "hi", "nam": "x"}]}, "messages[1].nam", "name"),
        ("chat", {"messages": [{"role": "user", "content": "hi", 5: "x"}]}, "messages[0].5", None),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "txt": "y"}]}]},
            "messages[0].content[0].txt",
            "text",
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "functions": 1}]}]},
            "messages[0].tool_calls[0].functions",
            "function",
        ),
        (
            "chat",
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{**CALL, "function": {**CALL["function"], "args": 1}}]}
                ]
            },
            "messages[0].tool_calls[0].function.args",
            "arguments",
        ),
    ],
)
def test_an_unknown_key_is_refused_by_its_path_and_tolerated_over_http(kind, fields, path, meant):
    error = refused(kind, **fields)
    assert error.param == path
    assert error.message == f"{path}: unknown key" + (f"; did you mean '{meant}'?" if meant else "")
    base = {
        "chat": {"messages": HI},
        "completion": {"prompt": "x"},
        "embedding": {"input": "x"},
        "generate": {"prompt": "x"},
        "rerank": {"query": "x", "documents": ["x"]},
    }
    lost = ("messages[0].text", "response_format.typ")  # what cannot be dropped without another answer
    if path in lost:
        with pytest.raises(ValidationError):
            parse_request(kind, {**base[kind], **fields}, ignored=[])
    else:
        parse_request(kind, {**base[kind], **fields}, ignored=[])


def test_keywords_are_held_to_the_same_names():
    with pytest.raises(ValidationError, match="max_token: unknown key; did you mean 'max_tokens'?"):
        parse_request("chat", {"messages": HI}, {"max_token": 5})


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("message", "fine"),
    [
        ({"role": "user"}, False),
        ({"role": "user", "content": None}, False),
        ({"role": "system"}, False),
        ({"role": "developer"}, False),
        ({"role": "user", "tool_calls": [CALL]}, False),
        ({"role": "assistant"}, True),
        ({"role": "tool", "tool_call_id": "1"}, True),
        ({"role": "user", "content": ""}, True),
        ({"role": "user", "content": []}, True),
        ({"role": "assistant", "content": None}, True),
        ({"role": "assistant", "tool_calls": [CALL]}, True),
        ({"role": "assistant", "content": None, "toolCalls": [CALL]}, True),
        ({"role": "assistant", "reasoning_content": "hm"}, True),
        ({"role": "tool", "content": None}, True),
        ({"role": "assistant", "tool_calls": []}, True),
        ({"role": "assistant", "refusal": None}, True),
    ],
)
def test_a_message_says_something(strict, message, fine):
    if fine:
        parse_request("chat", {"messages": [message]}, ignored=None if strict else [])
        return
    with pytest.raises(ValidationError, match=r"^messages\[0\].content: required") as caught:
        parse_request("chat", {"messages": [message]}, ignored=None if strict else [])
    assert caught.value.param == "messages[0].content"


@pytest.mark.parametrize("key", ["text", "contents", "message", "body", "value"])
def test_text_under_a_wrong_key_is_not_lost_over_http(key):
    for role in ("user", "assistant", "system", "tool"):
        with pytest.raises(
            ValidationError, match=rf"^messages\[0\].content: required; '{key}' is no key of a message$"
        ):
            parse_request("chat", {"messages": [{"role": role, key: "words"}]}, ignored=[])


def test_answers_of_other_clients_may_be_sent_back():
    from openai.types.chat import ChatCompletionMessage

    ours = {"role": "assistant", "content": "x"}
    raw = {**ours, "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    theirs = ChatCompletionMessage.model_validate(raw)
    for message in (raw, ours, theirs, theirs.model_dump()):
        for strict in (True, False):
            request = parse_request("chat", {"messages": [*HI, message, *HI]}, ignored=None if strict else [])
            assert request.messages[1].content == "x"
    calls = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **CALL}], "reasoning": "hm"}
    request = parse_request("chat", {"messages": [calls]})
    assert request.messages[0].reasoning_content == "hm" and request.messages[0].tool_calls[0].index == 0


def test_calls_and_results_in_the_older_form_are_those_of_tools():
    old = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
    ]
    for strict in (True, False):
        call, result = parse_request("chat", {"messages": [*HI, *old]}, ignored=None if strict else []).messages[1:]
        assert result.role == "tool" and result.tool_call_id == call.tool_calls[0].id
        assert call.tool_calls[0].function.name == result.name == "f"


@pytest.mark.parametrize("more", [{"function_call": "f"}, {"function_call": CALL["function"], "tool_calls": [CALL]}])
def test_a_call_in_the_older_form_is_never_lost(more):
    with pytest.raises(ValidationError) as caught:
        parse_request("chat", {"messages": [*HI, {"role": "assistant", "content": None, **more}]}, ignored=[])
    assert caught.value.param == "messages[1].function_call"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("audio", {"id": "a"}),
        ("refusal", "no"),
        ("images", ["x"]),
    ],
)
def test_what_a_model_should_have_been_told_is_refused_everywhere(key, value):
    for strict in (True, False):
        with pytest.raises(ValidationError, match=rf"^messages\[0\].{key}: not supported"):
            parse_request(
                "chat",
                {"messages": [{"role": "assistant", "content": "x", key: value}]},
                ignored=None if strict else [],
            )


def test_metadata_of_a_message_is_refused_here_and_dropped_over_http():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], "id": "7"}
    ]
    with pytest.raises(ValidationError):
        parse_request("chat", {"messages": messages})
    assert parse_request("chat", {"messages": messages}, ignored=[]).messages[0].content[0].text == "x"


@pytest.mark.parametrize("value", ["yes", 1, None, []])
def test_include_usage_is_true_or_false(value):
    if value is None:
        assert not chat(stream_options={"include_usage": None}).include_usage
    else:
        assert refused(stream_options={"include_usage": value}).param == "stream_options.include_usage"


@pytest.mark.parametrize(
    "cls",
    [
        sdk.ChatCompletionRequest,
        sdk.CompletionRequest,
        sdk.EmbeddingRequest,
        sdk.GenerateRequest,
        sdk.Message,
        sdk.ToolCall,
    ],
)
def test_every_field_of_the_sdk_is_known(cls):
    ours = {
        "ChatCompletionRequest": "chat",
        "CompletionRequest": "completion",
        "EmbeddingRequest": "embedding",
        "GenerateRequest": "generate",
    }
    model = requests.KINDS[ours[cls.__name__]] if cls.__name__ in ours else getattr(requests, cls.__name__)
    assert set(cls.model_fields) <= set(model.model_fields)


# --- objects that no request should be made of ------------------------------------------------------------------------


def shared(depth=26):
    """2^depth leaves out of `depth` lists."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def cyclic(width=1):
    value = []
    value += [value] * width
    return value


class Endless(Mapping):
    """Says it is empty, and never stops."""

    def __getitem__(self, key):
        return "x"

    def __iter__(self):
        return map("key{}".format, itertools.count())

    def __len__(self):
        return 0


class Lying(dict):
    def __init__(self, items):
        super().__init__(a=1)
        self._items = items

    def items(self):
        return self._items()


class EndlessList(list):
    def __iter__(self):
        return itertools.repeat("x")


class Dumps:
    def __init__(self, value):
        self.value = value

    def model_dump(self):
        return self.value()


def fails():
    raise RuntimeError("no")


class Chain:
    def model_dump(self):
        return Chain()


MONSTERS = {
    "shared": shared,
    "cyclic": cyclic,
    "wide cyclic": lambda: cyclic(1000),
    "shared tuples": lambda: functools.reduce(lambda value, _: (value, value), range(26), ()),
    "shared dicts": lambda: functools.reduce(lambda value, _: {"a": value, "b": value}, range(26), {}),
    "shared under one key": lambda: {"a": {"b": shared()}},
    "endless mapping": Endless,
    "endless items": lambda: Lying(lambda: itertools.repeat(("a", 1))),
    "items that are no pairs": lambda: Lying(lambda: [1, 2]),
    "items that fail": lambda: Lying(fails),
    "endless list": EndlessList,
    "a million keys": lambda: dict.fromkeys(map(str, range(10**6)), 1),
    "a million entries": lambda: [None] * 10**6,
    "keys that are no text": lambda: {("a",): 1},
    "keys that are truths": lambda: {True: 1},
    "dumps another": lambda: Chain(),
    "dump fails": lambda: Dumps(fails),
    "dumps much": lambda: Dumps(shared),
    "a dump in a dump": lambda: functools.reduce(lambda value, _: Dumps(lambda: value), range(100), 1),
    "sdk object": lambda: sdk.ChatCompletionRequest.model_construct(model="m", messages=shared()),
    "sdk object in itself": lambda: (lambda o: (o.messages.append(o), o)[1])(
        sdk.ChatCompletionRequest.model_construct(model="m", messages=[])
    ),
    "object": object,
    "bytes": lambda: b"x",
    "set": lambda: {1},
    "array": lambda: numpy.zeros(3),
}


@pytest.mark.parametrize(
    ("monster", "field"),
    [
        *((monster, field) for monster in MONSTERS for field in ("tools", None)),
        *(
            ("shared", field)
            for field in ("messages", "stop", "stream_options", "response_format", "logit_bias", "metadata")
        ),
    ],
)
def test_a_monstrous_object_is_refused(monster, field):
    with pytest.raises(ValidationError) as caught:
        parse_request("chat", MONSTERS[monster]() if field is None else {"messages": HI, field: MONSTERS[monster]()})
    assert caught.value.param and len(caught.value.message) < 500
    if field not in (None, "metadata"):  # which is not a field at all
        assert caught.value.param.startswith(field)


def test_a_monster_in_a_message_is_refused():
    parts = [{"type": "text", "text": shared()}]
    for place in ({"content": shared()}, {"content": parts}, {"content": "x", "tool_calls": shared()}):
        with pytest.raises(ValidationError, match="^messages: holds more than"):
            parse_request("chat", {"messages": [{"role": "user", **place}]})


def test_the_largest_honest_requests_pass():
    parts = [{"type": "text", "text": "x"}] * 10
    many = chat(messages=[{"role": "user", "content": parts}] * requests.MAX_MESSAGES)
    assert len(many.messages) == requests.MAX_MESSAGES
    assert len(parse_request("completion", {"prompt": ["x"] * requests.MAX_PROMPTS}).prompts) == requests.MAX_PROMPTS
    biases = {str(i): 1 for i in range(requests.MAX_LOGIT_BIAS)}
    assert len(chat(logit_bias=biases).logit_bias) == requests.MAX_LOGIT_BIAS


@pytest.mark.parametrize("kind", requests.KINDS)
@pytest.mark.parametrize("number", [10**5000, -(10**5000)], ids=["plus", "minus"])
def test_huge_numbers_are_refused_in_every_field(kind, number):
    for field in requests.KINDS[kind].model_fields:
        error = refused(kind, **{field: number})
        assert error.param == field and len(error.message) < 200
    if kind == "chat":
        for bias in ({number: 1}, {1: number}, {"9" * 5000: 1}, {str(2**40): 1}):
            assert refused(logit_bias=bias).param.startswith("logit_bias")
        refused(messages=[{"role": "user", "content": "x", number: 1}])


def test_huge_strings_are_refused_in_short_messages():
    huge = "a" * 10**7
    for fields in (
        {"model": huge},
        {"stop": huge},
        {"messages": huge},
        {"content_filter": huge},
        {huge: 1},
        {"logit_bias": {huge: 1}},
        {"messages": [{"role": huge, "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", huge: 1}]},
    ):
        assert len(refused(**fields).message) < 400


@pytest.mark.parametrize("half", ["\ud800", "x\udfff", "\udc80"], ids=ascii)
def test_half_a_character_is_refused_wherever_it_stands(half):
    for fields, path in [
        ({"model": half}, "model"),
        ({"stop": half}, "stop"),
        ({"stop": ["a", half]}, "stop[1]"),
        ({"user": half}, "user"),
        ({"content_filter": [half]}, "content_filter[0]"),
        ({"content_filter": half}, "content_filter"),
        ({"tools": [{half: 1}]}, "tools[0]"),
        ({"tools": [{"a": half}]}, "tools[0].a"),
        ({half: 1}, "request"),
        ({"messages": [{"role": "user", "content": "x", half: 1}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": half}]}]}, "messages[0].content[0].text"),
        ({"logit_bias": {half: 1}}, "logit_bias"),
    ]:
        error = refused(**fields)
        assert error.param == path and "lone surrogate" in error.message
        error.message.encode()


def test_numbers_and_texts_of_other_types_are_what_they_say():
    class Role(str, enum.Enum):
        user = "user"

    request = chat(
        messages=[{"role": Role.user, "content": "x"}], max_tokens=numpy.int64(7), temperature=numpy.float32(0.5)
    )
    assert (request.messages[0].role, request.max_tokens, request.temperature) == ("user", 7, 0.5)
    assert type(request.messages[0].role) is str


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
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *requests.ChatCompletionRequest.model_fields,
        "maxTokens",
        "toolCalls",
        "max_completion_tokens",
        *keys.NO_EFFECT,
        *keys.ASKS_NOTHING,
    ]
)


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_json_is_a_request_or_a_validation_error(fields):
    try:
        request = parse_request("chat", {"messages": HI, **fields})
    except ValidationError as error:
        assert error.param and error.message
    else:
        assert 1 <= request.max_tokens <= 4096 and math.isfinite(request.temperature)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "", "text": "hello"}, "messages[0].text"),
        ({"role": "user", "content": [], "input": "hello"}, "messages[0].input"),
        ({"role": "user", "content": "", "parts": [{"text": "hello"}]}, "messages[0].parts"),
        ({"role": "assistant", "content": "", "response": "hello"}, "messages[0].response"),
        ({"role": "tool", "content": "", "output": "hello"}, "messages[0].output"),
        (
            {"role": "user", "content": [{"type": "text", "text": "", "content": "hello"}]},
            "messages[0].content[0].content",
        ),
    ],
)
def test_words_under_an_unknown_key_beside_an_empty_content_are_not_lost(message, param):
    with pytest.raises(ValidationError, match="did you mean '(content|text)'") as error:
        parse_request("chat", {"messages": [message]}, ignored=[])
    assert error.value.param == param


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ""},
        {"role": "user", "content": "", "id": "msg_1", "note": "", "n": 5},
        {"role": "user", "content": "said", "text": "again"},
        {"role": "assistant", "content": "", "reasoning": "hm", "channel": "x"},
        {
            "role": "assistant",
            "content": "",
            "channel": "x",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "user", "content": [{"type": "text", "text": "said", "citation": "x"}]},
    ],
)
def test_an_unknown_key_that_says_nothing_is_tolerated_where_strangers_send(message):
    assert parse_request("chat", {"messages": [message]}, ignored=[])


@pytest.mark.parametrize(
    ("field", "nothing", "something"),
    [
        ("ebnf", None, "root ::= x"),
        ("length_penalty", 1.0, 1.1),
        ("min_keep", 1, 2),
        ("use_beam_search", False, True),
    ],
)
def test_what_other_engines_clients_ask_for_is_refused_by_name_over_http_too(field, nothing, something):
    assert parse_request("chat", {"messages": HI, field: nothing}, ignored=[])
    with pytest.raises(ValidationError, match="not supported") as error:
        parse_request("chat", {"messages": HI, field: something}, ignored=[])
    assert error.value.param == field


def test_limits_in_messages_are_the_true_ones():
    assert "18446744073709551616" in refused(seed=2**64).message.split(", got")[0]
    assert refused(messages=[]).message == "messages: must have at least 1 item, not 0"
    with pytest.raises(ValidationError, match="at least 1 character"):
        parse_request("rerank", {"query": "x", "documents": ["a", ""]})


@pytest.mark.parametrize(
    ("given", "each"),
    [
        ("x", ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [[1, 2]]),
        ((1, 2.0), [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["x", [3]], ["x", [3]]),
        ([1, "x", 2.0], [[1, "x", 2]]),
        (("x", 1), [["x", 1]]),
        (["x", [3, "y"]], ["x", [3, "y"]]),
    ],
)
def test_prompts_are_texts_or_their_tokens(given, each):
    assert parse_request("completion", {"prompt": given}).prompts == each
    assert parse_request("embedding", {"input": given}).inputs == each


@pytest.mark.parametrize(
    ("given", "path"),
    [([], ""), ([[]], "[0]"), ([-1], "[0]"), ([1, ""], "[1]"), ([[1], [2**31]], "[1][0]"), ([True], "[0]"), (5, "")],
)
def test_what_is_no_prompt_is_refused_by_its_place(given, path):
    for kind, field in (("embedding", "input"), ("completion", "prompt")):
        assert refused(kind, **{field: given}).param == field + path


def test_answers_that_contradict_each_other_are_refused():
    assert refused("completion", n=2, best_of=3).param == "best_of"
    assert parse_request("completion", {"prompt": "x", "n": 2, "best_of": 2}).n == 2
    assert refused("completion", max_tokens=0).param == "max_tokens"
    assert parse_request("completion", {"prompt": "x", "max_tokens": 0, "echo": True}).max_tokens == 0
    assert refused(continue_final_message=True, add_generation_prompt=True).param == "add_generation_prompt"
    assert refused(chat_template_kwargs={"messages": []}).param == "chat_template_kwargs.messages"


def test_other_engines_names_of_the_same():
    assert chat(repeat_penalty=1.5).repetition_penalty == 1.5
    assert chat(typ_p=0.5).typical_p == 0.5
    assert chat(stop_token_ids=(1, 2), bad_words="x").bad_words == ["x"]


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        ([[5, 1.5], (6, False)], [(5, 1.5), (6, -100)]),
        ([["text", 2], ["5", 1]], [("text", 2), ("5", 1)]),  # in a list a text is a text, also one of digits
        ([{"id": 5, "bias": 3}, {"id": "text", "bias": False}], [(5, 3), ("text", -100)]),
        ([[5, 1], [5, 2.0]], [(5, 1), (5, 2)]),
        ({"5": 1.5}, [(5, 1.5)]),
        ([], []),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_biases_come_in_every_form(kind, given, pairs):
    least = {"messages": HI} if kind == "chat" else {"prompt": "x"}
    request = parse_request(kind, {**least, "logit_bias": given}, ignored=[])
    assert request.logit_bias == pairs
    assert parse_request(kind, request, {"max_tokens": 3}).logit_bias == pairs  # read again


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (5, ""),
        ("x", ""),
        ([5], "[0]"),
        ([[5, 1], [5]], "[1]"),
        ([[True, 1]], "[0]"),
        ([[5, True]], "[0]"),
        ([[5, 100.5]], "[0]"),
        ([[5, math.nan]], "[0]"),
        ([["", 1]], "[0]"),
        ([[-1, 1]], ""),
        ([{"id": 5}], "[0]"),
        ([{"id": 5, "bias": 1, "more": 1}], "[0]"),
        ([[5, 1]] * 1025, ""),
    ],
)
def test_what_is_no_bias_is_refused_by_its_place(given, path):
    assert refused(logit_bias=given).param == f"logit_bias{path}"


def test_alternatives_by_llama_servers_name():
    assert (chat(n_probs=3).logprobs, chat(n_probs=3).top_logprobs, chat(n_probs=0).logprobs) == (True, 3, False)
    completion = parse_request("completion", {"prompt": "x", "n_probs": 3.0})
    assert (completion.logprobs, parse_request("completion", {"prompt": "x", "n_probs": 0}).logprobs) == (3, None)
    for wrong in (21, -1, "3", True, [3], 2.5):
        assert refused(n_probs=wrong).param == "n_probs"
    both = refused(n_probs=3, logprobs=True)
    assert both.message == "n_probs: must be left out beside logprobs, which asks for the same"
    assert refused("completion", n_probs=3, logprobs=2).param == "n_probs"
    assert refused("embedding", n_probs=3).param == "n_probs"


def test_token_ids_by_llama_servers_name():
    assert chat(return_tokens=True).return_token_ids
    assert parse_request("completion", {"prompt": "x", "returnTokens": True}).return_token_ids
    assert refused("embedding", return_tokens=True).param == "return_token_ids"


ALL_ON = {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9, "xtc_probability": 0.5, "top_n_sigma": 1.0,
          "repetition_penalty": 1.1, "dry_multiplier": 0.5, "temperature": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (samplers.ORDER, ALL_ON),
        ("edstkpmyx", ALL_ON),  # the same by their letters
        (["top_k", "temperature", "top_p"], {"top_k": 5, "top_p": 0.5}),
        (["min_p", "top_k"], {"top_k": 5, "min_p": 0.5}),
        (["top-k", "temp"], {"top_k": 5}),
        (["temperature", "top_n_sigma"], {"top_n_sigma": 1.0}),
        (["top_p", "top_k"], {"top_k": 0, "top_p": 0.5}),  # one of them does nothing
        (["top_p", "temperature"], {"top_p": 0.5, "temperature": 1.0}),
        (["top_p", "temperature"], {"top_p": 0.5, "temperature": 0}),
        (["xtc", "top_p"], {"xtc_probability": 0.5, "xtc_threshold": 0.6}),
        (["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"], {"top_p": 1.0}),
    ],
)
def test_samplers_whose_order_changes_nothing_are_accepted(names, values):
    assert chat(samplers=names, **values).samplers is not None


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (["top_p", "top_k"], {"top_k": 5, "top_p": 0.5}),
        (["top_p", "temperature"], {"top_p": 0.5, "temperature": 0.5}),
        (["top_k", "temperature"], {"top_k": 5, "dynatemp_range": 0.2}),
        (["typ_p", "temperature"], {"typical_p": 0.5, "temperature": 0}),
        (["dry", "penalties"], {"dry_multiplier": 0.5, "repetition_penalty": 1.1}),
        (["min_p", "top_p"], {"min_p": 0.1, "top_p": 0.5}),
        (["top_k"], {"mirostat": 1}),
        (["infill"], {}),
        (["top_k", "top-k"], {}),
        (["top_k", 5], {}),
        ("kq", {}),
        ({"top_k": 1}, {}),
    ],
)
def test_samplers_in_another_order_are_refused_by_name(names, values):
    error = refused(samplers=names, **values)
    assert error.param == "samplers"
    if isinstance(names, list) and len(names) == 2 and names[0] != "top_k":
        assert f"{names[0]} before {names[1]}" in error.message and ", ".join(samplers.ORDER) in error.message


def test_a_logits_processor_is_a_function_and_nothing_that_json_has():
    def keep(token_ids, logits):
        return None

    assert chat(logits_processor=keep).logits_processor == [keep]
    assert chat(logits_processor=(keep, keep)).logits_processor == [keep, keep]
    for wrong in (5, "print", {"a": 1}, [5], ["print"], True):
        for ignored in (None, []):
            with pytest.raises(ValidationError, match="only a program in this process") as error:
                parse_request("chat", {"messages": HI, "logits_processor": wrong}, ignored=ignored)
            assert error.value.param == "logits_processor"
    assert refused("embedding", logits_processor=keep).param == "logits_processor"
    assert "logits_processor" not in requests.ChatCompletionRequest.model_json_schema()["properties"]


def test_documents_come_in_one_place():
    assert chat(documents=[{"title": "a", "text": "b"}]).documents == [{"title": "a", "text": "b"}]
    assert chat(chat_template_kwargs={"documents": [{"text": "b"}]}).documents == []
    given = {"documents": [{"text": "b"}]}
    assert refused(**given, chat_template_kwargs=given).param == "documents"
    assert refused(documents=["b"]).param == "documents[0]"
    assert refused("completion", **given).param == "documents"
