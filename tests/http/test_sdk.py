"""polargrid_local.sdk: the official classes served in this process."""

from __future__ import annotations

import ast
import asyncio
import copy
import gc
import importlib.metadata
import inspect
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polargrid
import pytest
from polargrid.types import ChatCompletionChunk, ChatCompletionRequest, CompletionChunk, EmbeddingRequest, Message
from serving import REPOSITORY, SAID, SMOLLM2

from polargrid_local import AsyncEngine, sdk
from polargrid_local.sdk import PolarGrid, PolarGridSync
from polargrid_local.service.settings import ServiceSettings

SAY = [{"role": "user", "content": "\ue001"}]
TEXT = "".join(SAID)


@pytest.fixture(autouse=True)
def settings(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("POLARGRID_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("POLARGRID_LOCAL_MODELS", str(models_dir))
    monkeypatch.setenv("POLARGRID_LOCAL_N_CTX", "8192")
    monkeypatch.setenv("POLARGRID_LOCAL_N_THREADS", "1")
    monkeypatch.setenv("POLARGRID_LOCAL_ALIASES", f"llama-3.1-8b={SMOLLM2}")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module", autouse=True)
def keep_models() -> Iterator[list[Any]]:
    """Holds the shared engine over the module, so that each model is loaded once."""
    kept: list[Any] = []
    yield kept
    kept.clear()


@pytest.fixture
def client(keep_models: list[Any]) -> PolarGrid:
    client = PolarGrid(api_key="pg_any")
    keep_models.append(client._backend)
    return client


@pytest.fixture
def sync(client: PolarGrid) -> PolarGridSync:
    return PolarGridSync(api_key="pg_any")


def test_signatures_are_the_official_ones() -> None:
    for ours, official in ((PolarGrid, polargrid.PolarGrid), (PolarGridSync, polargrid.PolarGridSync)):
        for name, method in inspect.getmembers(official, inspect.isfunction):
            if not name.startswith("_") or name == "__init__":
                mine = inspect.signature(getattr(ours, name))
                assert [(p.name, p.kind, p.default) for p in mine.parameters.values()] == [
                    (p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()
                ], name
                assert inspect.iscoroutinefunction(getattr(ours, name)) == inspect.iscoroutinefunction(method), name
                assert inspect.isasyncgenfunction(getattr(ours, name)) == inspect.isasyncgenfunction(method), name
    assert list(inspect.signature(PolarGrid.create).parameters) == list(
        inspect.signature(polargrid.PolarGrid.create).parameters
    )
    assert set(polargrid.__all__) <= set(dir(sdk))


async def test_text_methods(client: PolarGrid) -> None:
    assert (await client.chat_completion({"model": "scripted", "messages": SAY})).choices[0].message.content == TEXT
    chunks = [chunk async for chunk in client.chat_completion_stream({"model": "scripted", "messages": SAY})]
    assert all(type(chunk) is ChatCompletionChunk for chunk in chunks)
    assert [c.choices[0].delta.content for c in chunks] == [None, *SAID, None]
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(SAID) + 1) + ["stop"]
    assert (await client.completion({"model": "scripted", "prompt": "\ue000"})).choices[0].text == TEXT
    texts = [chunk async for chunk in client.completion_stream({"model": "scripted", "prompt": "\ue000"})]
    assert all(type(chunk) is CompletionChunk for chunk in texts)
    assert [chunk.choices[0].text for chunk in texts] == [*SAID, ""]
    answer = await client.generate({"model": "scripted", "prompt": "\ue001"})
    assert (answer.content, answer.usage.completion_tokens) == (TEXT, len(SAID))


async def test_tools_and_schemas(client: PolarGrid) -> None:
    """In the official classes, streamed and plain."""
    place = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]}
    place["additionalProperties"] = False  # or an answer may go on until its limit
    tool = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": place}}
    request = {"model": SMOLLM2, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "seed": 1}
    forced = {**request, "tools": [tool], "tool_choice": "required"}
    answer = (await client.chat_completion(forced)).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.tool_calls is not None
    call = answer.message.tool_calls[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Bonn", "Oslo")
    chunks = [chunk async for chunk in client.chat_completion_stream(forced)]
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or () if delta.index == 0]
    assert "".join(delta.function.get("arguments", "") for delta in deltas) == call.function.arguments
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": place, "strict": True}}
    held = await client.chat_completion({**request, "response_format": form})
    assert json.loads(held.choices[0].message.content or "")["city"] in ("Bonn", "Oslo")


async def test_other_methods(client: PolarGrid) -> None:
    assert (await client.load_model({"model_name": "random"})).message == "Model random loaded successfully"
    assert {"random", SMOLLM2, "llama-3.1-8b"} <= {model.id for model in (await client.list_models()).data}
    assert (await client.get_model("HuggingFaceTB/SmolLM2-135M-Instruct")).root == SMOLLM2
    assert "random" in (await client.get_model_status()).loaded
    health = await client.health()
    assert isinstance(health.backend.info, sdk.LocalBackendInfo)
    assert (health.status, "random" in health.backend.info.models_loaded) == ("healthy", True)
    assert (await client.get_gpu_status()).status == (await client.get_gpu_memory()).status == "success"
    vectors = await client.embeddings(EmbeddingRequest(model="random", input=["the", "of"]))
    assert len(vectors.data) == 2
    assert (await client.get_status()).status == "healthy"
    assert (await client.get_usage()).usage.total_requests > 0
    assert (await client.get_usage("2001-01-01", "2001-01-02")).usage.total_requests == 0
    assert (await client.unload_model({"model_name": "random"})).status == "success"
    assert (await client.purge_gpu()).status == "success"
    assert (await client.unload_all_models()).errors == []
    assert (client.get_region_id(), client.get_region_name()) == ("local", "Local")
    assert isinstance(await PolarGrid.create(routing_scope="global"), PolarGrid)


async def test_requests_stay_as_they_are_and_zero_is_zero(client: PolarGrid) -> None:
    request = {
        "model": SMOLLM2,
        "messages": [{"role": "user", "content": "Name a colour"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    before = copy.deepcopy(request)
    answers = {(await client.chat_completion(request)).choices[0].message.content for _ in range(3)}
    assert len(answers) == 1
    assert request == before
    model = ChatCompletionRequest(model="llama-3.1-8b", messages=[Message(role="user", content="Hi")], max_tokens=2)
    answer = await client.chat_completion(model)
    assert (answer.model, answer.usage.completion_tokens) == ("llama-3.1-8b", 2)


async def test_errors_are_the_official_classes(client: PolarGrid) -> None:
    with pytest.raises(polargrid.NotFoundError, match="^Model not loaded"):
        await client.chat_completion({"model": "gpt2", "messages": SAY})
    with pytest.raises(polargrid.NotFoundError) as missing:
        async for _ in client.completion_stream({"model": "gpt2", "prompt": "x"}):
            pass
    assert polargrid.is_polargrid_error(missing.value)
    assert missing.value.request_id is not None
    with pytest.raises(polargrid.NotFoundError):
        await client.get_model("a/b")
    for wrong in (
        {"messages": []},
        {"max_tokens": 5000},
        {"temperature": 3},
        {"messages": [{"role": "robot", "content": "x"}]},
    ):
        with pytest.raises(polargrid.ValidationError):
            await client.chat_completion({"model": "scripted", "messages": SAY, **wrong})
    with pytest.raises(polargrid.ValidationError) as long:
        await client.completion({"model": SMOLLM2, "prompt": "word " * 10_000})
    assert long.value.details is not None
    with pytest.raises(polargrid.ValidationError, match="tools"):
        tool = {"type": "function", "function": {"name": "no blanks"}}
        await client.chat_completion({"model": "scripted", "messages": SAY, "tools": [tool]})


async def test_voice_is_refused_and_never_leaves(client: PolarGrid) -> None:
    speech = {"model": "tts-1", "input": "x", "voice": "alloy"}
    calls = [
        client.text_to_speech(speech), client.transcribe(Path("none.mp3"), {"model": "whisper-1"}),
        client.translate(b"x", {"model": "whisper-1"}), client.transcribe_async(b"x", {"model": "whisper-1"}),
        client.transcribe_and_wait(b"x", {"model": "whisper-1"}), client.get_transcription_job("1"),
        client.get_transcription_result("1"), anext(client.text_to_speech_stream(speech)),
        anext(client.transcribe_stream(b"x", {"model": "whisper-1"})),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(polargrid.ServerError) as refused:
            await call
        assert refused.value.status_code == 501


def test_mock_mode_is_the_official_one() -> None:
    client = PolarGridSync(use_mock_data=True)
    assert client.chat_completion({"model": "m", "messages": SAY}).choices[0].message.content
    assert list(client.completion_stream({"model": "m", "prompt": "x"}))
    assert client.health().status == "healthy"
    assert client.text_to_speech({"model": "tts-1", "input": "x", "voice": "alloy"})


def test_sync_methods(sync: PolarGridSync) -> None:
    assert sync.chat_completion({"model": "scripted", "messages": SAY}).choices[0].message.content == TEXT
    assert sync.completion({"model": "scripted", "prompt": "\ue000"}).choices[0].text == TEXT
    assert sync.generate({"model": "scripted", "prompt": "\ue001"}).content == TEXT
    assert sync.health().status == "healthy"
    chunks = list(sync.chat_completion_stream({"model": "scripted", "messages": SAY}))
    assert [c.choices[0].delta.content for c in chunks] == [None, *SAID, None]
    with pytest.raises(polargrid.NotFoundError):
        sync.chat_completion_stream({"model": "gpt2", "messages": SAY})  # at the call, not at the first step


def test_sync_streams_are_lazy_and_end_when_dropped(sync: PolarGridSync) -> None:
    stats = sync._async_client._backend.service.stats
    sync.load_model({"model_name": "random"})
    stream = sync.completion_stream({"model": "random", "prompt": "the", "max_tokens": 4096})
    assert next(stream).choices[0].text
    assert stats()["random"]["n_running"] == 1  # it is still being generated
    del stream
    gc.collect()
    deadline = time.monotonic() + 120
    while stats()["random"]["n_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert stats()["random"]["n_cancelled"] >= 1


async def test_a_dropped_async_stream_ends(client: PolarGrid) -> None:
    async for chunk in (
        stream := client.chat_completion_stream({"model": "random", "messages": SAY, "max_tokens": 4096})
    ):
        if chunk.choices[0].delta.content:
            break
    await stream.aclose()
    deadline = time.monotonic() + 120
    while client._backend.service.stats()["random"]["n_running"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_failure_in_the_middle_is_a_network_error(client: PolarGrid) -> None:
    seen = 0
    with pytest.raises(polargrid.NetworkError):
        async for chunk in client.chat_completion_stream({"model": "random", "messages": SAY, "max_tokens": 4096}):
            seen += bool(chunk.choices[0].delta.content)
            if seen == 1 and chunk.choices[0].delta.content:
                await client.unload_model({"model_name": "random"})


def test_threads_and_loops_share_one_engine(client: PolarGrid) -> None:
    async def one(i: int) -> str:
        mine = PolarGrid()
        assert mine._backend is client._backend
        request = {"model": "scripted", "messages": [{"role": "user", "content": "the " * i + "\ue001"}]}
        return "".join([c.choices[0].delta.content or "" async for c in mine.chat_completion_stream(request)])

    async def three(i: int) -> set[str]:
        return set(await asyncio.gather(one(i), one(i + 1), one(i + 2)))

    with ThreadPoolExecutor(4) as pool:
        assert all(texts == {TEXT} for texts in pool.map(lambda i: asyncio.run(three(i)), range(4)))


def output_of(program: str) -> str:
    """What a program prints that must end well and say nothing on stderr."""
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", textwrap.dedent(program)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert (run.returncode, run.stderr.decode()) == (0, "")
    return run.stdout.decode()


def test_a_program_ends_by_itself() -> None:
    """No close and no hang, also with a stream left open."""
    program = f"""
        from polargrid_local.sdk import PolarGridSync
        client = PolarGridSync()
        stream = client.completion_stream({{"model": "random", "prompt": "the", "max_tokens": 4096}})
        next(stream)
        print(client.completion({{"model": "scripted", "prompt": {chr(0xE000)!r}}}).choices[0].text)
    """
    assert output_of(program) == TEXT + "\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_client_says_so() -> None:
    program = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import polargrid
        from polargrid_local.sdk import PolarGridSync
        client = PolarGridSync()
        client.load_model({"model_name": "scripted"})
        if os.fork() == 0:
            try:
                client.completion({"model": "scripted", "prompt": "x"})
            except polargrid.ServerError as error:
                os.write(1, error.message.encode())
            os._exit(0)
        os.wait()
    """
    assert "new one after fork" in output_of(program)


def test_a_client_needs_nothing_of_the_server() -> None:
    """Neither its modules nor the packages of its extra."""
    program = """
        import sys
        sys.modules.update(dict.fromkeys(["fastapi", "starlette", "uvicorn", "prometheus_client"]))  # as if not there
        from polargrid_local.sdk import PolarGridSync
        print(PolarGridSync().health().status)
        print([name for name in sys.modules if name.startswith("polargrid_local.server")])
    """
    assert output_of(program) == "healthy\n[]\n"


async def test_a_client_over_an_engine_of_ones_own(tiny_dir: Path) -> None:
    async with AsyncEngine(models_dir=tiny_dir, n_ctx=512, n_threads=1) as engine:
        client = PolarGrid.over(engine, ServiceSettings(models_dir=tiny_dir, aliases={"gpt2": "scripted"}))
        answer = await client.completion({"model": "gpt2", "prompt": "\ue000"})
        assert (answer.model, answer.choices[0].text) == ("gpt2", TEXT)
        assert list(engine.stats()) == ["scripted"]
        del client
        gc.collect()
        assert list(engine.stats()) == ["scripted"]  # it stays its owner's


async def test_a_client_is_a_context_manager_with_nothing_to_close() -> None:
    ask = {"model": "scripted", "messages": SAY}
    async with PolarGrid() as client:
        assert (await client.chat_completion(ask)).choices[0].message.content == TEXT
    assert (await client.chat_completion(ask)).choices[0].message.content == TEXT
    with PolarGridSync() as sync:
        assert sync.chat_completion(ask).choices[0].message.content == TEXT
    assert sync.chat_completion(ask).choices[0].message.content == TEXT


def test_a_second_reader_of_a_stream_is_refused_and_the_first_reads_on() -> None:
    stream = PolarGridSync().chat_completion_stream({"model": "random", "messages": SAY, "max_tokens": 64})
    read: list[ChatCompletionChunk] = []
    first = threading.Thread(target=lambda: read.extend(stream))
    assert stream._turn.acquire(blocking=False)  # as one does who waits for a chunk
    with pytest.raises(polargrid.ValidationError, match="a reader already"):
        next(stream)
    stream._turn.release()
    first.start()
    first.join(60)
    assert read[-1].choices[0].finish_reason and next(stream, None) is None


def test_what_the_sdk_sends_is_known_to_the_engine() -> None:
    """The official classes drop what they do not know; of what they keep, nothing is refused as unknown."""
    messages = [
        Message(role="system", content="x", name="n"),
        Message(role="user", content=[{"type": "text", "text": "\ue001"}]),
        Message(role="assistant", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "{}"}}]),
        Message(role="tool", content="x", tool_call_id="1"),
        Message(role="assistant", content=None),
        *SAY,
    ]
    client = PolarGridSync()
    every = {
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "stop": ["x"],
    }
    client.chat_completion({"model": "scripted", "messages": messages, "max_token": 5, "stream": False, **every})
    client.completion({"model": "scripted", "prompt": "x", "max_token": 5, **every})
    client.generate({"model": "scripted", "prompt": "x", "request_id": "r"})


# --- the official README, as it stands but for one line ---

README = importlib.metadata.metadata("polargrid-sdk").get_payload()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
VOICE = re.compile(r"\b(text_to_speech|text_to_speech_stream|transcribe|translate)\(")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
async def test_readme_example(number: int, client: PolarGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARGRID_LOCAL_ALIASES", f"*={SMOLLM2}")  # llama-3.1-70b and gpt2 are not on this disk
    code = EXAMPLES[number].replace("from polargrid import", "from polargrid_local.sdk import")
    if "asyncio.run(main())" in code:
        code = code.replace("asyncio.run(main())", "await main()")  # this test runs in a loop already
    names: dict[str, Any] = {
        "client": PolarGrid(),
        "request": {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
        "update_ui": lambda text: None,
        "asyncio": asyncio,
        "Path": Path,
        "RateLimitError": polargrid.RateLimitError,
    }
    if "PolarGrid(" in code and "import PolarGrid" not in code:
        names["PolarGrid"] = PolarGrid
    await names["client"].load_model({"model_name": SMOLLM2})
    compiled = compile(code, f"README example {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def run() -> None:
        result = eval(compiled, names)
        if inspect.isawaitable(result):
            await result

    if VOICE.search(code):
        with pytest.raises(polargrid.ServerError, match="voice"):
            await run()
    elif "routing_scope=" in code:
        with pytest.raises(TypeError, match="routing_scope"):  # nor does the official constructor know it
            await run()
        with pytest.raises(TypeError, match="routing_scope"):
            polargrid.PolarGrid(routing_scope="country")
    elif "memory.memory[0]" in code and not (await client.get_gpu_memory()).memory:
        with pytest.raises(IndexError):  # a machine without a GPU has no first one
            await run()
    else:
        await run()
