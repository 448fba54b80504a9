"""llama-server's words and vLLM's scores: what is made of a request, and what is said of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.exchange import Moment, Refusal
from polargrid_local.dialects.llama_server import LlamaCompletion
from polargrid_local.dialects.score import Score
from polargrid_local.errors import ValidationError

NOW = Moment("0123456789abcdef01234567", 1767225600.25)
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
TIMINGS = {"queue_ms": 1.0, "prefill_ms": 3.0, "first_token_ms": 3.5, "total_ms": 17.0, "cached_tokens": 4}


def completion(**body: Any) -> LlamaCompletion:
    return LlamaCompletion({"prompt": "Hi", **body}, NOW, "completion")


def parsed(exchange: LlamaCompletion | Score) -> Any:
    return parse_request(exchange.kind, exchange.body, max_tokens_limit=None, ignored=exchange.ignored)


def test_fields_are_ours() -> None:
    values: dict[str, Any] = {"temperature": 0.3, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.8, "seed": 4}
    values |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "stop": ["x"], "ignore_eos": True, "grammar": "g"}
    values |= {"repeat_last_n": 64, "mirostat": 1, "dry_multiplier": 0.5, "xtc_probability": 0.5, "top_n_sigma": 1.0}
    given = {**values, "repeat_penalty": 1.2, "n_predict": 12, "n_probs": 2, "cache_prompt": True, "id_slot": -1}
    exchange = completion(**given, **{"speculative.n_max": 4}, unheard_of=1)
    request = parsed(exchange)
    assert {name: getattr(request, name) for name in values} == values
    assert (request.repetition_penalty, request.max_tokens, request.logprobs) == (1.2, 12, 2)
    assert exchange.ignored == ["unheard_of"] and not exchange.streaming
    for everything in (-1, -2):
        assert parsed(completion(n_predict=everything)).max_tokens == -1
    assert parsed(completion(n_probs=0)).logprobs is None
    assert parsed(completion(json_schema={"type": "object"})).json_schema == {"type": "object"}


def test_prompts() -> None:
    for given, prompt in (("x", "x"), (["x"], "x"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])):
        assert parsed(completion(prompt=given)).prompt == prompt


def test_biases() -> None:
    for given in ([[5, 1.5], [6, False]], {"5": 1.5, "6": -100}, [{"id": 5, "bias": 1.5}, [6, -100]]):
        assert parsed(completion(logit_bias=given)).logit_bias == [(5, 1.5), (6, -100)]
    for nothing in ([], {}, None):
        assert parsed(completion(logit_bias=nothing)).logit_bias == []
    for no_token in ("9" * 5000, -5, 2**40):
        with pytest.raises(ValidationError, match="^logit_bias"):
            parsed(completion(logit_bias=[[no_token, 1]]))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"samplers": ["top_p", "top_k"], "top_k": 5}, "samplers"),
        ({"min_keep": 2}, "min_keep"),
        ({"n": 2}, "n"),
        ({"post_sampling_probs": True}, "post_sampling_probs"),
        ({"t_max_predict_ms": 100}, "t_max_predict_ms"),
        ({"image_data": [{}]}, "image_data"),
        ({"response_fields": ["content"]}, "response_fields"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"stream": 1}, "stream"),
        ({"n_probs": "x"}, "n_probs"),
        ({"logit_bias": 5}, "logit_bias"),
        ({"logit_bias": [[5]]}, "logit_bias[0]"),
        ({"logit_bias": [[5, 1], ["", 1]]}, "logit_bias[1]"),
        ({"logit_bias": [[True, 1]]}, "logit_bias[0]"),
    ],
)
def test_what_there_is_not_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(completion(**body))
    assert caught.value.param == field and caught.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "value"), [("n_predict", -3), ("repeat_penalty", 11), ("n_probs", 99), ("return_tokens", 5)]
)
def test_errors_of_our_parser_say_the_names_of_the_request(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(completion(**{field: value}))
    error = caught.value
    words = LlamaCompletion.error(Refusal(error.message, error.type, error.code, error.param, 400))
    assert words["error"]["message"].startswith(f"{field}: ")
    assert (words["error"]["code"], words["error"]["type"]) == (400, "invalid_request_error")


def test_whatever_a_body_holds_is_answered_or_refused() -> None:
    for field in ("prompt", "model", "stop", "logit_bias", "n_probs", "n_predict", "stream", "grammar", "json_schema"):
        for value in (5, 1.5, "x", "", [], [5], [[]], [[[]]], {}, {"x": 5}, True, None, "\ud800"):
            try:
                parsed(completion(**{field: value}))
            except ValidationError as error:
                assert error.param


LOGPROBS = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -2.0}], "text_offset": [0]}


def chunks(*texts: str, reason: str = "stop", **last: Any) -> list[dict[str, Any]]:
    told = [{"text": text, "index": 0, "finish_reason": None} for text in texts]
    told.append({"text": "", "index": 0, "finish_reason": reason, **last})
    counted = [
        {"model": "m", "choices": [choice], "usage": {**USAGE, "completion_tokens": min(i + 1, len(texts))}}
        for i, choice in enumerate(told)
    ]
    return [*counted, {"model": "m", "choices": [], "usage": USAGE, "timings": TIMINGS}]


@pytest.mark.parametrize(
    ("reason", "more", "stop_type", "word"),
    [
        ("stop", {}, "eos", ""),
        ("stop", {"stop_reason": "END"}, "word", "END"),
        ("stop", {"stop_reason": 7}, "eos", ""),
        ("length", {}, "limit", ""),
        ("content_filter", {}, "none", ""),
    ],
)
def test_joined_events_are_the_whole_answer(reason: str, more: dict[str, Any], stop_type: str, word: str) -> None:
    choice = {"text": "abc", "index": 0, "finish_reason": reason, **more}
    answer = {"model": "m", "choices": [choice], "usage": USAGE, "timings": TIMINGS}
    whole: Any = completion(n_predict=9).reply(answer)
    assert (whole["stop_type"], whole["stopping_word"], whole["content"]) == (stop_type, word, "abc")
    stream = completion(n_predict=9, stream=True)
    said = [line for chunk in chunks("a", "bc", reason=reason, **more) for line in stream.chunk(chunk)]
    said += stream.end()
    assert all(line.startswith(b"data: {") and line.endswith(b"}\n\n") and line.isascii() for line in said)
    *told, last = [json.loads(line[6:]) for line in said]
    assert {**last, "content": "".join(event["content"] for event in told)} == whole
    assert [(event["stop"], event["tokens_predicted"]) for event in told] == [(False, 1), (False, 2)]
    assert whole["timings"] == {
        "cache_n": 4,
        "prompt_n": 1,
        "prompt_ms": 2.0,
        "prompt_per_token_ms": 2.0,
        "prompt_per_second": 500.0,
        "predicted_n": 7,
        "predicted_ms": 14.0,
        "predicted_per_token_ms": 2.0,
        "predicted_per_second": 500.0,
    }


def test_probabilities() -> None:
    choice = {"text": "a", "index": 0, "finish_reason": "stop", "logprobs": LOGPROBS}
    answer = {"model": "m", "choices": [choice], "usage": USAGE, "pg_metadata": {"cached_tokens": 2}}
    whole: Any = completion(n_probs=2).reply(answer)
    (entry,) = whole["completion_probabilities"]
    assert (entry["token"], entry["bytes"], [top["token"] for top in entry["top_logprobs"]]) == ("a", [97], ["a", "b"])
    assert whole["timings"] == {"cache_n": 2, "prompt_n": 3, "predicted_n": 7}


def test_tokens_timings_and_progress_come_where_they_are_asked_for() -> None:
    stream = completion(stream=True, return_tokens=True, timings_per_token=True, return_progress=True)
    asked = parsed(stream)
    assert asked.return_token_ids and asked.return_progress
    progress = {"total": 5, "cache": 0, "processed": 4}
    waits = {"model": "m", "choices": [{"text": "", "index": 0, "finish_reason": None}], "prompt_progress": progress}
    told = chunks("a", "")
    for i, chunk in enumerate(told[:3]):
        chunk["choices"][0]["token_ids"] = [[7], [8, 9], []][i]
        chunk["timings"] = TIMINGS
    said = [line for chunk in [waits, *told] for line in stream.chunk(chunk)]
    events = [json.loads(line[6:]) for line in [*said, *stream.end()]]
    assert [event["tokens"] for event in events] == [[], [7], [8, 9], []]
    assert [event.get("prompt_progress") for event in events] == [progress, None, None, None]
    assert all(event["timings"]["cache_n"] == 4 for event in events[1:])
    choice = {"text": "a", "index": 0, "finish_reason": "stop", "token_ids": [7]}
    whole: Any = completion(return_tokens=True).reply({"model": "m", "choices": [choice], "usage": USAGE})
    assert whole["tokens"] == [7]


def test_a_stream_that_fails_has_no_last_event() -> None:
    stream = completion(stream=True)
    said = [line for chunk in chunks("a")[:1] for line in stream.chunk(chunk)]
    said += stream.failure(Refusal("broken", "server_error", "internal_error", None, 500))
    events = [json.loads(line[6:]) for line in said]
    assert events[0]["stop"] is False
    assert events[-1] == {"error": {"code": 500, "message": "broken", "type": "server_error"}}


def test_scores() -> None:
    exchange = Score({"model": "m", "text_1": "q", "text_2": ["a", "b"], "unheard_of": 1}, NOW, "rerank")
    request = parsed(exchange)
    assert (request.query, request.documents, exchange.ignored) == ("q", ["a", "b"], ["unheard_of"])
    results = [{"index": 1, "relevance_score": 2.0}, {"index": 0, "relevance_score": -1.0}]
    assert exchange.reply({"model": "m", "results": results, "usage": {"prompt_tokens": 3, "total_tokens": 3}}) == {
        "id": f"score-{NOW.id}",
        "object": "list",
        "created": 1767225600,
        "model": "m",
        "data": [{"index": 0, "object": "score", "score": -1.0}, {"index": 1, "object": "score", "score": 2.0}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert parsed(Score({"text_1": "q", "text_2": "a"}, NOW, "rerank")).documents == ["a"]
    for wrong, field in (
        ({}, "text_1"),
        ({"text_1": ["q"], "text_2": "a"}, "text_1"),
        ({"text_1": "q", "text_2": []}, "text_2"),
        ({"text_1": "q", "text_2": ["a", ""]}, "text_2[1]"),
        ({"text_1": "q", "text_2": "a", "softmax": True}, "softmax"),
    ):
        with pytest.raises(ValidationError) as caught:
            parsed(Score(wrong, NOW, "rerank"))
        assert caught.value.param == field
