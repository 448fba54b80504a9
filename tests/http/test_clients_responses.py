"""Clients of OpenAI's Responses API, unchanged: openai, pydantic-ai, the OpenAI Agents SDK and LangChain."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pydantic
import pytest
import tiny_model
from openai._models import FinalRequestOptions
from serving import SAID, SMOLLM2, ServerProcess

from polargrid_local.service.endpoints import ENDPOINTS

SAY = "\ue001"
TEXT = "".join(SAID)
ASK = "Describe a person."
LIMITS: Any = {"max_output_tokens": 900, "extra_body": {"seed": 1}}


class Person(pydantic.BaseModel):
    """A person."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: Annotated[str, pydantic.Field(max_length=12)]
    age: Annotated[int, pydantic.Field(ge=0, le=120)]
    mood: Literal["glad", "sad"]


CITIES = {"Paris", "Rome"}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": sorted(CITIES)}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tells the weather.

    Args:
        city: where
    """
    return f"sunny in {city}"


# --- openai -----------------------------------------------------------------------------------------------------------


def test_a_response(client: openai.OpenAI) -> None:
    said = client.responses.create(model="scripted", input=SAY, instructions="Be brief.", metadata={"a": "b"})
    assert (said.output_text, said.status, said.model, said.metadata) == (TEXT, "completed", "scripted", {"a": "b"})
    assert said.usage is not None
    assert said.usage.output_tokens == len(SAID)
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    assert said.usage.input_tokens_details.cached_tokens <= said.usage.input_tokens
    assert said.usage.output_tokens_details.reasoning_tokens == 0
    type(said).model_validate(said.model_dump())


def test_fields_of_the_engine_pass(client: openai.OpenAI) -> None:
    said = client.responses.create(model="scripted", input=SAY, extra_body={"stop": "caf", "seed": 1})
    assert said.output_text == "".join(SAID[:2]) + " "


def test_a_stream_is_its_whole_answer(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="scripted", input=SAY, stream=True))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == SAID
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == TEXT
    plain = client.responses.create(model="scripted", input=SAY)
    for response in (plain, last.response):
        assert response.usage is not None
        response.id, response.created_at, response.output[0].id = "", 0, ""
        response.usage.input_tokens_details.cached_tokens = 0
    assert plain == last.response


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="scripted", input=SAY) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == TEXT


def test_logprobs(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "input": SAY, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    [message] = client.responses.create(**asked).output
    *_, last = client.responses.create(stream=True, **asked)
    for item in (message, last.response.output[0]):
        told = item.content[0].logprobs
        assert [entry.token for entry in told] == SAID
        assert {len(entry.top_logprobs) for entry in told} == {2}


def test_a_cut_answer_is_incomplete(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "input": SAY, "max_output_tokens": 2}
    said = client.responses.create(**asked)
    *_, last = client.responses.create(stream=True, **asked)
    assert last.type == "response.incomplete"
    for response in (said, last.response):
        assert (response.output_text, response.status) == ("".join(SAID[:2]), "incomplete")
        assert response.incomplete_details.reason == "max_output_tokens"
    filtered = client.responses.create(model="scripted", input=SAY, extra_body={"content_filter": ["line"]})
    assert filtered.incomplete_details is not None
    assert filtered.incomplete_details.reason == "content_filter"


def test_an_input_is_counted(client: openai.OpenAI) -> None:
    first = client.responses.create(model="scripted", input="Hello", max_output_tokens=3)
    for more in ({}, {"instructions": "Be brief."}, {"previous_response_id": first.id}, {"tools": [WEATHER]}):
        asked: Any = {"model": "scripted", "input": SAY, **more}
        usage = client.responses.create(max_output_tokens=1, **asked).usage
        counted = client.responses.input_tokens.count(**asked)
        assert usage is not None and counted.input_tokens == usage.input_tokens
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.input_tokens.count(model="scripted", input=SAY, tools=[{"type": "web_search"}])
    assert bad.value.param == "tools[0].type"


def test_what_has_ended_cannot_be_cancelled(client: openai.OpenAI) -> None:
    said = client.responses.create(model="scripted", input=SAY)
    with pytest.raises(openai.BadRequestError, match="has ended"):
        client.responses.cancel(said.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_x")
    with pytest.raises(openai.NotFoundError, match="POST /v1/responses"):
        client.responses.compact(model="scripted", input=SAY)


def test_every_path_of_the_client_says_what_to_use(client: openai.OpenAI) -> None:
    """Whatever the client asks of a path that is not served is an error of a kind that it knows."""
    served = {(endpoint.method, endpoint.path.replace("{model_id}", "{}").replace("{response_id}", "{}"))
              for endpoint in ENDPOINTS}  # fmt: skip
    tried = set()
    for method, path in client_paths():
        kind = (method, path if path.startswith(("/chat", "/responses", "/models")) else path.split("/")[1])
        if kind in tried or (method, re.sub(r"{\w+}", "{}", f"/v1{path}")) in served:
            continue
        tried.add(kind)
        with pytest.raises(openai.APIStatusError) as refused:
            client.request(
                object, FinalRequestOptions.construct(method=method.lower(), url=re.sub(r"{\w+}", "x", path))
            )
        assert refused.value.status_code in (404, 405, 501), path
        assert refused.value.code in ("not_found", "method_not_allowed", "not_supported")
        assert "no such path" not in refused.value.message, path
    assert len(tried) > 50


def client_paths() -> Iterator[tuple[str, str]]:
    """(method, path) of all that the methods of the client ask for."""
    call = re.compile(r'self\._(get|post|delete|get_api_list)\(\s*(?:path_template\(\s*)?f?"([^"?]+)"')
    for module in pkgutil.walk_packages(openai.resources.__path__, "openai.resources."):
        source = inspect.getsource(importlib.import_module(module.name))
        for method, path in call.findall(source):
            yield {"get_api_list": "GET"}.get(method, method.upper()), path


def test_a_conversation_is_kept(client: openai.OpenAI) -> None:
    first = client.responses.create(model="scripted", input="Hello", instructions="Be brief.", max_output_tokens=3)
    second = client.responses.create(model="scripted", input=SAY, previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == (TEXT, first.id)
    alone = client.responses.create(model="scripted", input=SAY, store=False)
    assert first.usage and second.usage and alone.usage
    assert second.usage.input_tokens > alone.usage.input_tokens
    items = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [(item.type, getattr(item, "role", None)) for item in items] == [
        ("message", "user"), ("message", "assistant"), ("message", "user")
    ]  # fmt: skip
    assert client.responses.retrieve(second.id) == second
    client.responses.delete(second.id)
    for gone in (second.id, alone.id, "resp_x"):
        with pytest.raises(openai.NotFoundError) as retrieved:
            client.responses.retrieve(gone)
        assert gone in retrieved.value.message
        with pytest.raises(openai.NotFoundError) as continued:
            client.responses.create(model="scripted", input=SAY, previous_response_id=gone)
        assert continued.value.param == "previous_response_id"


def test_an_answer_may_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.responses.create(model="scripted", input="Hello", max_output_tokens=3, store=False)
    asked: Any = [{"role": "user", "content": "Hello"}, *first.output, {"role": "user", "content": SAY}]
    assert client.responses.create(model="scripted", input=asked).output_text == TEXT
    kept = client.responses.create(model="scripted", input="Hello", max_output_tokens=3)
    asked[1:-1] = [{"type": "item_reference", "id": item.id} for item in kept.output]
    assert client.responses.create(model="scripted", input=asked).output_text == TEXT


def test_an_answer_as_an_object(client: openai.OpenAI) -> None:
    said = client.responses.parse(model=SMOLLM2, input=ASK, text_format=Person, **LIMITS)
    assert isinstance(said.output_parsed, Person)
    with client.responses.stream(model=SMOLLM2, input=ASK, text_format=Person, **LIMITS) as stream:
        assert stream.get_final_response().output_parsed == said.output_parsed


@pytest.mark.parametrize("kept", [True, False])
def test_tools(client: openai.OpenAI, kept: bool) -> None:
    asked: list[Any] = [{"role": "user", "content": "How is the weather?"}]
    tools: Any = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, **LIMITS}
    first = client.responses.create(model=SMOLLM2, input=asked, **tools)
    with client.responses.stream(model=SMOLLM2, input=asked, **tools) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        streamed = stream.get_final_response()
    for response in (first, streamed):
        [call] = [item for item in response.output if item.type == "function_call"]
        assert call.name == "weather" and pydantic.TypeAdapter(dict).validate_json(call.arguments)["city"] in CITIES
        assert response.status == "completed"
    assert call.arguments == "".join(pieces)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    told: Any = {"input": [result], "previous_response_id": streamed.id} if kept else {}
    told = told or {"input": [*asked, *streamed.output, result]}
    last = client.responses.create(model=SMOLLM2, tools=[WEATHER], tool_choice="none", max_output_tokens=8, **told)
    assert last.output_text


def test_reasoning_is_an_item_of_its_own(tmp_path: Path) -> None:
    template = tiny_model.CHATML + "{# <think> #}"
    said = ["<think>\n", "Let me", " see", "\n</think>", "\n\nHi", "!"]
    tiny_model.write_scripted(tmp_path / "thinks.gguf", [said], chat_template=template)
    server = ServerProcess(tmp_path, tmp_path / "log", model="thinks", n_threads=1)
    try:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            asked: Any = {"model": "thinks", "input": SAY, "include": ["message.output_text.logprobs"]}
            plain = client.responses.create(**asked)
            *events, last = client.responses.create(stream=True, **asked)
            for response in (plain, last.response):
                thought, message = response.output
                assert thought.type == "reasoning" and thought.content[0].text == "Let me see"
                assert response.output_text == "Hi!"
                assert response.usage.output_tokens_details.reasoning_tokens == 4  # to the end of its tags
                assert [entry.token for entry in message.content[0].logprobs] == ["\n\nHi", "!"]
            deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
            assert "".join(deltas) == "Let me see"
            again = client.responses.create(
                model="thinks",
                input=[{"role": "user", "content": "x"}, *plain.output, {"role": "user", "content": SAY}],
            )
            assert again.output_text == "Hi!"
    finally:
        server.stop()


def test_refusals(client: openai.OpenAI) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "none"}, "strict": True}}},
         "text.format.schema.type"),
    ]  # fmt: skip
    for fields, param in wrong:
        with pytest.raises(openai.BadRequestError) as bad:
            client.responses.create(**{"model": "scripted", "input": SAY, **fields})
        assert bad.value.param == param
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model=SMOLLM2, input="word " * 5000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="nope", input=SAY)
    assert missing.value.param == "model"


def test_what_was_ignored_is_named(server: ServerProcess) -> None:
    body = {"model": "scripted", "input": [{"role": "user", "content": SAY, "mood": "glad"}], "future": 1}
    for stream in (False, True):
        reply = server.post("/v1/responses", {**body, "stream": stream})
        assert sorted(json.loads(reply.headers["x-polargrid-ignored"])) == ["future", "input[0].mood"]
        assert b"[DONE]" not in reply.content


def test_an_engine_that_dies_fails_the_response(start: Callable[..., ServerProcess]) -> None:
    server = start(isolation="process").wait_ready()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        events = []
        for event in client.responses.create(model="random", input="x", stream=True, extra_body={"ignore_eos": True}):
            if event.type == "response.output_text.delta" and not any(e.type == event.type for e in events):
                os.kill(server.workers()[-1], signal.SIGKILL)
            events.append(event)
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None and last.response.error.code == "server_error"
    assert last.response.status == "failed"


# --- clients that stand on openai -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NativeOutput", "ToolOutput"])
async def test_pydantic_ai_output(async_client: openai.AsyncOpenAI, form: str) -> None:
    import pydantic_ai
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIResponsesModel(SMOLLM2, provider=OpenAIProvider(openai_client=async_client))
    output = getattr(pydantic_ai, form)(Person, strict=True)
    settings: Any = {"max_tokens": 900, "extra_body": {"seed": 1}}
    agent = pydantic_ai.Agent(model, output_type=output, model_settings=settings)
    result = await agent.run(ASK)
    assert isinstance(result.output, Person)
    async with agent.run_stream(ASK) as stream:
        seen = [person async for person in stream.stream_output(debounce_by=None)]
    assert seen[-1] == result.output


@pytest.mark.parametrize("kept", [True, False])
async def test_pydantic_ai_tools(async_client: openai.AsyncOpenAI, kept: bool) -> None:
    from pydantic_ai import Tool
    from pydantic_ai.direct import model_request
    from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIResponsesModel(SMOLLM2, provider=OpenAIProvider(openai_client=async_client))
    asked = ModelRequest.user_text_prompt("How is the weather?")
    tools = ModelRequestParameters(function_tools=[Tool(weather).tool_def], allow_text_output=False)
    settings: Any = {"max_tokens": 900, "extra_body": {"seed": 1}}
    reply = await model_request(model, [asked], model_settings=settings, model_request_parameters=tools)
    calls = [part for part in reply.parts if isinstance(part, ToolCallPart)]
    assert calls and all(call.tool_name == "weather" and call.args_as_dict()["city"] in CITIES for call in calls)
    told = ModelRequest([ToolReturnPart(call.tool_name, "sunny", call.tool_call_id) for call in calls])
    more: Any = {"max_tokens": 8, **({"openai_previous_response_id": "auto"} if kept else {})}
    last = await model_request(model, [asked, reply, told], model_settings=more)
    assert last.text


async def test_openai_agents(async_client: openai.AsyncOpenAI) -> None:
    import agents

    agents.set_tracing_disabled(True)
    model = agents.OpenAIResponsesModel(SMOLLM2, openai_client=async_client)
    settings = agents.ModelSettings(max_tokens=900, extra_body={"seed": 1})
    agent = agents.Agent(name="a", instructions="Be brief.", model=model, model_settings=settings, output_type=Person)
    said = await agents.Runner.run(agent, ASK)
    assert isinstance(said.final_output, Person)
    streamed = agents.Runner.run_streamed(agent, ASK)
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert Person.model_validate_json("".join(deltas)) == streamed.final_output == said.final_output


@pytest.mark.parametrize("streaming", [False, True])
async def test_openai_agents_call_tools(async_client: openai.AsyncOpenAI, streaming: bool) -> None:
    import agents

    agents.set_tracing_disabled(True)
    asked: list[str] = []

    @agents.function_tool
    def tell_weather(city: Literal["Paris", "Rome"]) -> str:
        """Tells the weather."""
        asked.append(city)
        return f"sunny in {city}"

    body = {"seed": 1, "stop": [".", "\n"]}  # words, where they come, are few
    settings = agents.ModelSettings(tool_choice="required", parallel_tool_calls=False, temperature=0, extra_body=body)
    model = agents.OpenAIResponsesModel(SMOLLM2, openai_client=async_client)
    agent = agents.Agent(name="a", model=model, model_settings=settings, tools=[tell_weather])
    run: Any = {"starting_agent": agent, "input": "How is the weather?", "max_turns": 2}
    with contextlib.suppress(agents.MaxTurnsExceeded):  # once a tool was called, another call may come or none
        if streaming:
            async for _ in agents.Runner.run_streamed(**run).stream_events():
                pass
        else:
            await agents.Runner.run(**run, auto_previous_response_id=True)
    assert asked and set(asked) <= CITIES


def test_langchain(server: ServerProcess) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="any", model=SMOLLM2, max_retries=0, use_responses_api=True,
        max_tokens=900, extra_body={"seed": 1},
    )  # fmt: skip
    asked = HumanMessage("How is the weather?")
    bound = model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    answer = bound.invoke([asked])
    [call] = answer.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in CITIES
    first, *rest = bound.stream([asked])
    for chunk in rest:
        first += chunk
    assert [(c["name"], c["args"]) for c in first.tool_calls] == [(call["name"], call["args"])]
    told = [asked, answer, ToolMessage("sunny", tool_call_id=call["id"])]
    assert model.bind(max_tokens=8).invoke(told).content
    assert isinstance(model.with_structured_output(Person).invoke(ASK), Person)
