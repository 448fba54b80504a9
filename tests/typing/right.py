"""What type checkers must see in the public face. Never run: mypy and pyright read it (tests/unit/test_typing.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Union

import numpy
from numpy.typing import NDArray
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel
from typing_extensions import assert_type

from polargrid_local import (
    AsyncChatStream,
    AsyncEngine,
    AsyncToolRun,
    ChatStream,
    Engine,
    RateLimitError,
    Tool,
    ToolRoundsError,
    ToolRun,
    inspect_model,
    sentences,
    system_info,
    text_of,
)
from polargrid_local.server import ServeConfig, create_app
from polargrid_local.types import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatDelta,
    ChatParams,
    CompletionChunk,
    CompletionResponse,
    EmbeddingResponse,
    FileSummary,
    FinishReason,
    GenerateResponse,
    GPUMemoryResponse,
    GPUPurgeResponse,
    GPUStatusResponse,
    HealthResponse,
    ListModelsResponse,
    LoadedModelInfo,
    LoadModelResponse,
    MessageParam,
    ModelInfo,
    ModelStats,
    ModelStatusResponse,
    ParsedReply,
    PredictionParam,
    RerankResponse,
    SystemInfo,
    Timings,
    UnloadAllModelsResponse,
    UnloadModelResponse,
    Usage,
)


class SdkRequest(BaseModel):
    """As an SDK's request objects are, whatever their fields."""

    model: str = "m"


def streams(engine: Engine) -> None:
    stream = engine.chat_completion_stream(messages=[{"role": "user", "content": "Hi"}], max_tokens=5)
    assert_type(stream, ChatStream[ChatCompletionChunk])
    for chunk in stream:
        assert_type(chunk, ChatCompletionChunk)
        assert_type(chunk["choices"][0]["delta"], ChatDelta)
        assert_type(chunk["choices"][0]["finish_reason"], Union[FinishReason, None])
    with stream as entered:
        assert_type(entered, ChatStream[ChatCompletionChunk])
    assert_type(next(stream), ChatCompletionChunk)
    assert_type(stream.usage, Usage)
    assert_type(stream.usage["total_tokens"], int)
    assert_type(stream.timings, Timings)
    assert_type(stream.timings["first_token_ms"], Union[float, None])
    assert_type(stream.timings["accepted_draft_tokens"], int)
    if details := stream.usage.get("completion_tokens_details"):
        assert_type(details["accepted_prediction_tokens"], int)
    assert_type(stream.text, str)
    assert_type(stream.finish_reason, Union[FinishReason, None])
    assert_type(stream.prefill, Union[tuple[int, int], None])
    for text in text_of(stream):
        assert_type(text, str)
    for sentence in sentences(stream):
        assert_type(sentence, str)

    pieces = engine.completion_stream(prompt=["a", "b"], echo=False)
    assert_type(pieces, ChatStream[CompletionChunk])
    for piece in pieces:
        assert_type(piece, CompletionChunk)
        assert_type(piece["choices"][0]["text"], str)


def requests(engine: Engine) -> None:
    """As keywords, as a dict, as an object, and with keywords on top."""
    history: list[MessageParam] = [{"role": "system", "content": "Be brief."}]
    history.append({"role": "user", "content": [{"type": "text", "text": "Hi"}]})
    reply = engine.chat_completion(
        messages=history, temperature=0, seed=None, stop="\n", logit_bias={"7": -1}, logprobs=True
    )
    assert_type(reply, ChatCompletionResponse)
    assert_type(reply["choices"][0]["message"]["content"], Union[str, None])
    assert_type(reply["usage"], Usage)
    engine.chat_completion(messages=[*history, reply["choices"][0]["message"]])  # an answer goes back as it came
    engine.chat_completion(messages=[ChatCompletionMessage(role="assistant", content="Hi")])
    engine.chat_completion(
        messages=[{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]
    )
    request: ChatParams = {"messages": history, "max_tokens": 5, "stream_options": {"include_usage": True}}
    assert_type(engine.chat_completion(request), ChatCompletionResponse)
    assert_type(engine.chat_completion(request, temperature=0.5), ChatCompletionResponse)
    assert_type(
        engine.chat_completion({"messages": [{"role": "user", "content": "Hi"}], "n": 1}), ChatCompletionResponse
    )
    assert_type(engine.chat_completion(SdkRequest(), max_completion_tokens=9), ChatCompletionResponse)
    assert_type(engine.chat_completion_stream(request), ChatStream[ChatCompletionChunk])
    assert_type(engine.chat_completion(**request), ChatCompletionResponse)
    body: dict[str, Any] = {"messages": []}  # which might hold a class, for all that a type checker knows
    engine.chat_completion(**body)["choices"]

    def steer(token_ids: Any, logits: Any) -> None: ...

    biases: list[Any] = [(5, False), ("text", 1.5), [5, -1], {"id": 5, "bias": False}]
    engine.completion(prompt="a", logits_processor=steer, logit_bias=biases, samplers=["top_k"])
    engine.completion(prompt="a", logits_processor=[steer], logit_bias=[(5, False), ("text", 1.5)], samplers="kt")
    told = engine.chat_completion(messages=history, return_token_ids=True, chat_template="chatml", documents=[{"a": 1}])
    assert_type(told.get("prompt_token_ids"), Union[list[int], None])
    assert_type(told["choices"][0].get("token_ids"), Union[list[int], None])

    assert_type(engine.completion(prompt="Once", logprobs=2), CompletionResponse)
    assert_type(engine.completion({"prompt": ["a", "b"]}, seed=1), CompletionResponse)
    predicted: PredictionParam = {"type": "content", "content": [{"type": "text", "text": "a"}]}
    assert_type(engine.completion(prompt="a", prediction=predicted), CompletionResponse)
    assert_type(engine.chat_completion(request, prediction="a"), ChatCompletionResponse)
    assert_type(engine.generate("Hi", prediction={"type": "content", "content": "a"}), GenerateResponse)
    assert_type(engine.completion(SdkRequest()), CompletionResponse)
    assert_type(engine.completion_stream({"prompt": "a"}), ChatStream[CompletionChunk])
    assert_type(engine.generate("Hi", max_tokens=3), GenerateResponse)
    assert_type(engine.generate(prompt="Hi")["content"], str)
    assert_type(engine.generate({"prompt": "Hi", "stop": ["x"]}), GenerateResponse)
    assert_type(engine.generate(SdkRequest()), GenerateResponse)
    assert_type(engine.rerank("q", ["a", {"text": "b"}], top_n=1), RerankResponse)
    assert_type(engine.rerank({"query": "q", "documents": ["a"]})["results"][0]["relevance_score"], float)
    assert_type(engine.rerank(query="q", documents=["a"], return_documents=True), RerankResponse)
    assert_type(engine.tokenize("text", unlimited=True), list[int])
    assert_type(engine.tokenize(messages=history), list[int])


def vectors(engine: Engine) -> None:
    assert_type(engine.embeddings(input="a")["data"][0]["embedding"], list[float])
    assert_type(engine.embeddings(input=["a", "b"], encoding_format="float"), EmbeddingResponse[list[float]])
    assert_type(engine.embeddings(input="a", encoding_format="base64"), EmbeddingResponse[str])
    assert_type(engine.embeddings(input="a", encoding_format="numpy")["data"][0]["embedding"], NDArray[numpy.float32])
    engine.embeddings({"input": "a", "encoding_format": "numpy"})["usage"]["prompt_tokens"]
    engine.embeddings(SdkRequest(), input="a")


def machine(engine: Engine, path: Path) -> None:
    assert_type(engine.list_models(), ListModelsResponse)
    assert_type(engine.get_model("m"), ModelInfo)
    assert_type(engine.load_model("m", force_reload=True, on_progress=print), LoadModelResponse)
    assert_type(engine.load_model(path), LoadModelResponse)
    assert_type(engine.load_model({"model_name": "m"}), LoadModelResponse)
    assert_type(engine.unload_model({"model_name": "m"}), UnloadModelResponse)
    assert_type(engine.unload_all_models(), UnloadAllModelsResponse)
    assert_type(engine.get_model_status(), ModelStatusResponse)
    assert_type(engine.get_model_status()["loading_status"]["m"], Literal["loading", "loaded", "unloaded", "failed"])
    assert_type(engine.health(), HealthResponse)
    assert_type(engine.get_gpu_status(), GPUStatusResponse)
    assert_type(engine.get_gpu_memory(), GPUMemoryResponse)
    assert_type(engine.purge_gpu(force=True), GPUPurgeResponse)
    assert_type(engine.purge_gpu({"force": True}), GPUPurgeResponse)
    assert_type(engine.info(), LoadedModelInfo)
    assert_type(engine.info("m")["n_ctx"], int)
    assert_type(engine.stats(), dict[str, ModelStats])
    assert_type(engine.stats()["m"]["n_generated_tokens"], int)
    assert_type(engine.stats()["m"]["n_accepted_tokens"], int)
    assert_type(engine.info()["speculation"], str)
    assert_type(inspect_model(path), FileSummary)
    assert_type(system_info()["devices"][0]["gpu"], bool)
    assert_type(system_info(), SystemInfo)


def add(a: int, b: int = 1) -> int:
    return a + b


async def fetch(url: str) -> str:
    return url


def tools(engine: Engine) -> None:
    history: list[MessageParam] = [{"role": "user", "content": "Hi"}]
    double = Tool("double", "Doubles.", {"type": "object"}, lambda x: x * 2)
    run = engine.run_tools(history, [add, double, Tool.of(add)], temperature=0, tool_choice="required", max_rounds=3)
    assert_type(run, ToolRun[None])
    assert_type(run.text, str)
    assert_type(run.usage, Usage)
    assert_type(run.finish_reason, Union[FinishReason, None])
    assert_type(run.reply, Union[ChatCompletionResponse, None])
    engine.chat_completion(messages=run.messages)
    for event in engine.run_tools(history, tools=[add], stream=True, raises=(KeyError, OSError)):
        if event["kind"] == "chunk":
            assert_type(event["chunk"], ChatCompletionChunk)
        elif event["kind"] == "call":
            assert_type(event["call"]["id"], str)
            assert_type(event["call"]["function"]["arguments"], str)
        else:
            assert_type(event["result"], str)
            assert_type(event["failed"], bool)
    with engine.run_tools(history, [add], response_format=SdkRequest, stream=True) as parsed:
        assert_type(parsed, ToolRun[SdkRequest])
        assert_type(parsed.parsed, Union[SdkRequest, None])
    try:
        engine.run_tools(history, [add])
    except ToolRoundsError as error:
        engine.run_tools(error.messages, [add])


def refusals(engine: Engine) -> None:
    try:
        engine.completion(prompt="a")
    except RateLimitError as error:
        assert_type(error.retry_after, Union[float, None])
        assert_type(error.param, Union[str, None])


def options(path: Path) -> None:
    Engine(
        "m",
        n_ctx=4096,
        cache_type="q8_0",
        device="cpu",
        models_dir=path,
        lora=[(path, 0.5)],
        content_filter=["x"],
        adapters={"m:x": path, "m:y": ("y.gguf", 0.5)},
        chat_template={"m": "chatml"},
    ).close()
    Engine("m", speculate="off").close()
    with Engine(speculate=False) as engine:
        assert_type(engine, Engine)


def server(engine: AsyncEngine) -> None:
    create_app(engine, ServeConfig())


async def tasks(path: Path) -> None:
    assert_type(await AsyncEngine.create("m", max_streams=2), AsyncEngine)
    async with AsyncEngine("m") as engine:
        stream = engine.chat_completion_stream(messages=[{"role": "user", "content": "Hi"}])
        assert_type(stream, AsyncChatStream[ChatCompletionChunk])
        assert_type(await stream.start(), AsyncChatStream[ChatCompletionChunk])
        async for chunk in stream:
            assert_type(chunk, ChatCompletionChunk)
        async for text in text_of(stream):
            assert_type(text, str)
        async for piece in engine.completion_stream({"prompt": "a"}, max_tokens=1):
            assert_type(piece, CompletionChunk)
        assert_type(stream.usage, Usage)
        assert_type(await engine.chat_completion(SdkRequest(), n=1), ChatCompletionResponse)
        reply = await engine.chat_completion(messages=[], response_format=SdkRequest, max_tokens=9)
        assert_type(reply, ParsedReply[SdkRequest])
        assert_type(reply.parsed, SdkRequest | None)
        assert_type(await engine.run_tools([], [add, fetch]), AsyncToolRun[None])
        assert_type((await engine.run_tools([], [fetch], response_format=SdkRequest)).parsed, Union[SdkRequest, None])
        assert_type(engine.run_tools([], [fetch], response_format=SdkRequest, stream=True), AsyncToolRun[SdkRequest])
        async with engine.run_tools([], [fetch], stream=True) as run:
            async for event in run:
                if event["kind"] == "result":
                    assert_type(event["call"]["id"], str)
        assert_type(await engine.completion(prompt="a"), CompletionResponse)
        assert_type(await engine.generate("a"), GenerateResponse)
        assert_type(await engine.rerank("q", ["a"]), RerankResponse)
        assert_type((await engine.embeddings(input="a"))["data"][0]["embedding"], list[float])
        assert_type((await engine.embeddings(input="a", encoding_format="base64"))["data"][0]["embedding"], str)
        assert_type(
            (await engine.embeddings(input="a", encoding_format="numpy"))["data"][0]["embedding"],
            NDArray[numpy.float32],
        )
        assert_type(await engine.list_models(), ListModelsResponse)
        assert_type(await engine.get_model("m"), ModelInfo)
        assert_type(await engine.load_model(path), LoadModelResponse)
        assert_type(await engine.unload_model("m"), UnloadModelResponse)
        assert_type(await engine.unload_all_models(), UnloadAllModelsResponse)
        assert_type(await engine.get_model_status(), ModelStatusResponse)
        assert_type(await engine.health(), HealthResponse)
        assert_type(await engine.get_gpu_status(), GPUStatusResponse)
        assert_type(await engine.get_gpu_memory(), GPUMemoryResponse)
        assert_type(await engine.purge_gpu(True), GPUPurgeResponse)
        assert_type(engine.info()["chat_format"], str)
        assert_type(engine.stats(), dict[str, ModelStats])
        assert_type(await engine.tokenize("a"), list[int])
