"""Libraries that make objects and calls of answers, unchanged, on the real model: instructor, pydantic-ai, smolagents,
LangChain. Every schema is bounded, so that a small model comes to an end of it, and every call is forced."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import httpx
import openai
import pydantic
import pytest
from serving import SMOLLM2, ServerProcess


class Person(pydantic.BaseModel):
    """A person."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: Annotated[str, pydantic.Field(max_length=12)]
    age: Annotated[int, pydantic.Field(ge=0, le=120)]
    mood: Literal["glad", "sad"]


ASK = "Describe a person."
MESSAGES: Any = [{"role": "user", "content": ASK}]
LIMITS: Any = {"max_tokens": 900, "seed": 1}
CITIES = {"Paris", "Rome"}


def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tells the weather.

    Args:
        city: where
    """
    return f"sunny in {city}"


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS"])
def test_instructor(client: openai.OpenAI, mode: str) -> None:
    import instructor

    structured = instructor.from_openai(client, mode=instructor.Mode[mode])
    asked: Any = {"model": SMOLLM2, "response_model": Person, "messages": MESSAGES, "max_retries": 0, **LIMITS}
    assert isinstance(structured.create(**asked), Person)
    parts = list(structured.create_partial(**asked))
    assert Person.model_validate(parts[-1].model_dump())
    assert any(part.mood is None for part in parts)  # some came before the answer was complete


def test_instructor_with_mere_json(client: openai.OpenAI) -> None:
    import instructor

    class Anything(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")

    structured = instructor.from_openai(client, mode=instructor.Mode.JSON)
    answer = structured.create(model=SMOLLM2, response_model=Anything, messages=MESSAGES, max_retries=0, **LIMITS)
    assert isinstance(answer, Anything)


async def test_instructor_async(async_client: openai.AsyncOpenAI) -> None:
    import instructor

    structured = instructor.from_openai(async_client, mode=instructor.Mode.JSON_SCHEMA)
    person = await structured.create(model=SMOLLM2, response_model=Person, messages=MESSAGES, max_retries=0, **LIMITS)
    assert isinstance(person, Person)


@pytest.mark.parametrize("form", ["NativeOutput", "ToolOutput"])
async def test_pydantic_ai_output(async_client: openai.AsyncOpenAI, form: str) -> None:
    import pydantic_ai
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(SMOLLM2, provider=OpenAIProvider(openai_client=async_client))
    output = getattr(pydantic_ai, form)(Person, strict=True)
    agent = pydantic_ai.Agent(model, output_type=output, model_settings=LIMITS)
    result = await agent.run(ASK)
    assert isinstance(result.output, Person)
    async with agent.run_stream(ASK) as stream:
        seen = [person async for person in stream.stream_output(debounce_by=None)]
    assert seen[-1] == result.output


async def test_pydantic_ai_tools(async_client: openai.AsyncOpenAI) -> None:
    from pydantic_ai import Tool
    from pydantic_ai.direct import model_request
    from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(SMOLLM2, provider=OpenAIProvider(openai_client=async_client))
    asked = ModelRequest.user_text_prompt("How is the weather?")
    tools = ModelRequestParameters(function_tools=[Tool(weather).tool_def], allow_text_output=False)
    reply = await model_request(model, [asked], model_settings=LIMITS, model_request_parameters=tools)
    calls = [part for part in reply.parts if isinstance(part, ToolCallPart)]
    assert calls and all(call.tool_name == "weather" and call.args_as_dict()["city"] in CITIES for call in calls)
    told = [ToolReturnPart(call.tool_name, "sunny", call.tool_call_id) for call in calls]
    last = await model_request(model, [asked, reply, ModelRequest(told)], model_settings={"max_tokens": 8})
    assert last.text


def test_smolagents(server: ServerProcess) -> None:
    from smolagents import OpenAIServerModel

    model = OpenAIServerModel(SMOLLM2, api_base=f"{server.url}/v1", api_key="any", **LIMITS)
    with model.client:
        schema = {"name": "person", "schema": Person.model_json_schema(), "strict": True}
        answer = model.generate(MESSAGES, response_format={"type": "json_schema", "json_schema": schema})
        assert Person.model_validate_json(answer.content)


def test_smolagents_calls_its_tools(server: ServerProcess) -> None:
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    model = OpenAIServerModel(
        SMOLLM2, api_base=f"{server.url}/v1", api_key="any", parallel_tool_calls=False, max_tokens=400, seed=1
    )
    with model.client:
        agent = ToolCallingAgent([tool(weather)], model, max_steps=1, verbosity_level=0)
        agent.run("How is the weather?")
        said = agent.memory.steps[1].model_output_message
    assert said is not None and said.tool_calls is not None
    [call] = said.tool_calls
    assert (call.function.name, *call.function.arguments)[:2] in {("weather", "city"), ("final_answer", "answer")}


def test_langchain_tools(server: ServerProcess) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{server.url}/v1", api_key="any", model=SMOLLM2, max_retries=0, **LIMITS)
    bound = model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    asked = HumanMessage("How is the weather?")
    answer = bound.invoke([asked])
    [call] = answer.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in CITIES
    chunks = list(bound.stream([asked]))
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined += chunk
    assert [(c["name"], c["args"]) for c in joined.tool_calls] == [(call["name"], call["args"])]
    assert joined.response_metadata["finish_reason"] == "tool_calls"
    last = model.bind(max_tokens=8).invoke([asked, answer, ToolMessage("sunny", tool_call_id=call["id"])])
    assert last.content
    assert isinstance(model.with_structured_output(Person, method="function_calling").invoke(ASK), Person)


async def test_langchain_tools_async(server: ServerProcess) -> None:
    from langchain_openai import ChatOpenAI

    async with httpx.AsyncClient() as http_async_client:
        model = ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key="any",
            model=SMOLLM2,
            max_retries=0,
            http_async_client=http_async_client,
            **LIMITS,
        )
        bound = model.bind_tools([weather], tool_choice="weather")
        answer = await bound.ainvoke("How is the weather?")
        assert answer.tool_calls and {call["args"]["city"] for call in answer.tool_calls} <= CITIES
