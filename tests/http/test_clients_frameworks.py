"""Frameworks over the APIs of Anthropic and Ollama, unchanged, on the real model: LangChain, pydantic-ai, litellm and
LlamaIndex; and the command `llm`. Every call of a tool is forced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from serving import SAID, SMOLLM2, ServerProcess

TEXT = "".join(SAID)
SAY = "\ue001"  # what the scripted model answers with SAID
ASK = "How is the weather?"
CITIES = {"Paris", "Rome"}
PEERS = "needs {}: pip install 'polargrid-local[test-peers]'"
APART = "needs {}, in an environment of its own"  # it goes with no version of openai that the other clients go with


class Mood(pydantic.BaseModel):
    """Of a person."""

    model_config = pydantic.ConfigDict(extra="forbid")
    mood: Literal["glad", "sad"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tells the weather.

    Args:
        city: where
    """
    return f"sunny in {city}"


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": sorted(CITIES)}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


# --- LangChain --------------------------------------------------------------------------------------------------------


def langchain_answers(scripted: Any, model: Any) -> None:
    """Plain, streamed, and to a form."""
    answer = scripted.invoke(SAY)
    assert (answer.content, answer.usage_metadata["output_tokens"]) == (TEXT, len(SAID))
    first, *rest = scripted.stream(SAY)
    for chunk in rest:
        first += chunk
    assert (first.text, first.usage_metadata["output_tokens"]) == (TEXT, len(SAID))
    assert isinstance(model.with_structured_output(Mood).invoke("Describe a person."), Mood)


def test_langchain_by_ollama(server: ServerProcess) -> None:
    from langchain_ollama import ChatOllama

    scripted, model = (
        ChatOllama(base_url=server.url, model=name, temperature=0, num_predict=200) for name in ("scripted", SMOLLM2)
    )
    langchain_answers(scripted, model)
    for client in (scripted._client, model._client):  # which it never closes itself
        assert client is not None
        client.close()


def test_langchain_by_anthropic(server: ServerProcess) -> None:
    from langchain_anthropic import ChatAnthropic
    from langchain_core.messages import HumanMessage, ToolMessage

    at: Any = {"base_url": server.url, "api_key": "any", "max_tokens": 200, "max_retries": 0}
    scripted, model = (ChatAnthropic(model=name, **at) for name in ("scripted", SMOLLM2))
    langchain_answers(scripted, model)
    bound = model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    asked = HumanMessage(ASK)
    answer = bound.invoke([asked])
    [call] = answer.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in CITIES
    first, *rest = bound.stream([asked])
    for chunk in rest:
        first += chunk
    assert [c["name"] for c in first.tool_calls] == ["weather"] and first.tool_calls[0]["args"]["city"] in CITIES
    told = [asked, answer, ToolMessage("sunny", tool_call_id=call["id"])]
    assert model.bind(max_tokens=8).invoke(told).content


# --- pydantic-ai ------------------------------------------------------------------------------------------------------


async def pydantic_ai_answers(model: Any, scripted: Any, settings: Any) -> None:
    """Plain, streamed, to a form, and with a call."""
    from pydantic_ai import Agent, Tool
    from pydantic_ai.direct import model_request
    from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
    from pydantic_ai.models import ModelRequestParameters

    assert (await Agent(scripted).run(SAY)).output == TEXT
    async with Agent(scripted).run_stream(SAY) as stream:
        assert [piece async for piece in stream.stream_text(delta=True, debounce_by=None)] == SAID
    mood = await Agent(model, output_type=Mood, model_settings=settings).run("Describe a person.")
    assert isinstance(mood.output, Mood)
    asked = ModelRequest.user_text_prompt(ASK)
    tools = ModelRequestParameters(function_tools=[Tool(weather).tool_def], allow_text_output=False)
    reply = await model_request(model, [asked], model_settings=settings, model_request_parameters=tools)
    calls = [part for part in reply.parts if isinstance(part, ToolCallPart)]
    assert calls and all(call.tool_name == "weather" and call.args_as_dict()["city"] in CITIES for call in calls)
    told = ModelRequest([ToolReturnPart(call.tool_name, "sunny", call.tool_call_id) for call in calls])
    assert (await model_request(model, [asked, reply, told], model_settings={"max_tokens": 8})).text


async def test_pydantic_ai_by_its_ollama_provider(async_client: openai.AsyncOpenAI) -> None:
    from pydantic_ai.models.ollama import OllamaModel
    from pydantic_ai.providers.ollama import OllamaProvider

    provider = OllamaProvider(openai_client=async_client)
    models = (OllamaModel(name, provider=provider) for name in (SMOLLM2, "scripted"))
    await pydantic_ai_answers(*models, {"max_tokens": 400, "seed": 1})


async def test_pydantic_ai_by_anthropic(server: ServerProcess) -> None:
    import anthropic

    pytest.importorskip("pydantic_ai", minversion="2.68", reason=APART.format("pydantic-ai-slim[anthropic]>=2.68"))
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        provider = AnthropicProvider(anthropic_client=client)
        models = (AnthropicModel(name, provider=provider) for name in (SMOLLM2, "scripted"))
        await pydantic_ai_answers(*models, {"max_tokens": 400})


# --- litellm ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("route", ["openai/{}", "openai/responses/{}", "anthropic/{}", "ollama_chat/{}", "ollama/{}"])
def test_litellm(server: ServerProcess, route: str) -> None:
    litellm = pytest.importorskip("litellm", reason=PEERS.format("litellm"))
    base = f"{server.url}/v1" if route.startswith("openai/") else server.url
    at: Any = {"api_base": base, "api_key": "any", "max_retries": 0, "temperature": 0, "max_tokens": 200}
    writes_prompts = route == "ollama/{}"  # which the scripted model does not know
    asked: Any = {"model": route.format(SMOLLM2 if writes_prompts else "scripted"), **at}
    asked["messages"] = [{"role": "user", "content": ASK if writes_prompts else SAY}]
    answer = litellm.completion(**asked)
    text = answer.choices[0].message.content
    chunks = list(litellm.completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 0
    assert text == TEXT or (writes_prompts and text)
    if route.startswith("ollama"):
        return  # it passes no choice of tools on
    forced = {"type": "function", "function": {"name": "weather"}}
    asked = {"model": route.format(SMOLLM2), "messages": [{"role": "user", "content": ASK}], **at}
    reply = litellm.completion(**asked, tools=[WEATHER], tool_choice=forced)
    calls = reply.choices[0].message.tool_calls
    assert calls and {json.loads(call.function.arguments)["city"] for call in calls} <= CITIES


def test_a_body_without_a_type_is_json_from_programs_alone(server: ServerProcess) -> None:
    """As litellm sends it to Ollama; a browser would send one of a foreign page's without asking."""
    body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": SAY}], "stream": False})
    reply = server.request("POST", "/api/chat", content=body)
    assert reply.request.headers.get("content-type") is None
    assert reply.json()["message"]["content"] == TEXT
    for name, value in {"Origin": server.url, "Sec-Fetch-Mode": "no-cors", "Referer": server.url}.items():
        assert server.request("POST", "/api/chat", content=body, headers={name: value}).status_code == 400
    assert server.request("POST", "/v1/chat/completions", content=body).status_code == 400


# --- LlamaIndex -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("kind", ["openai_like", "ollama"])
def test_llama_index(server: ServerProcess, kind: str) -> None:
    reason = (APART if kind == "openai_like" else PEERS).format(f"llama-index-llms-{kind.replace('_', '-')}")
    module = pytest.importorskip(f"llama_index.llms.{kind}", reason=reason)

    def model(name: str) -> Any:
        if kind == "ollama":
            return module.Ollama(model=name, base_url=server.url, additional_kwargs={"num_predict": 200})
        return module.OpenAILike(
            model=name, api_base=f"{server.url}/v1", api_key="any", is_chat_model=True, max_tokens=200, max_retries=0
        )

    scripted = model("scripted")
    assert scripted.complete(SAY).text == TEXT
    assert "".join(piece.delta or "" for piece in scripted.stream_complete(SAY)) == TEXT
    if kind == "ollama":
        assert isinstance(model(SMOLLM2).as_structured_llm(Mood).complete("Describe a person.").raw, Mood)


# --- llm --------------------------------------------------------------------------------------------------------------


def test_llm(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, with this server's models told in its own file of settings."""
    from click.testing import CliRunner
    from llm.cli import cli

    names = ("scripted", SMOLLM2)
    models = [{"model_id": n, "model_name": n, "api_base": f"{server.url}/v1", "supports_schema": True} for n in names]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # YAML is JSON, too
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "any")

    def said(*words: str) -> str:
        done = CliRunner().invoke(cli, ["prompt", *words])
        assert done.exit_code == 0, done.output
        return done.output.removesuffix("\n")

    assert said("-m", "scripted", SAY) == TEXT  # streamed
    assert said("-m", "scripted", "--no-stream", SAY) == TEXT
    schema = {**Mood.model_json_schema(), "additionalProperties": False}
    asked = ("-m", SMOLLM2, "-o", "temperature", "0", "-o", "max_tokens", "200", "--schema", json.dumps(schema))
    assert Mood.model_validate_json(said(*asked, "Describe a person."))
