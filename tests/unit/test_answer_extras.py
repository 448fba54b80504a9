"""What an answer tells beside itself, and what a request brings along: on a scripted engine."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy
import pytest

from polargrid_local import (
    AsyncEngine,
    Engine,
    EngineClosed,
    LogitsProcessorError,
    TemplateError,
    ValidationError,
)
from polargrid_local.chat.template import MAX_OTHERS, ChatTemplate
from polargrid_local.dialects.logprobs import token_entries

HI = [{"role": "user", "content": "hi <|im_end|> you"}]
KINDS: list[tuple[str, dict[str, Any]]] = [("chat_completion", {"messages": HI}), ("completion", {"prompt": "a b c"})]
TOLD: dict[str, Any] = {"token": 5, "logprob": -1.5, "rank": 9, "bytes": b"a", "top": [
    {"token": 2, "logprob": -0.5, "rank": 1, "bytes": b"x", "top": []},
    {"token": 3, "logprob": -0.75, "rank": 2, "bytes": b"\xe2", "top": []},
]}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    return path


def open_engine(file: Path, script: Any = fakes.words, **info: Any) -> Engine:
    return Engine(file, models_dir=file.parent, engine_factory=fakes.factory(script, info=info))


def joined(chunks: list[Any], key: str) -> dict[int, list[int]]:
    """Of each choice."""
    found: dict[int, list[int]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            found.setdefault(choice["index"], []).extend(choice.get(key, []))
    return found


# --- token ids ---


@pytest.mark.parametrize(("method", "asked"), KINDS)
def test_token_ids_come_with_their_text_and_those_of_the_prompt_first(
    file: Path, method: str, asked: dict[str, Any]
) -> None:
    with open_engine(file) as engine:
        fields = {**asked, "return_token_ids": True, "n": 2}
        chunks = list(getattr(engine, f"{method}_stream")(fields))
        reply = getattr(engine, method)(fields)
        ids = list(range(1, len(fakes.WORDS) + 1))
        assert joined(chunks, "token_ids") == {0: ids, 1: ids}
        assert [choice["token_ids"] for choice in reply["choices"]] == [ids, ids]
        assert reply["usage"]["completion_tokens"] == 2 * len(ids)
        if method == "chat_completion":
            assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
            assert [chunk for chunk in chunks if "prompt_token_ids" in chunk] == chunks[:1]
            assert (
                chunks[0]["prompt_token_ids"]
                == reply["prompt_token_ids"]
                == list(range(reply["usage"]["prompt_tokens"]))
            )
        else:
            firsts = [next(chunk for chunk in chunks if chunk["choices"][0]["index"] == index) for index in (0, 1)]
            assert [chunk for chunk in chunks if "prompt_token_ids" in chunk["choices"][0]] == firsts
            assert all(choice["prompt_token_ids"] == [0, 1, 2] for choice in reply["choices"])
        plain = getattr(engine, method)(asked)
        assert "token_ids" not in plain["choices"][0] and "prompt_token_ids" not in {**plain, **plain["choices"][0]}


@pytest.mark.parametrize(("method", "asked"), KINDS)
async def test_a_tasks_answer_tells_the_same(file: Path, method: str, asked: dict[str, Any]) -> None:
    fields = {**asked, "return_token_ids": True, "timings_per_token": True, "seed": 1}
    with open_engine(file) as engine:
        reply = getattr(engine, method)(fields)
        chunks = list(getattr(engine, f"{method}_stream")(fields))
    async with AsyncEngine(file, models_dir=file.parent, engine_factory=fakes.factory()) as other:
        theirs = await getattr(other, method)(fields)
        streamed = [chunk async for chunk in getattr(other, f"{method}_stream")(fields)]

    def same(one: Any, two: Any) -> bool:
        return {**one, "id": "", "created": 0} == {**two, "id": "", "created": 0}

    assert same(reply, theirs)
    assert len(chunks) == len(streamed) and all(map(same, chunks, streamed))


def test_the_tokens_of_text_that_a_filter_holds_back_are_not_told(file: Path) -> None:
    with open_engine(file) as engine:
        filtered = {"prompt": "a", "return_token_ids": True, "content_filter": lambda text: "w" in text}
        reply = engine.completion(filtered)
    assert (reply["choices"][0]["text"], reply["choices"][0]["token_ids"]) == ("Hello,", [1, 2])


def test_tokens_without_text_of_their_own_wait_for_the_next_chunk(file: Path) -> None:
    def held(request: dict[str, Any]) -> Iterator[Any]:
        yield {"kind": "text", "text": "", "tokens": [1, 2], "prompt_tokens": [7], "n_generated": 2}
        yield {"kind": "text", "text": "a", "tokens": [3], "n_generated": 3}
        yield {"kind": "finished", "reason": "stop", "tokens": [4], "n_generated": 4}

    with open_engine(file, held) as engine:
        chunks = list(engine.completion_stream(prompt="a", return_token_ids=True))
    told = [(chunk["choices"][0]["text"], chunk["choices"][0]["token_ids"]) for chunk in chunks]
    assert told == [("a", [1, 2, 3]), ("", [4])]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [7]


def test_logprobs_name_tokens_by_their_numbers_where_asked_for(file: Path) -> None:
    with open_engine(file) as engine:
        chat = engine.chat_completion(messages=HI, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True)
        entries = chat["choices"][0]["logprobs"]["content"]
        assert {entry["token"] for entry in entries} == {"token_id:7"}
        assert bytes(b for entry in entries for b in entry["bytes"]).decode() == "".join(fakes.WORDS)
        assert [top["token"] for top in entries[0]["top_logprobs"]] == ["token_id:0", "token_id:1"]
        text: Any = engine.completion(prompt="a", logprobs=1, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
        assert set(text["tokens"]) == {"token_id:7"}
        assert text["top_logprobs"][0].keys() == {"token_id:0", "token_id:7"}


# --- the prompt's logprobs ---


def test_the_prompts_logprobs_have_vllms_shape(file: Path) -> None:
    def says(request: dict[str, Any]) -> Iterator[Any]:
        assert request["n_prompt_logprobs"] == 2
        without_rank = {key: value for key, value in TOLD.items() if key != "rank"}
        yield {"kind": "text", "text": "a", "n_generated": 1, "prompt_logprobs": [TOLD, TOLD, without_rank]}

    with open_engine(file, says) as engine:
        for asked in (1, 2):
            fields: Any = {"prompt_logprobs": asked, **({"echo": True, "logprobs": 2} if asked == 1 else {})}
            choice: Any = engine.completion(prompt="abc", **fields)["choices"][0]
            first, second, third = choice["prompt_logprobs"]
            assert first is None
            assert second[5] == {"logprob": -1.5, "rank": 9, "decoded_token": "a"}
            assert second[2] == {"logprob": -0.5, "rank": 1, "decoded_token": "x"}
            assert second.keys() == ({5, 2} if asked == 1 else {5, 2, 3})
            assert third[5]["rank"] is None
            if asked == 1:  # the echo has as many alternatives as it asked for, and the token itself
                assert choice["logprobs"]["top_logprobs"][1] == {"x": -0.5, "bytes:\\xe2": -0.75, "a": -1.5}
        (chunk, *others) = list(engine.chat_completion_stream(messages=HI, prompt_logprobs=2))
        assert chunk["prompt_logprobs"] == engine.chat_completion(messages=HI, prompt_logprobs=2)["prompt_logprobs"]
        assert not any("prompt_logprobs" in other for other in others)


# --- timings and progress ---


def reads_long(request: dict[str, Any]) -> Iterator[Any]:
    yield {"kind": "progress", "progress": 0.25, "n_prompt": 8, "n_cached": 1, "queue_ms": 0.5}
    yield {"kind": "progress", "progress": 0.75, "n_prompt": 8, "n_cached": 1, "total_ms": 3.5}
    yield {"kind": "text", "text": "a", "n_prompt": 8, "n_cached": 1, "n_generated": 1, "prefill_ms": 3.0}


@pytest.mark.parametrize(("method", "asked"), KINDS)
def test_progress_is_told_where_asked_for(file: Path, method: str, asked: dict[str, Any]) -> None:
    with open_engine(file, reads_long) as engine:
        stream = getattr(engine, f"{method}_stream")
        chunks = list(stream(asked, return_progress=True))
        told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        assert told == [
            {"total": 8, "cache": 1, "processed": 1, "time_ms": 0.5},
            {"total": 8, "cache": 1, "processed": 2},
            {"total": 8, "cache": 1, "processed": 6, "time_ms": 3.5},
            {"total": 8, "cache": 1, "processed": 8, "time_ms": 3.0},
        ]
        places = [i for i, chunk in enumerate(chunks) if "prompt_progress" in chunk]
        assert places == list(range(places[0], places[0] + 4))  # before the first text, and a chat's role before it
        assert places[0] == (method == "chat_completion")
        assert not any("prompt_progress" in chunk for chunk in stream(asked))
        assert "prompt_progress" not in getattr(engine, method)(asked, return_progress=True)


@pytest.mark.parametrize(("method", "asked"), KINDS)
def test_progress_of_a_prompt_read_at_once_is_its_ends(file: Path, method: str, asked: dict[str, Any]) -> None:
    with open_engine(file) as engine:
        chunks = list(getattr(engine, f"{method}_stream")(asked, return_progress=True, n=2))
        for index in (0, 1):
            told = [
                chunk["prompt_progress"]["processed"] for chunk in chunks
                if "prompt_progress" in chunk and chunk["choices"][0]["index"] == index
            ]  # fmt: skip
            assert told == [1, getattr(engine, method)(asked)["usage"]["prompt_tokens"]]


@pytest.mark.parametrize("more", [{}, {"return_progress": True}, {"return_token_ids": True}, {"n": 2}])
@pytest.mark.parametrize(("method", "asked"), KINDS)
def test_every_chunk_has_the_usage_so_far_where_asked_for(
    file: Path, method: str, asked: dict[str, Any], more: dict[str, Any]
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    with open_engine(file) as engine:
        chunks = list(getattr(engine, f"{method}_stream")(asked, stream_options=options, **more))
        whole = getattr(engine, method)(asked, **more)["usage"]
    usages = [chunk["usage"] for chunk in chunks]
    n_prompt = whole["prompt_tokens"]
    assert {usage["prompt_tokens"] for usage in usages} == {n_prompt}
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert usages[-1] == whole and not chunks[-1]["choices"]
    if method == "chat_completion":
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
        assert usages[0] == {"prompt_tokens": n_prompt, "completion_tokens": 0, "total_tokens": n_prompt}


def test_no_usage_is_told_where_it_is_not_to_be(file: Path) -> None:
    options: Any = {"include_usage": False, "continuous_usage_stats": True}
    with open_engine(file) as engine:
        assert not any("usage" in chunk for chunk in engine.completion_stream(prompt="a", stream_options=options))


def test_logprobs_have_the_numbers_of_their_tokens_beside_token_ids(file: Path) -> None:
    with open_engine(file) as engine:
        told: Any = engine.completion(prompt="a", logprobs=1, return_token_ids=True)["choices"][0]["logprobs"]
        assert set(told["token_ids"]) == {7} and told["top_token_ids"][0] == [0, 7]
        assert [len(ids) for ids in told["top_token_ids"]] == [len(top) for top in told["top_logprobs"]]
        plain: Any = engine.completion(prompt="a", logprobs=1)["choices"][0]["logprobs"]
        assert plain == {key: value for key, value in told.items() if not key.endswith("token_ids")}
    entries = token_entries(told)
    assert [(entry["id"], [top["id"] for top in entry["top_logprobs"]]) for entry in entries[:1]] == [(7, [0, 7])]
    assert "id" not in token_entries(plain)[0]


# --- what the model said before ---


@pytest.mark.parametrize("script", [fakes.words, lambda request: iter(["<think>", "a", "</think>", "b"])])
def test_an_echo_is_what_the_model_has_said_last_and_goes_on(file: Path, script: Any) -> None:
    with open_engine(file, script) as engine:
        for content in ("So far ", [{"type": "text", "text": "So "}, {"type": "text", "text": "far "}]):
            messages: Any = [*HI, {"role": "assistant", "content": content}]
            asked: dict[str, Any] = {"messages": messages, "reasoning_format": "deepseek"}
            answer: Any = engine.chat_completion(asked, echo=True)["choices"][0]["message"]["content"]
            assert answer == "So far " + engine.chat_completion(asked)["choices"][0]["message"]["content"]
            pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in
                      engine.chat_completion_stream(asked, echo=True)]  # fmt: skip
            assert pieces[1] == "So far " and "".join(pieces) == answer
        plain = engine.chat_completion(messages=HI)["choices"]
        assert engine.chat_completion(messages=HI, echo=True)["choices"] == plain  # the last words are another's


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max", "default"])
def test_an_effort_of_a_model_without_levels_is_told_to_do_nothing(
    file: Path, effort: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "polargrid_local")
    with open_engine(file) as engine:
        reply: Any = engine.chat_completion(messages=HI, reasoning_effort=effort)
        assert reply["pg_metadata"]["ignored_fields"] == ["reasoning_effort"]
        assert "nothing was made of reasoning_effort" in caplog.text
        stream = engine.chat_completion_stream(messages=HI, reasoning_effort=effort)
        assert stream.ignored_fields == ["reasoning_effort"]
        list(stream)
        known = OWN + "{{ reasoning_effort }}"
        shown: Any = engine.chat_completion(messages=HI, reasoning_effort=effort, chat_template=known)
        assert "ignored_fields" not in shown["pg_metadata"]
        assert engine.apply_template(messages=HI, reasoning_effort=effort, chat_template=known).endswith(effort)
        assert "ignored_fields" not in engine.chat_completion(messages=HI, reasoning_effort="none")["pg_metadata"]
        with pytest.raises(ValidationError, match="reasoning_effort: must be one of none, minimal, .*; got 'much'"):
            engine.chat_completion(messages=HI, reasoning_effort="much")


# --- timings ---


@pytest.mark.parametrize(("method", "asked"), KINDS)
def test_timings_are_llama_servers_where_asked_for(file: Path, method: str, asked: dict[str, Any]) -> None:
    with open_engine(file) as engine:
        chunks = list(getattr(engine, f"{method}_stream")(asked, timings_per_token=True))
        timed = [chunk["timings"] for chunk in chunks if "timings" in chunk]
        assert [timings["predicted_n"] for timings in timed] == [*range(1, len(fakes.WORDS) + 1), len(fakes.WORDS)]
        reply = getattr(engine, method)(asked, timings_per_token=True)
        assert reply["timings"] == timed[-1]
        assert reply["timings"]["prompt_ms"] == 2.0 and reply["timings"]["predicted_ms"] == 11.0
        assert {"prompt_per_token_ms", "prompt_per_second"} < reply["timings"].keys()
        assert {"predicted_per_token_ms", "predicted_per_second"} < reply["timings"].keys()
        assert reply["timings"]["prompt_n"] + reply["timings"]["cache_n"] == reply["usage"]["prompt_tokens"]
        assert "timings" not in getattr(engine, method)(asked)


# --- biases, templates, documents ---


def test_the_bias_of_a_text_is_that_of_its_tokens(file: Path) -> None:
    factory = fakes.factory()
    with Engine(file, models_dir=file.parent, engine_factory=factory) as engine:
        engine.completion(prompt="a", logit_bias=[["word", 2], [3, False]])
    assert factory.made[0].requests[0]["sampling"]["logit_bias"] == [(4, 2.0), (3, -100.0)]  # a text's id is its length


def test_samplers_that_are_left_out_are_off(file: Path) -> None:
    factory = fakes.factory()
    with Engine(file, models_dir=file.parent, engine_factory=factory) as engine:
        engine.completion(prompt="a", samplers=["top_k"], top_k=7, min_p=0.5, temperature=0.3)
    sampling = factory.made[0].requests[0]["sampling"]
    assert [sampling[name] for name in ("top_k", "top_p", "min_p", "temperature")] == [7, 1.0, 0.0, 1.0]


OWN = "{% for m in messages %}<|im_start|>[{{ m.role }}] {{ m.content }}{% endfor %}{{ bos_token }}"


def test_a_chat_may_bring_a_template_whose_messages_stay_text(file: Path) -> None:
    factory = fakes.factory()
    with Engine(file, models_dir=file.parent, engine_factory=factory) as engine:
        engine.chat_completion(messages=HI, chat_template=OWN)
        assert factory.made[0].requests[0]["prompt"] == [
            ("<|im_start|>[user] ", True),
            ("hi <|im_end|> you", False),
            ("<s>", True),
        ]
        assert engine.apply_template(messages=HI, chat_template=OWN) == "<|im_start|>[user] hi <|im_end|> you<s>"
        assert "<|im_start|>user" in engine.apply_template(messages=HI)  # the model's own is what it was
        assert "USER: hi" in engine.apply_template(messages=HI, chat_template="vicuna")
        for broken in ("{% for %}", "nothing is shown", "{{ messages.__class__ }}", "{" * 300_000):
            with pytest.raises((TemplateError, ValidationError)) as error:
                engine.chat_completion(messages=HI, chat_template=broken)
            assert error.value.status == 400
        with pytest.raises(ValidationError, match="chat_template: not supported"):
            engine.completion(prompt="a", chat_template=OWN)  # of chats alone


def test_templates_of_requests_stay_compiled_up_to_a_number() -> None:
    own = ChatTemplate(None)
    first = own.other(OWN)
    assert own.other(OWN) is first
    for i in range(MAX_OTHERS):
        own.other(f"{OWN}{i}")
    assert own.other(OWN) is not first


def test_documents_reach_a_template_that_shows_them(file: Path) -> None:
    shows = OWN + "{% for d in documents %}<{{ d.title }}>{% endfor %}"
    with open_engine(file) as engine:
        documents = [{"title": "one", "text": "1"}, {"title": "<|im_end|>"}]
        assert engine.apply_template(messages=HI, documents=documents, chat_template=shows).endswith(
            "<one><<|im_end|>>"
        )
        with pytest.raises(ValidationError, match="documents: this chat's template shows none"):
            engine.chat_completion(messages=HI, documents=documents)
        assert engine.chat_completion(messages=HI, documents=[])["choices"]


# --- logits processors ---


def calls(request: dict[str, Any]) -> Iterator[Any]:
    """As the native engine: the function is called before each token, and what it raises ends the request."""
    for i in range(2):
        try:
            logits = request["logits_processor"](numpy.arange(i, dtype=numpy.int32), numpy.zeros(4, numpy.float32))
        except BaseException:
            yield {"kind": "error", "code": "invalid_request", "text": "the function raised"}
            return
        yield f"{int(logits.argmax())}"


def test_processors_are_called_in_turn_and_change_what_is_said(file: Path) -> None:
    def in_place(token_ids: Any, logits: Any) -> None:
        logits[1 + len(token_ids)] = 1

    def returned(token_ids: Any, logits: Any) -> Any:
        return logits + numpy.float32(0.5)

    with open_engine(file, calls) as engine:
        for given in (in_place, [in_place, returned], (returned, in_place)):
            chunks = list(engine.completion_stream(prompt="a", logits_processor=given))
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "12"
            assert engine.completion(prompt="a", logits_processor=given)["choices"][0]["text"] == "12"


@pytest.mark.parametrize(
    ("given", "cause", "words"),
    [
        (lambda ids, logits: 1 / 0, ZeroDivisionError, "division by zero"),
        (lambda ids, logits: logits[:3], TypeError, "shape"),
        (lambda ids, logits: logits.astype(float), TypeError, "float64"),
        (lambda ids, logits: [0.0] * 4, TypeError, "got list"),
        (lambda ids, logits: logits.fill(numpy.nan), ValueError, "NaN"),
        (lambda ids, logits: logits.fill(-numpy.inf), ValueError, "rules out every token"),
        (lambda ids, logits: logits.fill(numpy.inf), ValueError, "plus infinity"),
        (lambda ids: None, TypeError, "argument"),
        (lambda ids, logits: (_ for _ in ()).throw(SystemExit(3)), SystemExit, "3"),
    ],
)
def test_what_goes_wrong_in_a_processor_ends_its_answer_with_the_cause(
    file: Path, given: Any, cause: type[BaseException], words: str
) -> None:
    with open_engine(file, calls) as engine:
        with pytest.raises(LogitsProcessorError, match=words) as error:
            engine.completion(prompt="a", logits_processor=given)
        assert isinstance(error.value.__cause__, cause)
        assert error.value.message.startswith(f"logits_processor: {cause.__name__}: ")
        with pytest.raises(LogitsProcessorError):
            list(engine.chat_completion_stream(messages=HI, logits_processor=given))
        fine = engine.completion(prompt="a", logits_processor=lambda ids, logits: None)
        assert fine["choices"][0]["text"] == "00"


def test_a_processor_cannot_wait_for_the_engine_that_waits_for_it(file: Path) -> None:
    with open_engine(file, calls) as engine:
        waiting = engine.completion_stream(prompt="a", logits_processor=lambda ids, logits: None)
        for ask in (
            lambda: engine.completion(prompt="b"),
            lambda: engine.chat_completion_stream(messages=HI),
            lambda: list(waiting),
        ):
            with pytest.raises(LogitsProcessorError, match="waits for it") as error:
                engine.completion(prompt="a", logits_processor=lambda ids, logits: ask() and None)
            assert isinstance(error.value.__cause__, ValidationError)
        assert engine.completion(prompt="a", logits_processor=lambda ids, logits: None)["choices"][0]["text"] == "00"


def test_an_engine_that_is_closed_inside_a_processor_ends(file: Path) -> None:
    with open_engine(file, calls) as engine:
        stream = engine.completion_stream(prompt="a", logits_processor=lambda ids, logits: engine.close())
        with pytest.raises(EngineClosed):
            list(stream)


def test_an_engine_that_is_collected_inside_a_processor_ends(file: Path) -> None:
    factory = fakes.factory(calls)
    held: list[Any] = [Engine(file, models_dir=file.parent, engine_factory=factory)]
    all_held = threading.Event()

    def drop(token_ids: Any, logits: Any) -> None:
        all_held.wait(60)
        held.clear()
        gc.collect()

    held.append(held[0].completion_stream(prompt="a", logits_processor=drop))
    all_held.set()
    native = factory.made[0]
    native._thread.join(60)
    assert native.closed and not native._thread.is_alive()
