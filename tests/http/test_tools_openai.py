"""Forced calls of a real model through OpenAI's own client: plain, streamed, and many at once."""

from __future__ import annotations

import concurrent.futures
import json
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from serving import SMOLLM2

CLOSED = {"additionalProperties": False}


def tool(name: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*required], **CLOSED}
    return {"type": "function", "function": {"name": name, "description": f"To {name}.", "parameters": schema}}


WORD = {"type": "string", "maxLength": 12}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
TOOLS = [
    tool("weather", {"city": WORD, "days": DIGIT}, "city"),
    tool("weather_all", {"unit": {"enum": ["c", "f"]}}, "unit"),
    tool("add", {"a": DIGIT, "b": DIGIT}, "a", "b"),
    tool("list", {"names": {"type": "array", "items": WORD, "minItems": 1, "maxItems": 2}}, "names"),
    tool("nest", {"größe": {"type": "object", "properties": {"x": DIGIT}, **CLOSED, "required": ["x"]}}, "größe"),
    tool("maybe", {"note": {"anyOf": [WORD, {"type": "null"}]}}, "note"),
    tool("flag", {"on": {"type": "boolean"}}, "on"),
    tool("now", {}),
]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


def options(choice: Any, seed: int = 1, tools: Any = TOOLS) -> dict[str, Any]:
    return {
        "model": SMOLLM2,
        "messages": [{"role": "user", "content": "What is the weather in Bonn?"}],
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 300,
        "seed": seed,
        "temperature": 1,
    }


def fits(name: str, arguments: str) -> None:
    Draft202012Validator(SCHEMAS[name]).validate(json.loads(arguments))


@pytest.mark.parametrize("name", [None, *SCHEMAS])
def test_a_forced_call_plain_and_streamed(client: openai.OpenAI, name: str | None) -> None:
    choice = "required" if name is None else {"type": "function", "function": {"name": name}}
    plain = client.chat.completions.create(**options(choice)).choices[0]
    [call] = plain.message.tool_calls or []
    assert plain.finish_reason == "tool_calls" and plain.message.content is None
    assert name in (None, call.function.name)
    fits(call.function.name, call.function.arguments)
    with client.chat.completions.stream(**options(choice)) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    [again] = streamed.message.tool_calls or []
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
    assert streamed.finish_reason == "tool_calls"


def test_many_at_once_are_those_of_each_alone(client: openai.OpenAI) -> None:
    def one(i: int) -> tuple[str, str]:
        reply = client.chat.completions.create(**options("required", seed=i, tools=[TOOLS[i]]))
        [call] = reply.choices[0].message.tool_calls or []
        fits(call.function.name, call.function.arguments)
        return call.function.name, call.function.arguments

    alone = [one(i) for i in range(len(TOOLS))]
    assert [name for name, _ in alone] == [*SCHEMAS]
    with concurrent.futures.ThreadPoolExecutor(len(TOOLS)) as pool:
        assert [*pool.map(one, range(len(TOOLS)))] == alone
