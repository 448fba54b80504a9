"""llama-server's words and vLLM's scores: what is made of a request, and what is said of an answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from polargrid_local.api.parse import parse_request
from polargrid_local.dialects.exchange import Exchange, Moment, Refusal
from polargrid_local.dialects.llama_server import LlamaCompletion, LlamaEmbedding
from polargrid_local.dialects.score import Rerank, Score
from polargrid_local.errors import ValidationError

NOW = Moment("0123456789abcdef01234567", 1767225600.25)
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
TIMINGS = {"queue_ms": 1.0, "prefill_ms": 3.0, "first_token_ms": 3.5, "total_ms": 17.0, "cached_tokens": 4}


def completion(**body: Any) -> LlamaCompletion:
    return LlamaCompletion({"prompt": "Hi", **body}, NOW, "completion")


def parsed(exchange: Exchange) -> Any:
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
    several = ["x", [1, 2], ["a", 3], "y"]
    for given, prompts in (
        ("x", ["x"]),
        (["x"], ["x"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2]], [[1, 2]]),
        ([1, "a", 2], [[1, "a", 2]]),
        (["a", 2], [["a", 2]]),
        ({"prompt_string": "x"}, ["x"]),
        ([*several[:3], {"prompt_string": "y"}], several),
    ):
        assert parsed(completion(prompt=given)).prompts == prompts
    assert completion(prompt=["x", {"prompt_string": "y", "new": 1}]).ignored == ["prompt[1].new"]


def test_biases() -> None:
    for given in ([[5, 1.5], [6, False]], {"5": 1.5, "6": -100}, [{"id": 5, "bias": 1.5}, [6, -100]]):
        assert parsed(completion(logit_bias=given)).logit_bias == [(5, 1.5), (6, -100)]
    texts = parsed(completion(logit_bias={" text ": -100, "5": 1, "x": False})).logit_bias
    assert texts == [(" text ", -100), (5, 1), ("x", -100)]
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
        ({"t_max_predict_ms": 100}, "t_max_predict_ms"),
        ({"image_data": [{}]}, "image_data"),
        ({"response_fields": [5]}, "response_fields[0]"),
        ({"response_fields": "content"}, "response_fields"),
        ({"prompt": ["a", {}]}, "prompt[1].prompt_string"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["b"]}}, "prompt.multimodal_data"),
        ({"prompt": [5, "a", ""]}, "prompt[2]"),
        ({"prompt": ["a", 5, []]}, "prompt[2]"),
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
    counted[-1] |= {"usage": USAGE, "timings": TIMINGS}
    return [*counted, {"model": "m", "choices": [], "usage": USAGE, "timings": TIMINGS}]


def test_probabilities_after_sampling_have_names_of_their_own() -> None:
    choice = {"text": "a", "index": 0, "finish_reason": "stop", "logprobs": LOGPROBS}
    answer = {"model": "m", "choices": [choice], "usage": USAGE, "timings": TIMINGS}
    reply = completion(n_probs=2, post_sampling_probs=True)
    assert parsed(reply).post_sampling_probs is True
    (entry,) = reply.reply(answer)["completion_probabilities"]
    a, b = math.exp(-1), math.exp(-2)
    top = [{"token": "a", "bytes": [97], "prob": a}, {"token": "b", "bytes": [98], "prob": b}]
    assert entry == {"token": "a", "bytes": [97], "prob": a, "top_probs": top}


def test_a_reply_repeats_a_prompt_of_text() -> None:
    choices = [{"text": "x", "index": i, "finish_reason": "stop"} for i in range(2)]
    answer = {"model": "m", "choices": choices, "usage": USAGE, "timings": TIMINGS}
    one, other = completion(prompt=["a", [5]]).reply(answer)
    assert one["prompt"] == "a" and "prompt" not in other
    (reply,) = completion(prompt="a", response_fields=["prompt"]).reply({**answer, "choices": choices[:1]}).values()
    assert reply == "a"


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
        "predicted_per_token_ms": 14 / 6,  # the first came with the prompt
        "predicted_per_second": 6 / 14 * 1e3,
    }


def test_probabilities() -> None:
    choice = {"text": "a", "index": 0, "finish_reason": "stop", "logprobs": LOGPROBS}
    answer = {"model": "m", "choices": [choice], "usage": USAGE, "pg_metadata": {"cached_tokens": 2}}
    whole: Any = completion(n_probs=2).reply(answer)
    (entry,) = whole["completion_probabilities"]
    assert (entry["token"], entry["bytes"], [top["token"] for top in entry["top_logprobs"]]) == ("a", [97], ["a", "b"])
    assert whole["timings"] == {"cache_n": 2, "prompt_n": 3, "predicted_n": 7}
    (likeliest,) = completion(n_probs=1).reply(answer)["completion_probabilities"]
    assert [top["token"] for top in likeliest["top_logprobs"]] == ["a"]  # as many as are asked for


@pytest.mark.parametrize(("n_predict", "cut"), [(-1, True), (-2, True), (8, True), (7, False)])
@pytest.mark.parametrize("reason", ["length", "stop"])
def test_an_answer_that_fills_the_context_is_truncated(n_predict: int, cut: bool, reason: str) -> None:
    choice = {"text": "a", "index": 0, "finish_reason": reason}
    reply: Any = completion(n_predict=n_predict).reply({"model": "m", "choices": [choice], "usage": USAGE})
    assert reply["truncated"] is (cut and reason == "length")  # of 7 tokens


def test_the_answers_to_several_prompts() -> None:
    told = [
        ("a", 1, {"prompt_token_ids": [1, 2], "token_ids": [7]}),
        ("b\n", 0, {"prompt_token_ids": [1], "token_ids": [8]}),
        ("c", 1, {"token_ids": [9]}),
    ]
    ends = [("", 1, {"finish_reason": "length"}), ("", 0, {"finish_reason": "stop", "stop_reason": "END"})]
    stream = completion(prompt=["x", "y"], stream=True)
    said: list[bytes] = []
    for text, index, more in (*told, *ends):
        choice = {"text": text, "index": index, "finish_reason": None, **more}
        said += stream.chunk({"model": "m", "choices": [choice], "usage": USAGE})
    said += stream.end()
    events = [json.loads(line[6:]) for line in said]
    assert [(event["index"], event["content"], event["stop"], event["tokens_predicted"]) for event in events] == [
        (1, "a", False, 1), (0, "b\n", False, 1), (1, "c", False, 2), (1, "", True, 2), (0, "", True, 1)
    ]  # fmt: skip
    assert [event["tokens"] for event in events[:3]] == [[7], [8], [9]]
    choices = [
        {"text": "b\n", "index": 0, "finish_reason": "stop", "stop_reason": "END", **told[1][2]},
        {"text": "ac", "index": 1, "finish_reason": "length", "prompt_token_ids": [1, 2], "token_ids": [7, 9]},
    ]
    replies: Any = completion(prompt=["x", "y"]).reply({"model": "m", "choices": choices, "usage": USAGE})
    assert [{**reply, "content": ""} for reply in replies] == [events[4], events[3]]
    assert [reply["content"] for reply in replies] == ["b\n", "ac"]


def test_a_reply_has_the_fields_that_are_asked_for() -> None:
    choice = {"text": "a", "index": 0, "finish_reason": "stop"}
    answer = {"model": "m", "choices": [choice], "usage": USAGE}
    paths = ["generation_settings/n_predict", "content", "nothing", "content/nothing"]
    whole: Any = completion(n_predict=9, response_fields=paths).reply(answer)
    assert list(whole.items()) == [("generation_settings/n_predict", 9), ("content", "a")]
    assert completion(response_fields=[]).reply(answer)["stop"] is True


def test_embeddings() -> None:
    for given, inputs in (("x", ["x"]), (["x", [1, 2], [3, "y"]], ["x", [1, 2], [3, "y"]]), ([5, "x"], [[5, "x"]])):
        for name in ("content", "input"):
            exchange = LlamaEmbedding({name: given, "unheard_of": 1}, NOW, "embedding")
            assert parsed(exchange).inputs == inputs and exchange.ignored == ["unheard_of"]
    data = [{"index": i, "embedding": [0.5, float(i)]} for i in range(2)]
    assert exchange.reply({"data": data}) == [{"index": i, "embedding": [[0.5, float(i)]]} for i in range(2)]
    for wrong in ({}, {"content": 5}, {"content": [5, -1]}):
        with pytest.raises(ValidationError) as caught:
            parsed(LlamaEmbedding(wrong, NOW, "embedding"))
        error = caught.value
        words = LlamaEmbedding.error(Refusal(error.message, error.type, error.code, error.param, 400))
        assert words["error"]["message"].startswith("content")


def test_rankings_in_the_words_of_tei() -> None:
    results = [{"index": 1, "relevance_score": 2.0, "document": {"text": "b"}}, {"index": 0, "relevance_score": 1.0}]
    answer = {"model": "m", "results": results, "usage": {}}
    body = {"query": "q", "texts": ["a", "b"], "return_text": True, "topN": 2, "raw_scores": True, "truncate": False}
    exchange = Rerank(body, NOW, "rerank")
    request = parsed(exchange)
    assert (request.query, request.documents, request.return_documents, request.top_n) == ("q", ["a", "b"], True, 2)
    assert exchange.ignored == []
    assert exchange.reply(answer) == [{"index": 1, "score": 2.0, "text": "b"}, {"index": 0, "score": 1.0}]
    for raw, activated in ((None, False), (True, False), (False, True)):
        scores = Rerank({"query": "q", "texts": ["a"], "raw_scores": raw}, NOW, "rerank")
        assert parsed(scores).use_activation is activated
    ours = Rerank({"query": "q", "documents": ["a", "b"], "return_text": True}, NOW, "rerank")
    assert parsed(ours).return_documents and ours.reply(answer) is answer
    for more, field in (
        ({"documents": ["a"]}, "texts"),
        ({"raw_scores": 1}, "raw_scores"),
        ({"raw_scores": False, "use_activation": True}, "raw_scores"),
        ({"raw_scores": True, "softmax": False}, "raw_scores"),
        ({"truncate": True}, "truncate"),
        ({"return_text": 1}, "return_text"),
        ({"texts": ["a", ""]}, "texts[1]"),
        ({"query": ["q"]}, "query"),
    ):
        with pytest.raises(ValidationError) as caught:
            parsed(Rerank({"query": "q", "texts": ["a", "b"], **more}, NOW, "rerank"))
        assert caught.value.param == field


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
    for name in ("use_activation", "activation", "softmax"):
        for activated in (True, False, None):
            asked = parsed(Score({"text_1": "q", "text_2": "a", name: activated}, NOW, "rerank"))
            assert asked.use_activation is bool(activated)
    cut = {"truncate_prompt_tokens": 5, "truncation_side": "right", "max_tokens_per_doc": 3}
    request = parsed(Score({"text_1": "q", "text_2": "a", **cut}, NOW, "rerank"))
    assert {name: getattr(request, name) for name in cut} == cut
    for one, other in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        pairs = parsed(Score({one: ["q", "r"], other: ["a", "b"]}, NOW, "rerank")).pairs
        assert pairs == [("q", "a"), ("r", "b")]
        assert parsed(Score({one: ["q"], other: ["a", "b"]}, NOW, "rerank")).pairs == [("q", "a"), ("q", "b")]
    for wrong, field in (
        ({}, "text_1"),
        ({"text_1": ["q", "r"], "text_2": "a"}, "text_1"),
        ({"queries": ["q", "r"], "documents": ["a", "b", "c"]}, "queries"),
        ({"queries": "q", "documents": ["a", 5]}, "documents[1]"),
        ({"data_1": "q"}, "data_2"),
        ({"text_1": "q", "text_2": "a", "data_1": "q"}, "data_1"),
        ({"text_1": "q", "text_2": "a", "items": "q"}, "items"),
        ({"queries": "q", "documents": "a", "items": "q"}, "items"),
        ({"text_1": "q", "text_2": []}, "text_2"),
        ({"text_1": "q", "text_2": ["a", ""]}, "text_2[1]"),
        ({"text_1": "q", "text_2": "a", "softmax": 1}, "use_activation"),
        ({"text_1": "q", "text_2": "a", "instruction": "find it"}, "instruction"),
    ):
        with pytest.raises(ValidationError) as caught:
            parsed(Score(wrong, NOW, "rerank"))
        assert caught.value.param == field
