"""The facade over a scripted engine: both engines agree, every way of stopping stops, no reader can hang or hurt
another."""

import asyncio
import gc
import itertools
import threading
import time
import weakref
from datetime import datetime

import fakes
import polargrid.types as sdk
import pytest
from fakes import Error, endless, factory
from hypothesis import given, settings
from hypothesis import strategies as st

from polargrid_local import (
    AsyncEngine,
    ContextLengthError,
    Engine,
    EngineClosed,
    EngineCrashed,
    InvalidModelError,
    ModelFileChanged,
    NotFoundError,
    RateLimitError,
    ServerError,
    TemplateError,
    ValidationError,
    inspect_model,
    sentences,
    text_of,
)
from polargrid_local.api.prompts import LONGEST_PIECE_BYTES
from polargrid_local.machine import gpu_status_reply
from polargrid_local.streams import BulkCall

HI = [{"role": "user", "content": "hi"}]
WHOLE = "".join(fakes.WORDS)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "scripted.gguf"
    file.write_bytes(b"GGUF")
    return file


@pytest.fixture
def open_engine(path, tmp_path):
    """open_engine(script, **engine options) -> Engine; its native engine is `native(engine)`."""
    opened = []

    def make(script=fakes.words, *, native=None, **options):
        engine = Engine(path, models_dir=tmp_path, engine_factory=factory(script, **(native or {})), **options)
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def engine(open_engine):
    return open_engine()


def native(engine):
    return engine._models._factory.made[-1]


def until(condition):
    """Waits for something another thread is about to do; the test run's own timeout is the limit."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def answering(engine):
    stats = native(engine).stats()
    return stats["n_running"] + stats["n_waiting"]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_plain_answer(engine):
    stream = engine.chat_completion_stream(messages=HI)
    assert stream.text == "" and stream.finish_reason is None
    chunks = list(stream)
    assert chunks[0]["choices"] == [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-1]] == list(fakes.WORDS)
    assert stream.text == WHOLE and stream.finish_reason == "stop"
    assert stream.usage == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}
    assert stream.timings["total_ms"] == 14.0 and stream.timings["cached_tokens"] == 1
    assert next(stream, None) is None
    plain = engine.chat_completion(messages=HI)
    assert plain["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": WHOLE},
        "finish_reason": "stop",
    }
    assert plain["usage"] == stream.usage and plain["id"] != stream.id == chunks[0]["id"]
    for chunk in chunks:
        sdk.ChatCompletionChunk.model_validate(chunk)
    sdk.ChatCompletionResponse.model_validate(plain)


async def test_both_engines_give_the_same(engine, path, tmp_path):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory()) as other:

        def same(ours, theirs):
            drop = {"id", "created", "created_at", "pg_metadata", "timestamp"}
            assert {k: v for k, v in ours.items() if k not in drop} == {
                k: v for k, v in theirs.items() if k not in drop
            }

        for ours, theirs in zip(
            engine.chat_completion_stream(messages=HI, stop=["x"]),
            [chunk async for chunk in other.chat_completion_stream(messages=HI, stop=["x"])],
        ):
            same(ours, theirs)
        for ours, theirs in zip(
            engine.completion_stream(prompt="a"), [chunk async for chunk in other.completion_stream(prompt="a")]
        ):
            same(ours, theirs)
        same(engine.chat_completion(messages=HI), await other.chat_completion(messages=HI))
        same(engine.completion(prompt=["a", "b"]), await other.completion(prompt=["a", "b"]))
        same(engine.generate("hi"), await other.generate("hi"))
        same(engine.embeddings(input=["a", "bc"]), await other.embeddings(input=["a", "bc"]))
        listed, listed_there = engine.list_models(), await other.list_models()
        for row in (*listed["data"], *listed_there["data"]):
            assert row.pop("created") > 0  # when each engine loaded it: one may have done so a second later
        same(listed, listed_there)
        same(engine.get_model("scripted"), await other.get_model("scripted"))
        same(engine.get_model_status(), await other.get_model_status())
        same(engine.health(), await other.health())
        same(engine.get_gpu_status(), await other.get_gpu_status())
        same(engine.get_gpu_memory(), await other.get_gpu_memory())
        assert engine.tokenize("abc") == await other.tokenize("abc") == [3]
        assert engine.tokenize(messages=HI) == await other.tokenize(messages=HI)
        assert engine.stats().keys() == other.stats().keys() and engine.info() == other.info()
        same(engine.purge_gpu(force=True), await other.purge_gpu(force=True))


def test_replies_are_what_the_sdk_reads(engine):
    sdk.CompletionResponse.model_validate(engine.completion(prompt=["a", "b"]))
    sdk.GenerateResponse.model_validate(engine.generate({"prompt": "a", "maxTokens": 3}))
    sdk.GenerateResponse.model_validate(
        engine.generate(sdk.GenerateRequest(model="scripted", prompt="a", request_id="r"))
    )
    embedded = engine.embeddings(sdk.EmbeddingRequest(model="scripted", input="a"))
    sdk.EmbeddingResponse.model_validate(
        {**embedded, "usage": {**embedded["usage"], "completion_tokens": 0}}
    )  # as its client does
    sdk.ListModelsResponse.model_validate(engine.list_models())
    sdk.ModelInfo.model_validate(engine.get_model("scripted"))
    sdk.ModelStatusResponse.model_validate(engine.get_model_status())
    sdk.HealthResponse.model_validate(engine.health())
    sdk.GPUStatusResponse.model_validate(engine.get_gpu_status())
    sdk.GPUMemoryResponse.model_validate(engine.get_gpu_memory())
    sdk.LoadModelResponse.model_validate(engine.load_model("scripted"))
    sdk.GPUPurgeResponse.model_validate(engine.purge_gpu(sdk.GPUPurgeRequest(force=True)))
    sdk.LoadModelResponse.model_validate(
        engine.load_model(sdk.LoadModelRequest(model_name="scripted", force_reload=True))
    )
    sdk.UnloadModelResponse.model_validate(engine.unload_model(sdk.UnloadModelRequest(model_name="scripted")))
    sdk.UnloadAllModelsResponse.model_validate(engine.unload_all_models())


def test_gpus_are_reported_as_the_sdk_reads_them(open_engine):
    device = {"name": "CUDA0", "description": "A GPU", "gpu": True, "memory_bytes": 8 << 30, "free_bytes": 6 << 30}
    engine = open_engine(native={"info": {"devices": [device, {"name": "CPU", "gpu": False}]}})
    (gpu,) = sdk.GPUStatusResponse.model_validate(engine.get_gpu_status()).gpus
    assert (gpu.name, gpu.memory.total_mb, gpu.memory.used_gb, gpu.memory.percent_used) == ("A GPU", 8192, 2.0, 25.0)
    (memory,) = sdk.GPUMemoryResponse.model_validate(engine.get_gpu_memory()).memory
    assert (memory.free_gb, memory.percent_free) == (6.0, 75.0)


def test_info_follows_a_model_that_was_loaded_again(open_engine):
    engine = open_engine()
    before = engine.info()
    [native] = engine._models._factory.made
    native._info |= {"placement": "all layers on the CPU: CUDA0 was lost"}
    assert engine.info() == before  # nothing was said yet, and nothing is asked anew
    native.loading.push(fakes.Event(0, "loaded"))
    assert engine.info()["placement"] == "all layers on the CPU: CUDA0 was lost"


@pytest.mark.parametrize(("driver_says", "held", "used"), [(8, 3, 3), (6, 1, 2), (6, 3, 3), (8, 99, 8)])
def test_what_models_hold_of_a_gpu_is_in_use_whatever_the_driver_says(driver_says, held, used):
    """All in GiB of 8."""
    device = {"name": "Vulkan0", "description": "", "gpu": True, "memory_bytes": 8 << 30}
    device["free_bytes"] = driver_says << 30
    reply = gpu_status_reply([device], {7: {"Vulkan0": held << 30}}, datetime.now())
    assert reply["gpus"][0]["memory"]["used_gb"] == used and reply["gpus"][0]["memory"]["free_gb"] == 8 - used
    assert reply["processes"] == [{"pid": 7, "name": "polargrid-local", "memory_mb": held << 10}]


def test_a_stream_says_how_much_of_a_long_prompt_is_read(open_engine):
    go = threading.Event()
    engine = open_engine(
        lambda request: [{"kind": "progress", "progress": 0.25, "n_prompt": 400}, lambda: go.wait(120) and None, "text"]
    )
    stream = engine.completion_stream(prompt="x")
    assert stream.prefill is None
    reader = threading.Thread(target=lambda: next(stream))
    reader.start()
    until(lambda: stream.prefill == (100, 400))
    go.set()
    reader.join()
    assert stream.prefill is None and stream.text == "text"


def test_helpers_give_text_and_whole_sentences(open_engine):
    said = ["One", ". T", "wo? ", ' "Three!" ', "4.5 four", ".\n\nFive。", "六。", " end"]
    engine = open_engine(lambda request: said)
    assert list(text_of(engine.chat_completion_stream(messages=HI))) == said
    assert list(text_of(engine.completion_stream(prompt="x"))) == said
    assert list(sentences(engine.completion_stream(prompt="x"))) == [
        "One. ",
        "Two?  ",
        '"Three!" ',
        "4.5 four.\n\n",
        "Five。",
        "六。 ",
        "end",
    ]


@settings(deadline=None)
@given(st.lists(st.text("aB.!?…。！ \n\"')」”", max_size=6), max_size=12))
def test_sentences_lose_nothing(pieces):
    chunks = [{"choices": []}, *({"choices": [{"index": 0, "text": piece, "finish_reason": None}]} for piece in pieces)]
    cut = list(sentences(iter(chunks)))
    assert "".join(cut) == "".join(pieces)
    assert all(cut) and cut == list(
        sentences(iter([{"choices": [{"index": 0, "text": "".join(pieces), "finish_reason": None}]}]))
    )


async def test_helpers_take_async_streams(path, tmp_path):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory()) as engine:
        assert [t async for t in text_of(engine.chat_completion_stream(messages=HI))] == list(fakes.WORDS)
        assert [t async for t in sentences(engine.chat_completion_stream(messages=HI))] == [
            "Hello, wörld! ",
            "👩‍🚀 It works.",
        ]


# --- checks -----------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said_at_the_call(engine, open_engine):
    with pytest.raises(ValidationError, match="messages"):
        engine.chat_completion_stream(messages=[])
    with pytest.raises(NotFoundError, match="^Model not loaded") as missing:
        engine.chat_completion_stream(model="gpt-7", messages=HI)
    assert (missing.value.code, missing.value.param) == ("model_not_loaded", "model")
    with pytest.raises(ContextLengthError) as overflow:
        engine.chat_completion_stream(messages=[{"role": "user", "content": "word " * 5000}])
    assert overflow.value.details == {"n_prompt": 5003, "n_ctx": 4096}
    assert native(engine).requests == []
    full = open_engine(endless, max_queue=1, native={"max_running": 1})
    streams = [full.chat_completion_stream(messages=HI) for _ in range(2)]
    with pytest.raises(RateLimitError) as refused:
        full.chat_completion_stream(messages=HI)
    assert refused.value.retryable
    for stream in streams:
        stream.cancel()
    until(lambda: not answering(full))


async def test_what_is_wrong_is_said_by_start(path, tmp_path):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory()) as engine:
        stream = engine.chat_completion_stream(messages=[])
        with pytest.raises(ValidationError):
            await stream.start()
        with pytest.raises(NotFoundError):
            await anext(engine.chat_completion_stream(model="gpt-7", messages=HI))
        with pytest.raises(ContextLengthError):
            await engine.chat_completion(messages=[{"role": "user", "content": "word " * 5000}])


def test_several_prompts_are_queued_all_or_none(open_engine):
    engine = open_engine(endless, max_queue=0, native={"max_running": 2})
    with pytest.raises(RateLimitError):
        engine.completion_stream(prompt=["a", "b", "c"])
    until(lambda: not answering(engine))


def test_more_embeddings_than_the_queue_holds_are_answered_in_windows(open_engine):
    engine = open_engine(max_queue=0)
    reply = engine.embeddings(input=["x" * (n + 1) for n in range(50)])
    assert [entry["embedding"][0] for entry in reply["data"]] == [n + 1 for n in range(50)]


def test_options_are_checked_by_name(path, tmp_path):
    for option, value in [
        ("device", "tpu"),
        ("n_ctx", -1),
        ("n_threads", 513),
        ("max_streams", True),
        ("cache_type", "q2"),
        ("content_filter", [""]),
    ]:
        with pytest.raises(ValidationError) as caught:
            Engine(path, models_dir=tmp_path, engine_factory=factory(), **{option: value})
        assert caught.value.param == option
    engine = Engine(path, models_dir=tmp_path, engine_factory=factory(), lora=["a", ("b", 0.5)], n_ctx=64)
    assert native(engine).options["lora"] == [("a", 1.0), ("b", 0.5)] and native(engine).options["n_ctx"] == 64
    engine.close()


NO_NAMES = {
    "long": "a" * 300,
    "longer": "a" * 5000,
    "deep": "a/" * 3000 + "x.gguf",
    "long in a folder": "dir/" + "a" * 300,
    "half a character": "\udc80.gguf",
    "halves": "\ud800" * 300,
    "nul": "a\0b",
    "nobody's": "~nobody-here/x.gguf",
    "no URL": "file://[/x",
    "long URL": "file:///" + "a" * 5000,
    "nul in a URL": "file:///%00",
    "empty": "",
    "number": 10**5000,
    "bytes": b"x",
    "list": ["x"],
}


@pytest.mark.parametrize("kind", NO_NAMES)
def test_a_name_that_no_model_can_have_is_a_typed_error(tmp_path, kind):
    name = NO_NAMES[kind]
    with Engine(models_dir=tmp_path, engine_factory=factory()) as engine:
        for call in (
            engine.load_model,
            engine.unload_model,
            engine.get_model,
            engine.info,
            lambda name: Engine(name, models_dir=tmp_path),
            lambda name: engine.tokenize("x", model=name),
            lambda name: engine.chat_completion(messages=HI, model=name),
        ):
            with pytest.raises((ValidationError, NotFoundError)) as caught:
                call(name)
            caught.value.message.encode()
            assert len(caught.value.message) < 2000


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "\ud800", "nowhere/x.gguf"], ids=lambda v: ascii(v)[:12])
def test_inspecting_no_file_is_not_found(path):
    with pytest.raises(NotFoundError) as caught:
        inspect_model(path)
    caught.value.message.encode()


@pytest.mark.parametrize("path", [5, None, [], True])
def test_inspecting_what_is_no_path_is_refused(path):
    with pytest.raises(ValidationError, match="path: must be a path"):
        inspect_model(path)


async def test_tokenize_has_a_limit_unless_told_otherwise(engine, path, tmp_path):
    longest = fakes.INFO["n_ctx"] * LONGEST_PIECE_BYTES
    long = "x" * (longest + 1)
    messages = [{"role": "user", "content": long}]
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory()) as other:
        assert engine.tokenize(long[1:]) == await other.tokenize(long[1:]) == [longest]
        for ask, field in (({"text": long}, "text"), ({"messages": messages}, "messages")):
            for refuse in (engine.tokenize, other.tokenize):
                with pytest.raises(ContextLengthError) as caught:
                    answer = refuse(**ask)
                    await answer if asyncio.iscoroutine(answer) else None
                assert caught.value.param == field and caught.value.details["n_ctx"] == fakes.INFO["n_ctx"]
            assert engine.tokenize(**ask, unlimited=True) == await other.tokenize(**ask, unlimited=True)
    for text in ("\ud800", 5, b"x", ["x"]):
        with pytest.raises(ValidationError) as caught:
            engine.tokenize(text)
        assert caught.value.param == "text"


def test_a_chat_that_cannot_fit_is_refused_before_its_template_is_run(open_engine):
    long = "{% if messages[0].content | length > 1000 %}{{ raise_exception('rendered') }}{% endif %}"
    engine = open_engine(chat_template=long + "{% for message in messages %}{{ message.content }}{% endfor %}")
    half = "x" * (fakes.INFO["n_ctx"] * LONGEST_PIECE_BYTES // 2)
    for content in (half, [{"type": "text", "text": half}]):
        message = {"role": "user", "content": content}
        with pytest.raises(TemplateError, match="rendered"):
            engine.chat_completion(messages=[message])
        with pytest.raises(ContextLengthError):
            engine.chat_completion(messages=[message] * 3)
    with pytest.raises(ContextLengthError):
        engine.chat_completion(messages=[message] * 1024)  # one text of 1 MB, a thousand times


def test_a_seed_of_minus_one_is_another_each_time(engine):
    for ask in (
        lambda **fields: engine.chat_completion_stream(messages=HI, **fields),
        lambda **fields: engine.completion_stream(prompt="x", **fields),
    ):
        seeds = [ask(seed=-1).seed for _ in range(8)]
        assert len(set(seeds)) > 1 and all(0 <= seed < 2**64 for seed in seeds)
        assert ask(seed=-2).seed == 2**64 - 2 and ask(seed=7).seed == 7


def test_sixty_four_parallel_requests_are_served_at_default_settings(engine):
    streams = [engine.chat_completion_stream(messages=HI) for _ in range(64)]
    assert all("".join(text_of(stream)) == WHOLE for stream in streams)


# --- one reader -------------------------------------------------------------------------------------------------------


def gated(go):
    return lambda request: ["one ", lambda: go.wait(20) and None, "two"]


def test_a_second_thread_is_refused_and_the_first_reads_on(open_engine):
    go = threading.Event()
    engine = open_engine(gated(go))
    for ask in (lambda: engine.chat_completion_stream(messages=HI), lambda: engine.completion_stream(prompt="x")):
        go.clear()
        stream, read = ask(), []
        first = threading.Thread(target=lambda: read.extend(text_of(stream)))
        first.start()
        until(lambda: read == ["one "] and stream._turn.locked())  # it waits for what comes after the gate
        for _ in range(3):
            with pytest.raises(ValidationError, match="a reader already") as caught:
                next(stream)
            assert caught.value.code == "stream_in_use"
        go.set()
        first.join(20)
        assert not first.is_alive() and read == ["one ", "two"] and stream.finish_reason == "stop"
        assert list(stream) == [] and next(stream, None) is None  # the end is the end, for everybody


def test_a_stream_may_be_handed_from_thread_to_thread(engine):
    stream, chunks = engine.chat_completion_stream(messages=HI), []
    for _ in range(len(fakes.WORDS) + 2):
        reader = threading.Thread(target=lambda: chunks.append(next(stream)))
        reader.start()
        reader.join()
    assert "".join(text_of(chunks)) == WHOLE and next(stream, None) is None


@pytest.mark.parametrize("run", range(5))
def test_many_readers_lose_nothing_and_all_of_them_end(engine, run):
    stream = engine.chat_completion_stream(messages=HI)
    got, refused = [], []

    def read():
        try:
            got.extend(stream)  # a list takes them one by one
        except ValidationError as error:
            refused.append(error)

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(20)
    assert not any(reader.is_alive() for reader in readers)
    assert len(refused) < len(readers) and all(error.code == "stream_in_use" for error in refused)
    assert sorted(text_of(got)) == sorted(fakes.WORDS) and stream.text == WHOLE


def test_cancelling_beside_a_waiting_reader_is_fine(open_engine):
    for stop in ("cancel", "close"):
        go = threading.Event()
        stream = open_engine(gated(go)).chat_completion_stream(messages=HI)
        read = []
        reader = threading.Thread(target=lambda: read.extend(stream))
        reader.start()
        until(lambda: stream.text == "one ")
        getattr(stream, stop)()
        reader.join(20)
        assert not reader.is_alive() and stream.cancelled and list(stream) == []
        go.set()


async def test_a_second_task_is_refused_and_the_first_reads_on(path, tmp_path):
    go = threading.Event()
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory(gated(go))) as engine:
        stream = engine.chat_completion_stream(messages=HI)

        async def read():
            return [piece async for piece in text_of(stream)]

        first = asyncio.create_task(read())
        while stream.text != "one ":
            await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(ValidationError, match="a reader already"):
                await anext(stream)
        go.set()
        assert await first == ["one ", "two"]
        assert [chunk async for chunk in stream] == []
        other = engine.chat_completion_stream(messages=HI)
        both = await asyncio.gather(anext(other), anext(other), return_exceptions=True)
        assert both[0]["choices"][0]["delta"] == {"role": "assistant"} and isinstance(both[1], ValidationError)
        assert "".join([piece async for piece in text_of(other)]) == "one two"


async def test_another_event_loop_is_refused_and_the_first_reads_on(path, tmp_path):
    go = threading.Event()
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory(gated(go))) as engine:
        stream = await engine.chat_completion_stream(messages=HI).start()
        for use in (stream.start, stream.__anext__):
            with pytest.raises(ValidationError, match="another event loop"):
                await asyncio.to_thread(lambda use=use: asyncio.run(use()))
        go.set()
        assert [piece async for piece in text_of(stream)] == ["one ", "two"]


def test_a_batch_runs_once(engine):
    batch, begun = BulkCall(), engine._models.begin("embedding", {"input": "x"}, {})
    batch.run(*begun)
    with pytest.raises(ValidationError, match="a reader already"):
        batch.run(*begun)


# --- cancelling -------------------------------------------------------------------------------------------------------


def by_cancel(stream):
    stream.cancel()
    assert list(stream) == [] and stream.cancelled and stream.finish_reason is None


def by_close(stream):
    stream.close()


def by_with(stream):
    with stream:
        next(stream)


def by_exception(stream):
    with pytest.raises(ZeroDivisionError), stream:
        for _ in stream:
            raise ZeroDivisionError


@pytest.mark.parametrize("stop", [by_cancel, by_close, by_with, by_exception])
@pytest.mark.parametrize("read", [0, 1, 5])
def test_a_stopped_stream_stops_computing(open_engine, stop, read):
    engine = open_engine(endless)
    stream = engine.chat_completion_stream(messages=HI)
    assert len(list(itertools.islice(stream, read))) == read
    stop(stream)
    until(lambda: not answering(engine))
    assert native(engine).cancelled == [1]
    stream.cancel()  # again: nothing
    assert native(engine).cancelled == [1]


def test_a_dropped_stream_stops_computing(open_engine):
    engine = open_engine(endless)
    for _ in engine.chat_completion_stream(messages=HI):
        break
    for _ in text_of(engine.chat_completion_stream(messages=HI)):
        break
    circle = [engine.chat_completion_stream(messages=HI)]
    circle.append(circle)
    del circle
    gc.collect()
    until(lambda: not answering(engine))
    assert sorted(native(engine).cancelled) == [1, 2, 3]


def test_cancel_from_another_thread_wakes_the_reader(open_engine):
    silence = threading.Event()
    engine = open_engine(lambda request: iter([lambda: silence.wait(120) and None]))
    stream = engine.chat_completion_stream(messages=HI)
    next(stream)
    got = []
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()
    stream.cancel()
    reader.join()
    assert got == []
    silence.set()


async def test_async_ways_of_stopping(path, tmp_path):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory(endless)) as engine:
        async for _ in engine.chat_completion_stream(messages=HI):
            break
        async with engine.chat_completion_stream(messages=HI) as stream:
            await anext(stream)
        stream = await engine.chat_completion_stream(messages=HI).start()
        await stream.aclose()
        assert [chunk async for chunk in stream] == []

        async def read():
            async for _ in engine.chat_completion_stream(messages=HI):
                pass

        for work in (read, lambda: engine.chat_completion(messages=HI)):
            task = asyncio.ensure_future(work())
            n = native(engine)._n
            while native(engine)._n == n:
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        while answering(engine):
            await asyncio.sleep(0.002)
        assert sorted(native(engine).cancelled) == [1, 2, 3, 4, 5]


async def test_a_task_cancelled_while_its_request_is_checked_leaves_nothing_behind(path, tmp_path, monkeypatch):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory(endless)) as engine:
        entered, go = threading.Event(), threading.Event()
        begin = engine._models.begin

        def slow(*args):
            entered.set()
            go.wait(120)
            return begin(*args)

        monkeypatch.setattr(engine._models, "begin", slow)
        task = asyncio.ensure_future(engine.chat_completion_stream(messages=HI).start())
        await asyncio.to_thread(entered.wait, 120)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        while not native(engine).cancelled:
            await asyncio.sleep(0.002)
        assert not answering(engine)


def test_a_filter_hit_cancels_the_native_request(open_engine):
    engine = open_engine(endless, content_filter=lambda text: text.count("word") > 3)
    reply = engine.chat_completion(messages=HI)
    assert (
        reply["choices"][0]["message"]["content"] == "word " * 3
        and reply["choices"][0]["finish_reason"] == "content_filter"
    )
    until(lambda: not answering(engine))


def test_ctrl_c_ends_the_wait_and_the_request(open_engine, monkeypatch):
    from polargrid_local.native.delivery import ThreadReader

    engine = open_engine(endless)
    get = ThreadReader.get

    def interrupted(self):
        if native(engine).requests:
            raise KeyboardInterrupt
        return get(self)

    monkeypatch.setattr(ThreadReader, "get", interrupted)
    for work in (engine.chat_completion, lambda **fields: list(engine.chat_completion_stream(**fields))):
        with pytest.raises(KeyboardInterrupt):
            work(messages=HI)
    until(lambda: not answering(engine))
    assert sorted(native(engine).cancelled) == [1, 2]


# --- many readers -----------------------------------------------------------------------------------------------------


def test_thirty_two_threads_each_get_their_own_answer(open_engine):
    engine = open_engine(fakes.echo, max_queue=64)
    wrong = []

    def ask(n):
        for i in range(5):
            prompt = f"thread {n} asks {i}"
            if (n + i) % 3 == 0:
                stream = engine.completion_stream(prompt=prompt)
                if n % 2:
                    next(stream)
                    stream.cancel()
                    continue
                said = "".join(text_of(stream))
            else:
                said = engine.completion(prompt=prompt)["choices"][0]["text"]
            if said != prompt:
                wrong.append((prompt, said))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    until(lambda: not answering(engine))


async def test_many_tasks_and_loops(path, tmp_path):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory(fakes.echo), max_queue=64) as engine:

        async def ask(n):
            return "".join([piece async for piece in text_of(engine.completion_stream(prompt=f"task {n}"))])

        async def ask_all():
            return await asyncio.gather(*map(ask, range(12)))

        elsewhere = asyncio.to_thread(lambda: asyncio.run(ask_all()))
        assert await ask_all() == await elsewhere == [f"task {n}" for n in range(12)]


def test_a_slow_reader_loses_nothing(open_engine):
    said = [f"{n} " for n in range(5000)]
    engine = open_engine(lambda request: said)
    slow = engine.completion_stream(prompt=["a", "b"], max_tokens=4096)
    until(lambda: not answering(engine))
    texts = ["", ""]
    for chunk in slow:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["".join(said[:4096])] * 2 and slow.usage["completion_tokens"] == 8192


# --- closing and failing ----------------------------------------------------------------------------------------------


def test_closing_ends_running_streams_and_later_calls(open_engine):
    engine = open_engine(endless)
    stream, waiting = engine.chat_completion_stream(messages=HI), engine.completion_stream(prompt="x")
    next(stream)
    engine.close()
    for left in (stream, waiting):
        with pytest.raises(EngineClosed):
            list(left)
        assert list(left) == []
    for call in (
        lambda: engine.chat_completion(messages=HI),
        engine.list_models,
        engine.stats,
        lambda: engine.tokenize("x"),
        lambda: engine.load_model("scripted"),
        engine.get_model_status,
    ):
        with pytest.raises(EngineClosed):
            call()
    assert engine.health()["status"] == "unhealthy"
    engine.close()
    stream.cancel()


def test_health_sees_an_engine_that_ended_by_itself(engine):
    assert engine.health()["status"] == "healthy"
    native(engine).close()
    until(lambda: engine.health()["status"] == "unhealthy")
    assert engine.health()["backend"]["healthy"] is False


async def test_embeddings_as_numpy_arrays(engine, path, tmp_path):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory()) as other:
        for reply in (
            engine.embeddings(input=["a", "bcd"], encoding_format="numpy"),
            await other.embeddings(input=["a", "bcd"], encoding_format="numpy"),
        ):
            vectors = [row["embedding"] for row in reply["data"]]
            assert [vector.dtype.str for vector in vectors] == ["<f4", "<f4"]
            assert [vector.tolist() for vector in vectors] == [[1, 0.5, 0, 0], [3, 0.5, 0, 0]]


async def test_closing_ends_async_streams(path, tmp_path):
    engine = await AsyncEngine.create(path, models_dir=tmp_path, engine_factory=factory(endless))
    stream = engine.chat_completion_stream(messages=HI)
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineClosed):
        async for _ in stream:
            pass


def test_a_stream_keeps_its_model_alive_and_nothing_else_does(open_engine, path, tmp_path):
    make = factory(endless)
    stream = Engine(path, models_dir=tmp_path, engine_factory=make).chat_completion_stream(messages=HI)
    gc.collect()
    assert next(stream) and next(stream) and not make.made[0].closed
    model = weakref.ref(stream._model)
    del stream
    gc.collect()
    assert model() is None and make.made[0].closed


def test_a_failed_request_hurts_no_other(open_engine):
    def script(request):
        if "bad" in request["prompt"][0][0]:
            return ["so far", {"kind": "error", "code": "numeric_error", "text": "NaN in the logits"}]
        return fakes.WORDS

    engine = open_engine(script)
    bad, good = engine.completion_stream(prompt="bad"), engine.completion_stream(prompt="good")
    with pytest.raises(ServerError, match="NaN") as caught:
        list(bad)
    assert caught.value.code == "numeric_error" and bad.text == "so far" and bad.finish_reason is None
    assert "".join(text_of(good)) == WHOLE


def test_a_dead_engine_thread_is_an_error_not_a_hang(open_engine):
    engine = open_engine(lambda request: iter(["word ", lambda: 1 // 0]))
    stream = engine.completion_stream(prompt="x")
    next(stream)
    with pytest.raises(EngineClosed):
        list(stream)
    with pytest.raises((ServerError, EngineClosed)):
        engine.completion(prompt="x")


async def test_a_dead_pump_is_an_error_not_a_hang(path, tmp_path):
    async with AsyncEngine(path, models_dir=tmp_path, engine_factory=factory(endless)) as engine:
        stream = engine.completion_stream(prompt="x")
        await anext(stream)

        def broken(timeout_ms):
            raise RuntimeError("the bell is gone")

        native(engine).listen = broken
        with pytest.raises(EngineCrashed, match="the bell is gone"):
            async for _ in stream:
                pass


def test_a_changed_file_is_noticed(engine, path):
    assert engine.completion(prompt="x")
    path.write_bytes(b"GGUF other")
    with pytest.raises(ModelFileChanged, match="replaced or written"):
        engine.completion(prompt="x")
    path.unlink()
    with pytest.raises(ModelFileChanged, match="gone"):
        engine.chat_completion(messages=HI)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_loading_reports_progress_and_failure(path, tmp_path):
    seen = []
    Engine(
        path, models_dir=tmp_path, engine_factory=factory(load=(0.25, 0.5, 1.0)), on_load_progress=seen.append
    ).close()
    assert seen == [0.25, 0.5, 1.0]
    make = factory(load=(0.25, Error("invalid_model", "tensor x: bad", {"tensor": "x"})))
    with pytest.raises(InvalidModelError, match="tensor x") as caught:
        Engine(path, models_dir=tmp_path, engine_factory=make)
    assert caught.value.details == {"tensor": "x"} and make.made[0].closed


def test_ctrl_c_aborts_the_load(path, tmp_path):
    make = factory(load=itertools.repeat(0.5))

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(path, models_dir=tmp_path, engine_factory=make, on_load_progress=interrupt)
    assert make.made[0].closed and 0 in make.made[0].cancelled


async def test_a_cancelled_task_aborts_its_load(path, tmp_path):
    make = factory(load=itertools.repeat(0.5))
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(
        AsyncEngine.create(
            path,
            models_dir=tmp_path,
            engine_factory=make,
            on_load_progress=lambda done: loop.call_soon_threadsafe(begun.set),
        )
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while not make.made[0].closed:
        await asyncio.sleep(0.002)


def test_models_come_and_go_by_name(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    (tmp_path / "sub").mkdir()
    twin = tmp_path / "sub" / "one.gguf"
    twin.write_bytes(b"GGUF")
    with Engine(models_dir=tmp_path, engine_factory=factory()) as engine:
        with pytest.raises(NotFoundError, match="^Model not loaded"):
            engine.completion(prompt="x")
        assert engine.load_model("one") == {
            "status": "success",
            "model": "one",
            "force_reload": False,
            "message": "Model one loaded successfully",
        }
        engine.load_model("two")
        assert engine.load_model("two", force_reload=True)["force_reload"] is True
        assert [made.closed for made in engine._models._factory.made] == [False, True, False]
        assert engine.get_model_status() == {
            "loaded": ["one", "two"],
            "loading_status": {"one": "loaded", "two": "loaded"},
            "repository": str(tmp_path),
        }
        assert engine.completion(prompt="x")["model"] == "one"
        for name in ("two", str(tmp_path / "two.gguf"), "two.gguf"):
            assert engine.completion(prompt="x", model=name)["model"] == name
        engine.load_model(twin)
        assert [model["id"] for model in engine.list_models()["data"]] == ["one", "two", "sub/one"]
        assert engine.unload_model("one") == {
            "status": "success",
            "model": "one",
            "message": "Model one unloaded successfully",
        }
        assert engine.get_model_status()["loading_status"]["one"] == "unloaded"
        assert engine.get_model("one")["id"] == "one"
        with pytest.raises(NotFoundError):
            engine.unload_model("one")
        with pytest.raises(NotFoundError):
            engine.load_model("three")
        with pytest.raises(ValidationError, match="model_name"):
            engine.load_model({})
        assert engine.unload_all_models() == {
            "status": "success",
            "unloaded_models": ["two", "sub/one"],
            "errors": [],
            "total_unloaded": 2,
        }


def test_unloading_ends_that_models_streams(open_engine):
    engine = open_engine(endless)
    stream = engine.completion_stream(prompt="x")
    next(stream)
    engine.unload_model("scripted")
    with pytest.raises(EngineClosed):
        list(stream)


def test_purge_spares_the_busy_unless_forced(open_engine):
    engine = open_engine(endless)
    stream = engine.completion_stream(prompt="x")
    next(stream)
    spared = engine.purge_gpu()
    assert (spared["status"], spared["models_unloaded"], len(spared["errors"])) == ("failed", [], 1)
    assert engine.purge_gpu(force=True)["models_unloaded"] == ["scripted"]
    stream.cancel()
