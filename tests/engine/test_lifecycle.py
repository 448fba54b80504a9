"""From load to close: loading, cancelling a load, closing under load, leaving the interpreter, no stray output."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_archs
import tiny_model
from helpers import chat, content_of, stats_of, wait_until_idle
from pydantic import TypeAdapter

from polargrid_local import (
    AsyncEngine,
    Engine,
    EngineClosed,
    InvalidModelError,
    MemoryEstimateError,
    NotFoundError,
    ValidationError,
    inspect_model,
)
from polargrid_local.api.replies import ChatCompletionChunk, FileSummary, LoadedModelInfo, ModelStats


def run(program: str, *args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_progress_rises_to_one(smollm2: Path) -> None:
    seen: list[float] = []
    Engine(smollm2, n_ctx=256, on_load_progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_model_is_described_as_declared(engine: Engine, smollm2: Path) -> None:
    for kind, value in (
        (LoadedModelInfo, engine.info()),
        (FileSummary, inspect_model(smollm2)),
        (ModelStats, stats_of(engine)),
    ):
        assert TypeAdapter(kind).validate_python(value, strict=True) == value  # every key is declared, and has its type
    messages = [{"role": "user", "content": "Hi"}]
    with engine.chat_completion_stream(messages=messages, max_tokens=3, logprobs=True, top_logprobs=2) as stream:
        for chunk in stream:
            assert TypeAdapter(ChatCompletionChunk).validate_python(chunk, strict=True) == chunk


def test_an_exception_in_the_progress_callback_cancels_the_load(smollm2: Path) -> None:
    class Stop(Exception):
        pass

    def stop(_: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        Engine(smollm2, n_ctx=256, on_load_progress=stop)


@pytest.mark.parametrize("live", ["stream", "thread", "calls", "nothing"])
def test_leaving_the_interpreter_with_a_live_engine(smollm2: Path, live: str) -> None:
    done = run(
        """
        import contextlib, sys, threading
        from polargrid_local import Engine, EngineClosed
        engine = Engine(sys.argv[1], n_ctx=512, max_streams=2)
        ask = dict(messages=[{"role": "user", "content": "Tell me a long story."}], max_tokens=400)
        if sys.argv[2] == "stream":
            stream = engine.chat_completion_stream(**ask)
            next(stream); next(stream)
        if sys.argv[2] == "thread":
            threading.Thread(target=lambda: list(engine.chat_completion_stream(**ask)), daemon=True).start()
        if sys.argv[2] == "calls":
            def call():
                with contextlib.suppress(EngineClosed):
                    while True:
                        engine.tokenize("a few words")
            for _ in range(8):
                threading.Thread(target=call, daemon=True).start()
        print("out")
        """,
        str(smollm2),
        live,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")


def test_nothing_is_written_to_the_hosts_output(smollm2: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = run(
        "import sys; from polargrid_local import Engine\nwith Engine(sys.argv[1], n_ctx=256) as e: pass", str(smollm2)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with caplog.at_level(logging.DEBUG, logger="polargrid_local.llama"):
        Engine(smollm2, n_ctx=256).close()
    assert any("n_ctx" in record.getMessage() for record in caplog.records)


def test_ctrl_c_in_a_stream_cancels_and_leaves_the_engine_usable(engine: Engine) -> None:
    wait_until_idle(engine)
    stream = engine.chat_completion_stream(**chat("word " * 1500, max_tokens=500, ignore_eos=True))

    def interrupt() -> None:
        while not stats_of(engine)["n_running"]:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.start()  # which the interrupt may come to as well
        for _ in stream:
            pass
        threading.Event().wait(120)  # for a stream that ended before the signal came
    thread.join()
    stream.close()
    wait_until_idle(engine)
    assert content_of(engine.chat_completion(**chat("hi")))


@pytest.mark.parametrize("how", ["break", "close", "cancel", "garbage", "with"])
def test_every_way_to_stop_reading_frees_the_sequence(engine: Engine, how: str) -> None:
    before = wait_until_idle(engine)["n_cancelled"]
    stream = engine.chat_completion_stream(**chat("Tell me a long story.", max_tokens=1900, ignore_eos=True))
    if how == "with":
        with stream:
            next(stream)
    else:
        for _ in stream:
            break
        if how in ("close", "cancel"):
            getattr(stream, how)()
    del stream
    gc.collect()
    assert wait_until_idle(engine)["n_cancelled"] == before + 1


async def test_a_slow_reader_loses_nothing_and_hoards_little(tmp_path: Path) -> None:
    """A thread and a task that look away for a whole answer: its text was gathered meanwhile, and is all there."""
    model = tiny_model.write_random(tmp_path / "m.gguf")
    request: Any = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "seed": 1}
    async with AsyncEngine(model, n_ctx=2048, models_dir=tmp_path) as engine:
        plain = (await engine.completion(**request))["choices"][0]["text"]
        task = await engine.completion_stream(**request).start()
        while engine.stats()["m"]["n_finished"] < 2:
            await asyncio.sleep(0.01)
        chunks = [chunk async for chunk in task]
        assert "".join(text for chunk in chunks for text in texts(chunk)) == plain and len(chunks) < 300
    with Engine(model, n_ctx=2048, models_dir=tmp_path) as engine:
        thread = engine.completion_stream(**request)
        wait_until_idle(engine)
        chunks = list(thread)
        assert "".join(text for chunk in chunks for text in texts(chunk)) == plain and len(chunks) < 300


def texts(chunk: Any) -> list[str]:
    return [choice["text"] for choice in chunk["choices"]]


def test_a_cancelled_stream_just_ends(engine: Engine) -> None:
    stream = engine.chat_completion_stream(**chat("Tell me a long story.", max_tokens=1900, ignore_eos=True))
    next(stream)
    stream.cancel()
    rest = list(stream)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in rest)
    assert stream.finish_reason is None


async def test_task_cancel_and_timeout_free_the_sequence(smollm2: Path) -> None:
    async with AsyncEngine(smollm2, n_ctx=1024, max_streams=2) as engine:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in engine.chat_completion_stream(
                **chat("Tell me a long story.", max_tokens=900, ignore_eos=True)
            ):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        begun.clear()
        task = asyncio.create_task(read())
        await begun.wait()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0)
        gc.collect()
        while stats_of(engine)["n_running"]:
            await asyncio.sleep(0.01)
        assert stats_of(engine)["n_cancelled"] == 2


def test_closing_in_the_middle_of_everything(smollm2: Path) -> None:
    engine = Engine(smollm2, n_ctx=512, max_streams=2, max_queue=8)
    outcomes: list[Any] = []

    def read() -> None:
        try:
            list(engine.chat_completion_stream(**chat("Tell me a long story.", max_tokens=400, ignore_eos=True)))
            outcomes.append("ended")
        except EngineClosed:
            outcomes.append("closed")

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    while not stats_of(engine)["n_running"]:
        time.sleep(0.001)
    engine.close()
    for thread in threads:
        thread.join(120)
    assert outcomes == ["closed"] * 6


def test_load_and_close_many_times_keeps_memory(scripted: Any) -> None:
    from test_concurrency import resident_bytes

    _, said = scripted([["a"]])

    def cycle(n: int) -> None:
        for _ in range(n):
            with Engine(said.path, n_ctx=256, max_streams=2) as engine:
                engine.completion(prompt=said.prompt(0), max_tokens=2)

    cycle(10)
    before = resident_bytes()
    cycle(50)
    assert resident_bytes() - before < 20 << 20


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "7"}])
def test_the_thread_settings_of_the_process_stay_its_own(chosen: dict[str, str]) -> None:
    program = """
        import os, json
        from polargrid_local.native.core import core
        core()
        print(json.dumps({name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_"))}))
    """
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**bare, **chosen}, timeout=120)
    assert json.loads(done.stdout) == chosen


def test_a_cache_costs_what_it_holds(smollm2: Path) -> None:
    """Every stream's KV cache is reserved from the start, and takes memory only when a chat fills it."""
    from test_concurrency import resident_bytes

    def opened(n_ctx: int, max_streams: int) -> tuple[int, int, str]:
        before = resident_bytes()
        with Engine(smollm2, n_ctx=n_ctx, max_streams=max_streams) as engine:
            text = engine.completion(prompt="Once upon a time", max_tokens=8, temperature=0)["choices"][0]["text"]
            return resident_bytes() - before, engine.info()["cache_bytes"], text

    opened(256, 1)  # the first engine of a process allocates what later ones share
    small, _, text = opened(256, 1)
    large, room, same = opened(8192, 8)
    assert same == text
    assert room > 1 << 30
    assert large - small < room / 10


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Engine(tmp_path / "missing.gguf")
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(InvalidModelError):
        Engine(tmp_path / "junk.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InvalidModelError):
        Engine(tmp_path / "empty.gguf")


def test_a_truncated_model_is_refused(smollm2: Path, tmp_path: Path) -> None:
    data = smollm2.read_bytes()
    for size in (64, 4096, 1 << 20, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(InvalidModelError):
            Engine(tmp_path / "cut.gguf")


def test_what_cannot_fit_is_refused_before_allocation(smollm2: Path) -> None:
    with pytest.raises(MemoryEstimateError) as refusal:
        Engine(smollm2, n_ctx=1 << 24, max_streams=64)
    assert int(refusal.value.details["need"]) > int(refusal.value.details["have"])
    assert 0 < int(refusal.value.details["max_n_ctx"]) < 1 << 24


@pytest.mark.parametrize(
    ("option", "value"), [("n_batch", 1), ("max_streams", 0), ("n_threads", 1000), ("device", "tpu"), ("n_ctx", -1)]
)
def test_bad_options_are_named(smollm2: Path, option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option):
        Engine(smollm2, **{option: value})


def test_mmap_off_and_kernels_off_say_the_same(smollm2: Path, engine: Engine) -> None:
    """Kernels differ in rounding, so the text is one with a clear next token on any processor: counting."""
    request = {"prompt": ", ".join(map(str, range(1, 21))) + ",", "max_tokens": 12, "temperature": 0}
    expected = engine.completion(**request)["choices"][0]["text"]
    assert expected.startswith(" 21, 22,")
    with Engine(smollm2, n_ctx=512, max_streams=1, mmap=False) as other:
        assert other.completion(**request)["choices"][0]["text"] == expected
    with Engine(smollm2, n_ctx=512, max_streams=1, kernels=False) as other:
        assert other.info()["kernels"] == "off"
        assert other.completion(**request)["choices"][0]["text"] == expected


@pytest.mark.parametrize("call", ["embeddings", "rerank"])
def test_closing_ends_a_batch_of_texts_as_closed(call: str, tmp_path: Path) -> None:
    """A close ends waiting calls with EngineClosed: not with "cancelled", which nobody asked for, nor never."""
    engine = Engine(tiny_archs.write(tmp_path / "m.gguf", {"embeddings": "bert", "rerank": "bert-reranker"}[call]))
    texts = ["a b c d e f " * 8] * 2048
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            while True:  # however fast the machine is, one of these calls is under way when the engine closes
                engine.embeddings(input=texts) if call == "embeddings" else engine.rerank("a", texts)
        except BaseException as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not stats_of(engine)["n_finished"]:
        time.sleep(0.001)
    engine.close()
    asking.join()
    assert [type(error) for error in ended] == [EngineClosed]


def test_texts_to_embed_take_turns_with_streams(smollm2: Path) -> None:
    """A long list of texts does not hold a running stream up until all of them are done."""
    with Engine(smollm2, n_ctx=512, max_streams=2, speculate=False) as engine:  # a token is a step
        stream = engine.completion_stream(prompt="Once upon a time", max_tokens=300, ignore_eos=True)
        next(stream)
        reply: list[Any] = []
        asking = threading.Thread(target=lambda: reply.append(engine.embeddings(input=["some words to embed"] * 12)))
        asking.start()
        n = sum(1 for _ in stream)
        asking.join()
        assert n > 250 and len(reply[0]["data"]) == 12
        stats = stats_of(engine)
        assert stats["n_steps"] >= 300 and stats["n_finished"] == 13
