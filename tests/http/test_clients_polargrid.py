"""The official SDK, unchanged, against a server: every method, streaming and not, and its error classes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import polargrid
import pytest
from polargrid.types import (
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionChunk,
    EmbeddingRequest,
    GenerateResponse,
    Message,
)  # fmt: skip
from serving import ALIAS, SAID, SMOLLM2, ServerProcess

MESSAGES = [{"role": "user", "content": "Say hello"}]


@pytest.fixture
def client(server: ServerProcess) -> polargrid.PolarGrid:
    return polargrid.PolarGrid(api_key="pg_any", base_url=server.url, max_retries=0)


@pytest.fixture
def sync(server: ServerProcess) -> polargrid.PolarGridSync:
    return polargrid.PolarGridSync(api_key="pg_any", base_url=server.url + "/", max_retries=0)  # //v1/... on the wire


async def gathered(stream: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


async def test_chat(client: polargrid.PolarGrid) -> None:
    request = {"model": SMOLLM2, "max_tokens": 12, "top_k": 1}
    answer = await client.chat_completion({**request, "messages": list(MESSAGES)})
    assert isinstance(answer, ChatCompletionResponse)
    assert answer.pg_metadata is not None
    assert answer.pg_metadata.region == "local"
    chunks = await gathered(client.chat_completion_stream({**request, "messages": list(MESSAGES)}))
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content != ""
    assert [c.choices[0].finish_reason for c in chunks][-2:] == [None, answer.choices[0].finish_reason]


async def test_chat_survives_awkward_text(client: polargrid.PolarGrid) -> None:
    """An unescaped line separator would make this client lose the chunk without a word."""
    request = ChatCompletionRequest(model="scripted", messages=[Message(role="user", content="\ue001")])
    chunks = await gathered(client.chat_completion_stream(request))
    assert [c.choices[0].delta.content for c in chunks[1:-1]] == SAID


async def test_tools(client: polargrid.PolarGrid) -> None:
    """A forced call, streamed and plain, in the official classes; its result goes back, and the model answers."""
    place = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Oslo"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": place}}
    request = {"model": SMOLLM2, "messages": list(MESSAGES), "tools": [tool], "max_tokens": 200, "top_k": 1}
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = (await client.chat_completion({**request, "tool_choice": choice})).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert answer.message.tool_calls is not None
    call = answer.message.tool_calls[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Bonn", "Oslo")

    chunks = await gathered(client.chat_completion_stream({**request, "tool_choice": choice}))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
    assert [delta.index for delta in deltas] == [0] * len(deltas) and deltas[0].id.startswith("call_")
    assert [delta.id for delta in deltas[1:]] == [None] * (len(deltas) - 1)
    assert "".join(delta.function.get("arguments", "") for delta in deltas) == call.function.arguments
    assert deltas[0].function["name"] == "weather" and not any("name" in delta.function for delta in deltas[1:])

    history = [
        *MESSAGES,
        answer.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny, 22 degrees"},
    ]
    after = await client.chat_completion({**request, "messages": history, "tool_choice": "none", "max_tokens": 8})
    assert after.choices[0].message.content


async def test_text(client: polargrid.PolarGrid) -> None:
    answer = await client.completion({"model": "scripted", "prompt": "\ue000"})
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("".join(SAID), "stop")
    both = await client.completion({"model": "scripted", "prompt": ["\ue000", "a\ue000"], "stop": ["caf"]})
    assert [(c.index, c.text) for c in both.choices] == [(0, "".join(SAID[:2]) + " "), (1, "".join(SAID[:2]) + " ")]
    chunks = await gathered(client.completion_stream({"model": "scripted", "prompt": "\ue000"}))
    assert all(isinstance(chunk, CompletionChunk) for chunk in chunks)
    assert [chunk.choices[0].text for chunk in chunks] == [*SAID, ""]


async def test_generate(client: polargrid.PolarGrid) -> None:
    answer = await client.generate({"model": "scripted", "prompt": "\ue001"})
    assert isinstance(answer, GenerateResponse)
    assert answer.content == "".join(SAID)


async def test_models(client: polargrid.PolarGrid) -> None:
    assert {SMOLLM2, ALIAS} <= {model.id for model in (await client.list_models()).data}
    assert (await client.get_model("HuggingFaceTB/SmolLM2-135M-Instruct")).root == SMOLLM2
    assert (await client.load_model({"model_name": "scripted"})).message == "Model scripted loaded successfully"
    assert "scripted" in (await client.get_model_status()).loaded
    assert (await client.unload_model({"model_name": "scripted"})).status == "success"
    assert (await client.get_model_status()).loading_status["scripted"] == "unloaded"
    everything = await client.unload_all_models()
    assert everything.total_unloaded == len(everything.unloaded_models) >= 1
    assert (await client.get_model_status()).loaded == []
    for name in (SMOLLM2, "random", "scripted"):
        assert (await client.load_model({"model_name": name, "force_reload": False})).status == "success"


async def test_machine(client: polargrid.PolarGrid) -> None:
    health = await client.health()
    assert (health.status, health.backend.healthy) == ("healthy", True)
    assert (await client.get_gpu_status()).total_gpus >= 0
    assert (await client.get_gpu_memory()).status == "success"
    status = await client.get_status()
    assert status.regions[0].region == "local"
    usage = await client.get_usage("2020-01-01", "2099-12-31")
    assert usage.usage.total_tokens >= 0
    assert (await client.embeddings(EmbeddingRequest(model=SMOLLM2, input=["a", "b"]))).data[1].index == 1


async def test_purge(start: Callable[..., ServerProcess]) -> None:
    server = start().wait_ready()
    client = polargrid.PolarGrid(api_key="k", base_url=server.url)
    purged = await client.purge_gpu({"force": True})
    assert purged.models_unloaded == ["random"]
    assert (await client.get_model_status()).loaded == []


def test_sync(sync: polargrid.PolarGridSync) -> None:
    answer = sync.chat_completion({"model": "scripted", "messages": [{"role": "user", "content": "\ue001"}]})
    assert answer.choices[0].message.content == "".join(SAID)
    chunks = list(
        sync.chat_completion_stream({"model": "scripted", "messages": [{"role": "user", "content": "\ue001"}]})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(SAID)
    assert "".join(
        c.choices[0].text for c in sync.completion_stream({"model": "scripted", "prompt": "\ue000"})
    ) == "".join(SAID)
    assert sync.completion({"model": "scripted", "prompt": "\ue000"}).choices[0].text == "".join(SAID)
    assert sync.generate({"model": "scripted", "prompt": "\ue001"}).content == "".join(SAID)
    assert sync.health().status == "healthy"
    assert sync.list_models().data
    assert sync.get_model(SMOLLM2).id == SMOLLM2
    assert sync.get_model_status().loaded
    assert sync.get_gpu_status().status == sync.get_gpu_memory().status == "success"
    assert sync.embeddings(EmbeddingRequest(model=SMOLLM2, input="a")).usage.prompt_tokens > 0
    assert sync.get_status().status == "healthy"
    assert sync.get_usage().usage.total_requests > 0


async def test_errors(client: polargrid.PolarGrid, server: ServerProcess) -> None:
    with pytest.raises(polargrid.NotFoundError, match="^Model not loaded"):
        await client.chat_completion({"model": "nope", "messages": list(MESSAGES)})
    with pytest.raises(polargrid.NotFoundError, match="^Model not loaded"):
        await gathered(client.chat_completion_stream({"model": "nope", "messages": list(MESSAGES)}))
    with pytest.raises(polargrid.NotFoundError):
        await client.get_model("no/such")
    with pytest.raises(polargrid.ValidationError) as caught:
        await client.completion({"model": SMOLLM2, "prompt": "word " * 5000})
    assert caught.value.request_id is not None
    with pytest.raises(polargrid.ServerError) as voice:
        await client.text_to_speech({"model": "tts-1", "input": "x", "voice": "alloy"})
    assert voice.value.status_code == 501
    speech = client.text_to_speech_stream({"model": "tts-1", "input": "x", "voice": "alloy"})
    for call in (
        client.transcribe(b"x", {"model": "whisper-1"}),
        client.translate(b"x", {"model": "whisper-1"}),
        client.get_transcription_job("1"),
        gathered(speech),
    ):
        with pytest.raises(polargrid.ServerError):
            await call


async def test_key_and_queue_errors(start: Callable[..., ServerProcess]) -> None:
    server = start(api_key="pg_right", max_streams=1, max_queue=0)
    server.wait_ready()
    wrong = polargrid.PolarGrid(api_key="pg_wrong", base_url=server.url)
    with pytest.raises(polargrid.AuthenticationError):
        await wrong.list_models()
    with pytest.raises(polargrid.AuthenticationError):
        await gathered(wrong.chat_completion_stream({"model": "random", "messages": list(MESSAGES)}))
    assert (await wrong.health()).status == "healthy"
    right = polargrid.PolarGrid(api_key="pg_right", base_url=server.url)
    request = {"model": "random", "max_tokens": 4000}
    # Read for minutes on any machine; the role is said before.
    running = right.chat_completion_stream({**request, "messages": [{"role": "user", "content": "of the " * 60_000}]})
    await anext(running)
    with pytest.raises(polargrid.RateLimitError):
        await right.chat_completion({**request, "messages": list(MESSAGES)})
    await running.aclose()


async def test_a_failure_in_the_middle_is_an_error(start: Callable[..., ServerProcess]) -> None:
    server = start().wait_ready()
    client = polargrid.PolarGrid(api_key="k", base_url=server.url)
    seen = 0
    with pytest.raises(polargrid.NetworkError):
        async for chunk in client.chat_completion_stream(
            {"model": "random", "messages": list(MESSAGES), "max_tokens": 4000}
        ):
            seen += bool(chunk.choices[0].delta.content)
            if seen == 3:
                await client.unload_model({"model_name": "random"})
    assert seen >= 3


async def test_many_at_once(client: polargrid.PolarGrid) -> None:
    async def one(i: int) -> str:
        request = {"model": "scripted", "messages": [{"role": "user", "content": "the " * i + "\ue001"}]}
        return "".join([c.choices[0].delta.content or "" async for c in client.chat_completion_stream(request)])

    assert set(await asyncio.gather(*map(one, range(12)))) == {"".join(SAID)}
