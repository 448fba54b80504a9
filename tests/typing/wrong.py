"""What type checkers must refuse: every line that ends with `# wrong`, and no other (tests/unit/test_typing.py)."""

from __future__ import annotations

from pydantic import BaseModel

from polargrid_local import AsyncEngine, Engine
from polargrid_local.server import create_app
from polargrid_local.types import MessageParam


class SdkRequest(BaseModel):
    model: str = "m"


def keys(engine: Engine) -> None:
    for chunk in engine.chat_completion_stream(messages=[]):
        chunk["choises"]  # wrong
        chunk["choices"][0]["text"]  # wrong
        chunk["choices"][0]["delta"]["contents"]  # wrong
    for piece in engine.completion_stream(prompt="a"):
        piece["choices"][0]["delta"]  # wrong
    reply = engine.chat_completion(messages=[])
    reply["choices"][0]["delta"]  # wrong
    reply["usage"]["prompt_token"]  # wrong
    engine.completion(prompt="a")["choices"][0]["message"]  # wrong
    engine.generate("a")["choices"]  # wrong
    engine.embeddings(input="a")["embedding"]  # wrong
    engine.embeddings(input="a")["data"][0]["embedding"].upper()  # wrong
    engine.rerank("q", ["a"])["data"]  # wrong
    engine.info()["n_context"]  # wrong
    engine.stats()["m"]["n_tokens"]  # wrong
    engine.stats()["n_running"]["m"]  # wrong
    engine.health()["healthy"]  # wrong
    engine.list_models()["models"]  # wrong
    engine.get_gpu_status()["gpu"]  # wrong
    stream = engine.chat_completion_stream(messages=[])
    stream.timings["first_token"]  # wrong
    stream.usage["tokens"]  # wrong
    stream.usages  # wrong


def fields(engine: Engine) -> None:
    engine.chat_completion(messages=[], temprature=0)  # wrong
    engine.chat_completion(messages=[], temperature="hot")  # wrong
    engine.chat_completion(messages=[], prompt="a")  # wrong
    engine.chat_completion(messages="Hi")  # wrong
    engine.chat_completion(messages=[{"rôle": "user", "content": "Hi"}])  # wrong
    engine.chat_completion(messages=[{"role": "robot", "content": "Hi"}])  # wrong
    engine.chat_completion(messages=[], stream_options={"usage": True})  # wrong
    engine.chat_completion()  # wrong
    engine.chat_completion("Hi")  # wrong
    engine.chat_completion({"messages": [], "max_token": 5})  # wrong
    engine.chat_completion({"messages": []}, max_token=5)  # wrong
    engine.chat_completion(SdkRequest(), max_token=5)  # wrong
    engine.chat_completion_stream(messages=[], top_q=1)  # wrong
    engine.completion(prompt="a", messages=[])  # wrong
    engine.completion(prompt=3)  # wrong
    engine.completion(prompt="a", prediction={"content": "a"})  # wrong
    engine.generate("a", prediction=3)  # wrong
    engine.completion_stream({"promt": "a"})  # wrong
    engine.completion_stream(prompt="a", seed="x")  # wrong
    engine.generate("a", top_k=1)  # wrong
    engine.generate({"promt": "a"})  # wrong
    engine.embeddings(input="a", encoding_format="int8")  # wrong
    engine.embeddings(inputs="a")  # wrong
    engine.embeddings({"inputs": "a"})  # wrong
    engine.rerank("q")  # wrong
    engine.rerank("q", ["a"], top=1)  # wrong
    engine.rerank("q", [{"txt": "a"}])  # wrong
    engine.run_tools([], [print], temprature=0)  # wrong
    engine.run_tools([], [print], messages=[])  # wrong
    engine.run_tools([], [3])  # wrong
    engine.run_tools([], [print], raises=KeyboardInterrupt)  # wrong
    engine.run_tools([], [print]).parsed.name  # wrong
    engine.load_model({"model": "m"})  # wrong
    engine.load_model("m", n_ctx=5)  # wrong
    engine.unload_model({"name": "m"})  # wrong
    engine.purge_gpu({"forced": True})  # wrong
    message: MessageParam = {"role": "user", "contents": "Hi"}  # wrong
    engine.tokenize(messages=[message], unlimitted=True)  # wrong


def options() -> None:
    Engine("m", n_cxt=5)  # wrong
    Engine("m", n_ctx="5")  # wrong
    Engine("m", cache_type="q4_0")  # wrong
    Engine("m", speculate="on")  # wrong
    AsyncEngine("m", stream=2)  # wrong


def server(engine: Engine) -> None:
    create_app(engine)  # wrong


async def tasks(engine: AsyncEngine) -> None:
    await AsyncEngine.create("m", n_cxt=5)  # wrong
    async for chunk in engine.chat_completion_stream(messages=[]):
        chunk["choises"]  # wrong
    async for piece in engine.completion_stream(prompt="a", top_p="x"):  # wrong
        piece["choices"]
    (await engine.chat_completion(messages=[]))["choice"]  # wrong
    await engine.chat_completion(messages=[], seeds=1)  # wrong
    await engine.completion({"prompt": "a", "seeds": 1})  # wrong
    await engine.embeddings(input="a", dimension=5)  # wrong
    engine.run_tools([], [print]).text  # wrong
    await engine.run_tools([], [print], max_round=5)  # wrong
    async for event in engine.run_tools([], [print], stream=True):
        event["chunk"]  # wrong
    await engine.generate(promt="a")  # wrong
    await engine.rerank("q", ["a"], topn=1)  # wrong
    (await engine.health())["healthy"]  # wrong
    engine.health()["status"]  # wrong
