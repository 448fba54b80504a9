"""Requests to native requests, events to chunks: the remote's shapes, and a joined stream that is the plain answer."""

import itertools
import json
import math
from datetime import datetime, timezone

import polargrid.types as sdk
import pytest
from fakes import INFO, Event
from hypothesis import given, settings
from hypothesis import strategies as st

from polargrid_local.api.parse import parse_request
from polargrid_local.api.prepare import prepare, split_filters
from polargrid_local.api.prompts import Target
from polargrid_local.chat.template import ChatTemplate
from polargrid_local.errors import ContextLengthError, EngineClosed, NumericError, ValidationError

NOW = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
ID = "0123456789abcdef01234567"
HI = [{"role": "user", "content": "hi"}]
HEAD = {"id": f"chatcmpl-{ID}", "object": "chat.completion.chunk", "created": 1700000000, "model": "M"}
COUNTS = {"n_prompt": 5, "n_cached": 2, "n_generated": 3}
TIMES = {"queue_ms": 3.4, "prefill_ms": 50.0, "first_token_ms": 60.0, "total_ms": 812.6}


def job(kind="chat", target=None, **fields):
    base = {
        "chat": {"messages": HI},
        "completion": {"prompt": "x"},
        "embedding": {"input": "x"},
        "generate": {"prompt": "x"},
    }[kind]
    request = parse_request(kind, {"model": "M", **base, **fields})
    return prepare(request, target or Target("default", INFO, ChatTemplate(None)), now=NOW, id=ID, seed=42)


def end(reason="stop", text="", **fields):
    return Event(1, "finished", text, reason=reason, **{**COUNTS, **TIMES, **fields})


def feed(assembler, events, index=0):
    return [chunk for event in events for chunk in assembler.feed(event, index)]


def run(made, events):
    return made.assembler.start() + feed(made.assembler, events)


def text(chunks):
    return "".join(
        c["delta"].get("content", "") if "delta" in c else c["text"] for chunk in chunks for c in chunk["choices"]
    )


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_a_chat_stream_is_the_remotes_byte_for_byte():
    lines = [json.dumps(chunk, separators=(",", ":")) for chunk in run(job(), [Event(1, "text", "Hi"), end()])]
    start = f'{{"id":"chatcmpl-{ID}","object":"chat.completion.chunk","created":1700000000,"model":"M","choices":['
    assert lines == [
        start + '{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}',
        start + '{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}',
        start + '{"index":0,"delta":{},"finish_reason":"stop"}]}',
    ]


def test_a_text_stream_is_the_remotes_byte_for_byte():
    lines = [
        json.dumps(chunk, separators=(",", ":"))
        for chunk in run(job("completion"), [Event(1, "text", "Hi"), end("length")])
    ]
    start = f'{{"id":"cmpl-{ID}","object":"text_completion","created":1700000000,"model":"M","choices":['
    assert lines == [
        start + '{"text":"Hi","index":0,"finish_reason":null}]}',
        start + '{"text":"","index":0,"finish_reason":"length"}]}',
    ]


def test_the_plain_answers_are_the_remotes():
    made = job()
    run(made, [Event(1, "text", "Hi"), end()])
    assert json.dumps(made.assembler.response(), separators=(",", ":")) == (
        f'{{"id":"chatcmpl-{ID}","object":"chat.completion","created":1700000000,"model":"M",'
        '"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],'
        '"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8},'
        '"pg_metadata":{"region":"local","latency_ms":813,"model_load_time_ms":null,"queue_time_ms":3,'
        '"inference_time_ms":809,"seed":42,"cached_tokens":2}}'
    )
    made = job("completion")
    run(made, [Event(1, "text", "Hi"), end()])
    reply = made.assembler.response()
    assert list(reply) == ["id", "object", "created", "model", "choices", "usage", "pg_metadata"]
    assert reply["choices"] == [{"text": "Hi", "index": 0, "logprobs": None, "finish_reason": "stop"}]


def test_usage_comes_only_when_asked_for_and_last():
    chunks = run(job(stream_options={"include_usage": True}), [Event(1, "text", "Hi"), end()])
    assert chunks[-1] == {
        **HEAD,
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }
    assert not any("usage" in chunk for chunk in chunks[:-1])
    assert not any("usage" in chunk for chunk in run(job(), [Event(1, "text", "Hi"), end()]))


def test_a_request_without_a_model_is_answered_by_the_targets_name():
    request = parse_request("chat", {"messages": HI})
    made = prepare(request, Target("default", INFO, ChatTemplate(None)), now=NOW, id=ID, seed=1)
    assert made.assembler.start()[0]["model"] == "default"


# --- rankings ---------------------------------------------------------------------------------------------------------

RANKS = {**INFO, "tasks": ["rank"], "n_ctx_train": 512}
SCORES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-50, 50), min_size=1)


def ranking(info=RANKS, scores=(), **fields):
    """The native requests, and the results where each document has one of `scores`."""
    documents = ["x"] * max(len(scores), 1)
    request = parse_request("rerank", {"query": "q", "documents": documents, **fields})
    made = prepare(request, Target("default", info, ChatTemplate(None)), now=NOW, id=ID, seed=42)
    for index, score in enumerate(scores):
        feed(made.assembler, [Event(1, "embedding", embedding=[score], **COUNTS)], index)
    return made.requests, made.assembler.response()["results"] if scores else []


@given(SCORES)
def test_activated_scores_are_logistic_and_keep_the_order(scores):
    raw = ranking(scores=scores)[1]
    activated = ranking(scores=scores, use_activation=True)[1]
    assert [row["index"] for row in activated] == [row["index"] for row in raw]
    told = [row["relevance_score"] for row in activated]
    assert told == sorted(told, reverse=True) and all(0 <= score <= 1 for score in told)
    for row, score in zip(raw, told, strict=True):
        x = row["relevance_score"]
        expected = 1 / (1 + math.exp(-x)) if abs(x) < 700 else float(x > 0)
        assert score == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_what_is_left_of_a_pair_is_said_to_the_engine():
    (plain,), _ = ranking()
    assert plain == {"task": "rank", "prompt": [("q", False), ("x", False)]}
    for given_, native in [
        ({"truncate_prompt_tokens": 5}, {"keep_tokens": 5}),
        ({"truncate_prompt_tokens": -1}, {"keep_tokens": 512}),
        ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, {"keep_tokens": 5, "keep_first": True}),
        ({"truncation_side": "right"}, {}),
    ]:
        (request,), _ = ranking(**given_)
        assert request == {**plain, **native}


# --- the stream contract ----------------------------------------------------------------------------------------------

PIECES = st.lists(st.sampled_from(["a", "é", "👩‍🚀", "日本", "e\u0301", " ", "\n", "", "\u2028", '"']), max_size=12)
LAST = st.sampled_from(["", "!", "👍"])
REASONS = st.sampled_from(["stop", "length", "content_filter"])


@settings(deadline=None)
@given(st.sampled_from(["chat", "completion"]), PIECES, LAST, REASONS, st.booleans())
def test_joined_is_plain_and_the_sdk_reads_every_chunk(kind, pieces, last, reason, logprobs):
    fields = {"logprobs": (True if kind == "chat" else 0)} if logprobs else {}
    made = job(kind, **fields)
    chunks = run(
        made, [Event(1, "progress", progress=0.5), *(Event(1, "text", piece) for piece in pieces), end(reason, last)]
    )
    reply = made.assembler.response()
    plain = reply["choices"][0]["message"]["content"] if kind == "chat" else reply["choices"][0]["text"]
    assert text(chunks) == plain == made.assembler.text == "".join(pieces) + last
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons == [None] * (len(chunks) - 1) + [reason] and made.assembler.finish_reason == reason
    assert len({(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in chunks}) == 1
    assert made.assembler.done and made.assembler.feed(end()) == []
    chunk_type, reply_type = {
        "chat": (sdk.ChatCompletionChunk, sdk.ChatCompletionResponse),
        "completion": (sdk.CompletionChunk, sdk.CompletionResponse),
    }[kind]
    for chunk in chunks:
        chunk_type.model_validate(chunk)
    reply_type.model_validate(reply)
    if kind == "chat":
        assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant"] + [None] * (
            len(chunks) - 1
        )


@settings(deadline=None)
@given(PIECES, st.data())
def test_however_the_events_are_chopped_the_text_is_the_same(pieces, data):
    whole = "".join(pieces)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=6)) | {0, len(whole)})
    made = job()
    chunks = run(made, [*(Event(1, "text", whole[a:b]) for a, b in itertools.pairwise(cuts)), end()])
    assert text(chunks) == whole == made.assembler.response()["choices"][0]["message"]["content"]
    assert all(chunk["choices"][0]["delta"].get("content") != "" for chunk in chunks)


def test_an_error_event_is_raised_as_its_class():
    made = job()
    run(made, [Event(1, "text", "half")])
    with pytest.raises(NumericError, match="NaN"):
        made.assembler.feed(Event(1, "error", "NaN in the logits", code="numeric_error", details={"n_past": "7"}))
    assert made.assembler.finish_reason is None and not made.assembler.done and made.assembler.text == "half"
    with pytest.raises(EngineClosed):
        job().assembler.feed(Event(1, "error", "closed", code="engine_closed"))


def test_many_prompts_are_many_choices_of_one_answer():
    made = job("completion", prompt=["one", "two", "three"], stream_options={"include_usage": True})
    assert [request["prompt"] for request in made.requests] == [[("one", True)], [("two", True)], [("three", True)]]
    one = made.assembler
    chunks = (
        one.feed(Event(2, "text", "b"), 1)
        + one.feed(Event(1, "text", "a"), 0)
        + one.feed(end("length"), 1)
        + one.feed(end("stop", "c"), 2)
        + one.feed(end(), 0)
    )
    assert [(c["text"], c["index"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"]] == [
        ("b", 1, None),
        ("a", 0, None),
        ("", 1, "length"),
        ("c", 2, None),
        ("", 2, "stop"),
        ("", 0, "stop"),
    ]
    assert chunks[-1]["usage"] == {"prompt_tokens": 15, "completion_tokens": 9, "total_tokens": 24}
    assert [choice["text"] for choice in one.response()["choices"]] == ["a", "b", "c"]


def test_counts_are_true_at_any_time():
    made = job()
    run(made, [Event(1, "text", "x", n_prompt=5, n_generated=2)])
    assert made.assembler.usage == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert made.assembler.timings["total_ms"] is None
    feed(made.assembler, [end()])
    assert made.assembler.timings == {
        "queue_ms": 3.4,
        "prefill_ms": 50.0,
        "first_token_ms": 60.0,
        "total_ms": 812.6,
        "tokens_per_second": pytest.approx(2 / 0.7526),
        "cached_tokens": 2,
        "accepted_draft_tokens": 0,
        "rejected_draft_tokens": 0,
    }


# --- predictions ------------------------------------------------------------------------------------------------------

PREDICTION = {"type": "content", "content": [{"type": "text", "text": "a b"}, {"type": "text", "text": " c"}]}
DRAFTS = {"n_accepted": 2, "n_rejected": 4}
DETAILS = {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 4}


@pytest.mark.parametrize("kind", ["chat", "completion", "generate"])
def test_a_prediction_reaches_the_engine_as_one_text(kind):
    (request,) = job(kind, prediction=PREDICTION).requests
    assert request.pop("prediction") == "a b c"
    assert request == job(kind).requests[0]  # nothing else depends on it
    assert job(kind, prediction="a b c").requests[0]["prediction"] == "a b c"
    for empty in ("", {"type": "content", "content": ""}, {"type": "content", "content": []}):
        assert job(kind, prediction=empty).requests == job(kind).requests


def test_a_prediction_is_for_each_prompt():
    made = job("completion", prompt=["one", "two"], prediction="x")
    assert [request["prediction"] for request in made.requests] == ["x", "x"]
    feed(made.assembler, [end(**DRAFTS)], 0)
    feed(made.assembler, [end(**DRAFTS)], 1)
    assert made.assembler.response()["usage"]["completion_tokens_details"] == {
        "accepted_prediction_tokens": 4,
        "rejected_prediction_tokens": 8,
    }


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("prediction", [PREDICTION, "x", ""])
def test_usage_tells_what_a_prediction_was_worth(kind, prediction):
    made = job(kind, prediction=prediction, stream_options={"include_usage": True})
    chunks = run(made, [Event(1, "text", "Hi"), end(**DRAFTS)])
    wanted = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "completion_tokens_details": DETAILS}
    assert chunks[-1]["usage"] == made.assembler.usage == made.assembler.response()["usage"] == wanted


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_without_a_prediction_drafts_are_in_the_timings_alone(kind):
    made = job(kind, stream_options={"include_usage": True})
    chunks = run(made, [Event(1, "text", "Hi"), end(**DRAFTS)])
    wanted = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert chunks[-1]["usage"] == made.assembler.response()["usage"] == wanted
    timings = made.assembler.timings
    assert (timings["accepted_draft_tokens"], timings["rejected_draft_tokens"]) == (2, 4)


def test_generate_has_a_prediction_too():
    made = job("generate", prediction="x")
    run(made, [Event(1, "text", "Hi"), end(**DRAFTS)])
    assert made.assembler.generate_response()["usage"]["completion_tokens_details"] == DETAILS


# --- logprobs, embeddings, generate -----------------------------------------------------------------------------------

ENTRY = {
    "token": 9,
    "logprob": -0.25,
    "bytes": b"\xc3\xa9",
    "top": [
        {"token": 9, "logprob": -0.25, "bytes": b"\xc3\xa9", "top": []},
        {"token": 4, "logprob": -2.0, "bytes": b"\xc3", "top": []},
    ],
}


def test_chat_logprobs_are_openais():
    made = job(logprobs=True, top_logprobs=2)
    assert made.requests[0]["sampling"]["n_logprobs"] == 2
    chunks = run(made, [Event(1, "text", "é", logprobs=[ENTRY]), end()])
    content = [
        {
            "token": "é",
            "logprob": -0.25,
            "bytes": [195, 169],
            "top_logprobs": [
                {"token": "é", "logprob": -0.25, "bytes": [195, 169]},
                {"token": "bytes:\\xc3", "logprob": -2.0, "bytes": [195]},
            ],
        }
    ]
    assert chunks[1]["choices"] == [
        {"index": 0, "delta": {"content": "é"}, "logprobs": {"content": content}, "finish_reason": None}
    ]
    assert list(made.assembler.response()["choices"][0]) == ["index", "message", "logprobs", "finish_reason"]
    assert made.assembler.response()["choices"][0]["logprobs"] == {"content": content}


def test_text_logprobs_are_openais():
    made = job("completion", logprobs=1)
    chunks = run(made, [Event(1, "text", "é", logprobs=[ENTRY]), Event(1, "text", "é", logprobs=[ENTRY]), end()])
    assert chunks[1]["choices"][0]["logprobs"] == {
        "tokens": ["é"],
        "token_logprobs": [-0.25],
        "top_logprobs": [{"é": -0.25, "bytes:\\xc3": -2.0}],
        "text_offset": [1],
    }
    assert made.assembler.response()["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    assert "logprobs" not in run(job("completion"), [Event(1, "text", "x"), end()])[0]["choices"][0]


def entry(token, logprob, raw, top=()):
    return {"token": token, "logprob": logprob, "bytes": raw, "top": list(top)}


def test_text_logprobs_always_have_the_sampled_token():
    """Up to logprobs + 1 entries, as at OpenAI."""
    top = [entry(1, -0.1, b"a"), entry(2, -0.9, b"b")]
    for n, sampled, expected in (
        (0, entry(3, -3.0, b"c"), {"c": -3.0}),
        (2, entry(3, -3.0, b"c", top), {"a": -0.1, "b": -0.9, "c": -3.0}),
        (2, entry(2, -0.9, b"b", top), {"a": -0.1, "b": -0.9}),
    ):
        made = job("completion", logprobs=n)
        assert made.requests[0]["sampling"]["n_logprobs"] == n
        run(made, [Event(1, "text", "c", logprobs=[sampled]), end()])
        assert made.assembler.response()["choices"][0]["logprobs"]["top_logprobs"] == [expected]


def test_tokens_that_read_alike_keep_their_own_names():
    """Pieces of characters, control tokens (no text), and a byte token beside the ordinary one."""
    top = [
        entry(1, -0.1, b"\xe2\x9f"),
        entry(2, -0.2, b"\xe2\x9c"),
        entry(3, -0.3, b""),
        entry(4, -0.4, b""),
        entry(5, -0.5, b"a"),
        entry(6, -0.6, b"a"),
        entry(7, -0.7, b"\xff"),
    ]
    made = job("completion", logprobs=7)
    run(made, [Event(1, "text", "a", logprobs=[entry(6, -0.6, b"a", top)]), end()])
    assert made.assembler.response()["choices"][0]["logprobs"]["top_logprobs"] == [
        {
            "bytes:\\xe2\\x9f": -0.1,
            "bytes:\\xe2\\x9c": -0.2,
            "token_id:3": -0.3,
            "token_id:4": -0.4,
            "token_id:5": -0.5,
            "a": -0.6,
            "bytes:\\xff": -0.7,
        }
    ]
    made = job(logprobs=True, top_logprobs=7)
    run(made, [Event(1, "text", "a", logprobs=[entry(3, -0.3, b"", top)]), end()])
    said = made.assembler.response()["choices"][0]["logprobs"]["content"][0]
    assert (said["token"], said["bytes"]) == ("token_id:3", [])
    assert [(top["token"], top["bytes"]) for top in said["top_logprobs"][:2]] == [
        ("bytes:\\xe2\\x9f", [0xE2, 0x9F]),
        ("bytes:\\xe2\\x9c", [0xE2, 0x9C]),
    ]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=3), min_size=1, max_size=8), st.data())
def test_no_alternative_is_lost_whatever_their_bytes(raws, data):
    tokens = [entry(i, -float(i), raw) for i, raw in enumerate(raws)]
    sampled = data.draw(st.sampled_from(tokens))
    top = tokens[: data.draw(st.integers(0, len(tokens)))]
    made = job("completion", logprobs=len(top))
    run(made, [Event(1, "text", "x", logprobs=[{**sampled, "top": top}]), end()])
    said = made.assembler.response()["choices"][0]["logprobs"]
    asked = {one["token"]: one["logprob"] for one in [*top, sampled]}
    assert sorted(said["top_logprobs"][0].values()) == sorted(asked.values())
    assert said["top_logprobs"][0][said["tokens"][0]] == sampled["logprob"]


def test_embeddings_in_other_encodings_are_the_same_numbers():
    import base64

    import numpy

    vector = numpy.array([0.1, -2.5e-30, 3.0, numpy.pi], dtype=numpy.float32)
    told = {}
    for encoding in ("float", "base64", "numpy"):
        made = job("embedding", encoding_format=encoding)
        made.assembler.feed(Event(1, "embedding", embedding=vector, n_prompt=3))
        told[encoding] = made.assembler.response()["data"][0]["embedding"]
    assert told["float"] == vector.tolist() and all(type(x) is float for x in told["float"])
    assert numpy.frombuffer(base64.b64decode(told["base64"]), dtype="<f4").tolist() == vector.tolist()
    assert told["numpy"].dtype == numpy.float32 and told["numpy"].tolist() == vector.tolist()
    told["numpy"][0] = 1  # the caller's own
    assert vector[0] == numpy.float32(0.1)


def test_the_context_is_the_limit_when_asked():
    assert job(max_tokens=-1).requests[0]["max_tokens"] == 2**31 - 1
    assert job("completion", max_tokens=-1).requests[0]["max_tokens"] == 2**31 - 1
    assert job("generate", max_tokens=-1).requests[0]["max_tokens"] == 2**31 - 1


def test_embeddings_are_the_remotes():
    made = job("embedding", input=["one", "two"])
    assert made.requests == [
        {"task": "embed", "prompt": [("one", False)]},
        {"task": "embed", "prompt": [("two", False)]},
    ]
    for index in (1, 0):
        assert made.assembler.feed(Event(1, "embedding", embedding=[0.5, float(index)], n_prompt=3), index) is not None
    reply = made.assembler.response()
    assert reply == {
        "object": "list",
        "model": "M",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.5, 1.0]},
        ],
    }
    assert list(reply) == ["object", "data", "model", "usage"]
    with pytest.raises(ValidationError, match="gives no embeddings; what it can do: generate"):
        job("embedding", Target("m", {**INFO, "tasks": ["generate"]}, ChatTemplate(None)))


def test_generate_is_one_user_message():
    made = job("generate", prompt="Say hi", max_tokens=7)
    assert made.requests[0]["max_tokens"] == 7 and made.requests[0]["prompt"][1] == ("Say hi", False)
    run(made, [Event(1, "text", "Hi"), end()])
    reply = sdk.GenerateResponse.model_validate(made.assembler.generate_response())
    assert (reply.content, reply.model, reply.processing_time_ms) == ("Hi", "M", 813)
    assert datetime.fromisoformat(reply.created_at) == datetime.fromtimestamp(1700000000)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_native_request_has_every_field():
    made = job(
        temperature=0,
        top_p=0,
        top_k=-5,
        min_p=0.1,
        typical_p=0.9,
        repetition_penalty=1.1,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        seed=7,
        logit_bias={"3": -100},
        max_tokens=9,
        stop=["\n"],
        content_filter=["Bad Word"],
        ignore_eos=True,
        stop_token_ids=[5],
        include_stop_str_in_output=True,
        min_tokens=2,
        truncate_prompt_tokens=100,
        truncation_side="right",
        repeat_last_n=64,
        dry_multiplier=0.8,
        dry_base=1.5,
        dry_allowed_length=3,
        dry_penalty_last_n=32,
        dry_sequence_breakers=["\n"],
        dynatemp_range=0.5,
        dynatemp_exponent=2,
        top_n_sigma=1,
        xtc_probability=0.5,
        xtc_threshold=0.2,
        mirostat=2,
        mirostat_tau=4,
        mirostat_eta=0.2,
        allowed_token_ids=[1, 2],
        bad_words=["no"],
    )
    assert made.requests == [
        {
            "task": "generate",
            "max_tokens": 9,
            "min_tokens": 2,
            "keep_tokens": 100,
            "keep_first": True,
            "stop": ["\n"],
            "stop_token_ids": [5],
            "include_stop": True,
            "ignore_eos": True,
            "filter": ["Bad Word", "bad word", "BAD WORD", "Bad word"],
            "prompt": [("<|im_start|>user\n", True), ("hi", False), ("<|im_end|>\n<|im_start|>assistant\n", True)],
            "sampling": {
                "temperature": 0,
                "top_p": 0,
                "top_k": 0,
                "min_p": 0.1,
                "typical_p": 0.9,
                "repetition_penalty": 1.1,
                "frequency_penalty": 0.5,
                "presence_penalty": -0.5,
                "repeat_last_n": 64,
                "dry_multiplier": 0.8,
                "dry_base": 1.5,
                "dry_allowed_length": 3,
                "dry_penalty_last_n": 32,
                "dry_sequence_breakers": ["\n"],
                "dynatemp_range": 0.5,
                "dynatemp_exponent": 2,
                "top_n_sigma": 1,
                "xtc_probability": 0.5,
                "xtc_threshold": 0.2,
                "mirostat": 2,
                "mirostat_tau": 4,
                "mirostat_eta": 0.2,
                "allowed_token_ids": [1, 2],
                "bad_words": ["no"],
                "seed": 7,
                "n_logprobs": -1,
                "logprob_token_ids": [],
                "post_sampling_probs": False,
                "logit_bias": [(3, -100.0)],
            },
        }
    ]
    assert made.assembler.seed == 7 and job().assembler.seed == 42
    assert job(seed=-2).requests[0]["sampling"]["seed"] == 2**64 - 2


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("seed", [-1, None, -1.0])
def test_minus_one_means_a_seed_of_the_requests_own(kind, seed):
    made = job(kind, seed=seed)
    assert made.assembler.seed == made.requests[0]["sampling"]["seed"] == 42


def test_message_forms_reach_the_template_as_it_expects_them():
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}:"
        "{{ m.tool_calls[0].function.arguments.x if m.tool_calls }};{% endfor %}"
    )
    made = job(
        target=Target("m", INFO, ChatTemplate(source)),
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": "v"}'}}],
            },
            {"role": "tool", "content": "r", "tool_call_id": "1"},
        ],
    )
    assert "".join(part for part, _ in made.requests[0]["prompt"]) == "system:a\nb:;assistant::v;tool:r:;"


def test_token_ids_and_sizes_are_checked_against_the_model():
    with pytest.raises(ValidationError, match="1000") as caught:
        job(logit_bias={"1000": 1})
    assert caught.value.param == "logit_bias"
    with pytest.raises(ContextLengthError) as overflow:
        job("completion", prompt="x" * (4096 * 512 + 1))
    assert overflow.value.details["n_ctx"] == 4096 and overflow.value.param == "prompt"


# --- filters ----------------------------------------------------------------------------------------------------------


def test_a_predicate_ends_the_stream_before_the_text_that_meets_it():
    made = job(content_filter=lambda so_far: "secret" in so_far)
    assert made.assembler.watches and made.requests[0]["filter"] == []
    chunks = run(
        made, [Event(1, "text", "the sec"), Event(1, "text", "ret", n_generated=2), Event(1, "text", " is"), end()]
    )
    assert text(chunks) == "the sec" == made.assembler.response()["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "content_filter"}
    assert made.assembler.to_cancel == [0] and made.assembler.done


def test_a_predicate_met_by_the_last_text_cancels_nothing():
    made = job(content_filter=lambda so_far: "secret" in so_far)
    chunks = run(made, [Event(1, "text", "sec"), end("stop", "ret")])
    assert text(chunks) == "sec" and chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert made.assembler.to_cancel == []


def test_filters_of_engine_and_request_both_count():
    def no(so_far):
        return False

    assert split_filters(["a"], no) == (["a", "A"], [no])
    assert split_filters(None, None) == ([], [])
    target = Target("m", INFO, ChatTemplate(None), content_filter=["x"])
    assert job(target=target, content_filter=["y"]).requests[0]["filter"] == ["x", "X", "y", "Y"]


def test_an_exception_in_a_predicate_reaches_the_caller():
    def broken(so_far):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(job(content_filter=broken), [Event(1, "text", "x")])


# --- several choices --------------------------------------------------------------------------------------------------


def test_each_choice_has_its_own_reasoning_and_stop():
    made = job(n=2, reasoning_format="deepseek", stop=["END"], seed=5)
    assert [request["sampling"]["seed"] for request in made.requests] == [5, 6]
    chunks = made.assembler.start()
    for index, said in enumerate(("<think>a</think>one END two", "<think>b</think>three")):
        chunks += feed(made.assembler, [Event(1, "text", said, **COUNTS), end()], index)
    first, second = made.assembler.response()["choices"]
    assert first["message"] == {"role": "assistant", "content": "one ", "reasoning_content": "a"}
    assert second["message"] == {"role": "assistant", "content": "three", "reasoning_content": "b"}
    assert (first["stop_reason"], "stop_reason" in second) == ("END", False)
    joined = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            joined[choice["index"]] += choice["delta"].get("content", "")
    assert joined == ["one ", "three"]
    assert made.assembler.usage["prompt_tokens"] == COUNTS["n_prompt"]


def test_what_ended_an_answer_is_told_in_its_last_chunk():
    for fields, expected in (({"stop": "x"}, "x"), ({"stop_token": 7}, 7)):
        made = job()
        chunks = run(made, [end(**fields)])
        assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": expected}]
        assert made.assembler.response()["choices"][0]["stop_reason"] == expected


# --- thoughts ---------------------------------------------------------------------------------------------------------

THINKS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.mark.parametrize(
    ("source", "tool_format", "thought"),
    [
        (THINKS, None, None),
        (THINKS + "{# <think> #}", None, {"opening": "<think>", "closing": "</think>", "answer": "", "opened": False}),
        (THINKS + "<think>\n", None, {"opening": "<think>", "closing": "</think>", "answer": "", "opened": True}),
        (
            THINKS,
            "harmony",
            {
                "opening": "<|channel|>analysis<|message|>",
                "closing": "<|end|>",
                "answer": "<|start|>assistant<|channel|>final<|message|>",
                "opened": False,
            },
        ),
    ],
)
def test_what_ends_a_thought_with_a_budget(source, tool_format, thought):
    target = Target("default", INFO, ChatTemplate(source, tool_format=tool_format), compile=lambda constraint: None)
    made = job(target=target, thinking_token_budget=7)
    assert made.requests[0].get("thought") == (thought and {**thought, "max_tokens": 7})
    assert made.assembler.ignored_fields == ([] if thought else ["thinking_token_budget"])
    for unlimited in ({}, {"thinking_token_budget": -1}):
        assert "thought" not in job(target=target, **unlimited).requests[0]
