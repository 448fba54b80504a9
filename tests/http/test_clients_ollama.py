"""The official client of Ollama's API, unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import ollama
import pydantic
import pytest
import tiny_model
from serving import ALIAS, SAID, SMOLLM2, ServerProcess

TEXT = "".join(SAID)
SAY = [{"role": "user", "content": "\ue001"}]
GREEDY = {"temperature": 0, "num_predict": 400}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url, trust_env=False) as client:
        yield client


def test_chat(client: ollama.Client) -> None:
    answer = client.chat(model="scripted", messages=SAY)
    assert (answer.message.role, answer.message.content, answer.model) == ("assistant", TEXT, "scripted")
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", len(SAID))
    assert answer.prompt_eval_count and answer.prompt_eval_count > 5
    assert answer.total_duration is not None and answer.created_at and answer.created_at.endswith("Z")
    cut = client.chat(model="scripted", messages=SAY, options={"num_predict": 2})
    assert (cut.message.content, cut.done_reason) == ("".join(SAID[:2]), "length")
    stopped = client.chat(model="scripted", messages=SAY, options={"stop": ["caf"]})
    assert (stopped.message.content, stopped.done_reason) == ("".join(SAID[:2]) + " ", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_how_long_it_took(client: ollama.Client, stream: bool) -> None:
    asked: Any = {"model": SMOLLM2, "messages": SAY, "options": {"num_predict": 4, "seed": 1}}
    *_, last = client.chat(stream=True, **asked) if stream else [client.chat(**asked)]
    assert last.total_duration and last.eval_duration and last.load_duration is not None
    assert last.total_duration >= last.load_duration + (last.prompt_eval_duration or 0) + last.eval_duration - 1e6
    embedded = client.embed(model=SMOLLM2, input="one")
    assert embedded.total_duration and embedded.total_duration >= (embedded.load_duration or 0)


def test_the_page_answers_what_looks_whether_a_server_runs(server: ServerProcess) -> None:
    assert server.request("HEAD", "/").status_code == server.get("/").status_code == 200


def test_a_chat_comes_in_lines(client: ollama.Client, server: ServerProcess) -> None:
    *lines, last = client.chat(model="scripted", messages=SAY, stream=True)
    assert [line.message.content for line in lines] == SAID
    assert not any(line.done for line in lines)
    assert (last.done, last.done_reason, last.message.content, last.eval_count) == (True, "stop", "", len(SAID))
    asked = {"model": "scripted", "messages": SAY}  # streamed where nothing else is said
    with httpx.Client(trust_env=False) as http, http.stream("POST", f"{server.url}/api/chat", json=asked) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        told = [json.loads(line) for line in reply.iter_lines()]
    assert "".join(line["message"]["content"] for line in told) == TEXT
    assert [line["done"] for line in told] == [False] * len(SAID) + [True]


def test_generate(client: ollama.Client) -> None:
    answer = client.generate(model="scripted", prompt="\ue001", system="Be brief.")
    assert (answer.response, answer.done_reason, answer.context) == (TEXT, "stop", None)
    assert "".join(line.response or "" for line in client.generate("scripted", "\ue001", stream=True)) == TEXT
    raw = client.generate(model="scripted", prompt="\ue000", raw=True)
    assert (raw.response, raw.eval_count) == (TEXT, len(SAID))
    assert "".join(line.response or "" for line in client.generate("scripted", "\ue000", raw=True, stream=True)) == TEXT


def test_logprobs(client: ollama.Client) -> None:
    for answer in (
        client.chat(model="scripted", messages=SAY, logprobs=True, top_logprobs=2),
        client.generate(model="scripted", prompt="\ue000", raw=True, logprobs=True, top_logprobs=2),
    ):
        assert answer.logprobs is not None
        assert [entry.token for entry in answer.logprobs][: len(SAID)] == SAID
        assert len(answer.logprobs[0].top_logprobs or ()) >= 2


def test_a_request_that_says_nothing_has_its_model_loaded(client: ollama.Client) -> None:
    assert client.generate(model="scripted").done_reason == "load"
    chat = client.chat(model="scripted")
    assert (chat.done, chat.done_reason, chat.message.content) == (True, "load", "")
    (line,) = client.generate(model="scripted", stream=True)
    assert (line.done_reason, line.response) == ("load", "")


async def test_the_asynchronous_client(server: ServerProcess) -> None:
    async with ollama.AsyncClient(host=server.url, trust_env=False) as client:
        assert (await client.chat(model="scripted", messages=SAY)).message.content == TEXT
        lines = [line async for line in await client.chat(model="scripted", messages=SAY, stream=True)]
        assert "".join(line.message.content or "" for line in lines) == TEXT
        assert (await client.generate(model="scripted", prompt="\ue001")).response == TEXT
        assert len((await client.embed(model=SMOLLM2, input="one")).embeddings[0]) == 576


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    age: int = pydantic.Field(ge=0, le=120)
    mood: Literal["glad", "sad"]


def test_an_answer_in_a_format(client: ollama.Client) -> None:
    ask = [{"role": "user", "content": "Describe a person."}]
    answer = client.chat(model=SMOLLM2, messages=ask, format=Person.model_json_schema(), options=GREEDY)
    person = Person.model_validate_json(answer.message.content or "")
    lines = client.generate(
        model=SMOLLM2, prompt="Describe a person.", format=Person.model_json_schema(), options=GREEDY, stream=True
    )
    assert Person.model_validate_json("".join(line.response or "" for line in lines)) == person
    assert isinstance(json.loads(client.chat(SMOLLM2, ask, format="json", options=GREEDY).message.content or ""), dict)


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Where.
    """
    return f"sunny in {city}"


def get_time() -> str:
    """The time."""
    return "noon"


CALLS = """Hm.<tool_call>
{"name": "get_weather", "arguments": {"city": "Bonn"}}
</tool_call>
<tool_call>
{"name": "get_time", "arguments": {}}
</tool_call>"""


@pytest.fixture
def calling(start: Callable[..., ServerProcess], tiny_dir: Path) -> Iterator[ollama.Client]:
    """Of a server whose model answers one question with a word and two calls, another with SAID."""
    scripts = [[bytes([byte]) for byte in CALLS.encode()], SAID]
    tiny_model.write_scripted(tiny_dir / "calling.gguf", scripts, n_ctx_train=2048, common=("assistant",))
    server = start(model="calling", n_ctx=2048).wait_ready()
    with ollama.Client(host=server.url, trust_env=False) as client:
        yield client


def test_tools_and_back(calling: ollama.Client) -> None:
    asked: dict[str, Any] = {"model": "calling", "tools": [get_weather, get_time]}
    messages: list[Any] = [{"role": "user", "content": "How is it? \ue001"}]
    message = calling.chat(**asked, messages=messages).message
    assert message.tool_calls is not None and message.content == "Hm."
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    assert calls == [("get_weather", {"city": "Bonn"}), ("get_time", {})]

    *lines, last = calling.chat(**asked, messages=messages, stream=True)
    assert [call for line in lines for call in line.message.tool_calls or ()] == message.tool_calls
    assert "".join(line.message.content or "" for line in lines) == "Hm." and last.done_reason == "stop"
    cut = calling.chat(**asked, messages=messages, options={"num_predict": 60})
    assert (cut.message.content, cut.message.tool_calls, cut.done_reason) == ("Hm.", None, "length")

    messages = [
        {"role": "user", "content": "How is it?"},  # a scripted model may see one marker only
        message,
        {"role": "tool", "tool_name": "get_time", "content": get_time()},
        {"role": "tool", "tool_name": "get_weather", "content": get_weather("Bonn")},
        {"role": "user", "content": "\ue003"},
    ]
    assert calling.chat(**asked, messages=messages).message.content == TEXT


def test_embeddings(client: ollama.Client) -> None:
    one, two, again = client.embed(model=SMOLLM2, input=["one", "two", "one"], truncate=True).embeddings
    assert len(one) == 576 and one == pytest.approx(again, abs=1e-4) and one != pytest.approx(two, abs=1e-2)
    assert sum(x * x for x in one) == pytest.approx(1, abs=1e-3)
    assert client.embeddings(model=SMOLLM2, prompt="one").embedding == pytest.approx(one, abs=1e-4)


def test_models(client: ollama.Client, server: ServerProcess) -> None:
    listed = {model.model: model for model in client.list().models}
    assert {f"{SMOLLM2}:latest", f"{ALIAS}:latest", "scripted:latest"} <= set(listed)
    small = listed[f"{SMOLLM2}:latest"]
    assert small.details is not None and small.size and small.modified_at
    assert (small.details.family, small.details.parameter_size) == ("llama", "134.5M")
    digests = {model.digest for model in listed.values() if not (model.model or "").startswith(ALIAS)}
    assert len(digests) == len(listed) - 1 and {len(digest or "") for digest in digests} == {64}
    shown = client.show(f"{SMOLLM2}:latest")
    assert {"completion", "tools", "embedding"} == set(shown.capabilities or ())
    assert shown.modelinfo is not None and "<|im_start|>" in (shown.template or "")
    assert shown.modelinfo["general.architecture"] == "llama" and shown.modelinfo["llama.context_length"] == 8192
    assert isinstance(shown.modelinfo["general.parameter_count"], int)
    assert f"FROM {SMOLLM2}" in (shown.modelfile or "") and "temperature" in (shown.parameters or "")
    loaded = {model.model: model for model in client.ps().models}[f"{SMOLLM2}:latest"]
    assert (loaded.context_length, loaded.size_vram) == (2048, 0) and loaded.size and loaded.expires_at
    assert server.get("/api/version").json()["version"].count(".") == 2
    assert client.chat(model=f"{SMOLLM2}:latest", messages=SAY, options={"num_predict": 1}).model == f"{SMOLLM2}:latest"


def test_errors(client: ollama.Client, server: ServerProcess) -> None:
    with pytest.raises(ollama.ResponseError, match="nope") as missing:
        client.chat(model="nope", messages=SAY)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="nope"):
        client.show("nope")
    with pytest.raises(ollama.ResponseError, match=r"^options\.num_predict: .*1\.5") as bad:
        client.chat(model="scripted", messages=SAY, options={"num_predict": 1.5})
    assert bad.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="cannot fill a gap"):
        next(client.generate(model="scripted", prompt="x", suffix="y", stream=True))
    missing = server.post("/api/pull", {"model": "x"})
    assert missing.status_code == 404 and "polargrid-local pull" in missing.json()["error"]
    ignored = server.post("/api/chat", {"model": "scripted", "messages": SAY, "options": {"num_ctx": 9}, "new": 1})
    assert json.loads(ignored.headers["x-polargrid-ignored"]) == ["options.num_ctx", "new"]


def test_a_stream_that_fails_ends_with_an_error(start: Callable[..., ServerProcess]) -> None:
    server = start(request_timeout_s=1).wait_ready()
    with ollama.Client(host=server.url, trust_env=False) as client:
        with pytest.raises(ollama.ResponseError, match="took longer"):
            for line in client.generate(model="random", prompt="the", stream=True):
                assert not line.done
