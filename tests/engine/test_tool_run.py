"""Runs of tools on the real small model: it is forced to call once, and what it writes meets the schemas."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from helpers import wait_until_idle
from pydantic import BaseModel, Field

from polargrid_local import AsyncEngine, Engine, SchemaError, Tool, ToolRoundsError

ASK = [{"role": "user", "content": "How warm is it in Toronto?"}]


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


class Place(BaseModel):
    name: Annotated[str, Field(max_length=20)]
    country: Literal["CA", "US"] = "CA"


@dataclass
class Range:
    low: Annotated[int, Field(ge=0, le=9)]
    high: Annotated[int, Field(ge=0, le=9)] = 9


def get_weather(city: Annotated[str, Field(max_length=20)]) -> dict[str, Any]:
    """The weather in a city."""
    return {"sky": "clear", "degrees": 21}


def once(**more: Any) -> dict[str, Any]:
    return {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200, "max_rounds": 1, **more}


@pytest.mark.parametrize("seed", range(4))
def test_what_the_model_writes_is_what_the_hints_say(engine: Engine, seed: int) -> None:
    got: dict[str, Any] = {}

    def look_up(place: Place, unit: Unit, days: Range, exact: bool, note: Literal["a", "b"] | None = None) -> str:
        """Looks the weather up.

        Args:
            place: Where.
            days: Which ones.
        """
        got.update(locals())
        return "21 degrees"

    with pytest.raises(ToolRoundsError) as caught:
        engine.run_tools(ASK, [look_up], temperature=1.5, seed=seed, **once())
    assert isinstance(got["place"], Place) and isinstance(got["unit"], Unit) and isinstance(got["days"], Range)
    assert isinstance(got["exact"], bool) and got["note"] in ("a", "b", None)
    assert caught.value.messages[-1]["content"] == "21 degrees"


def test_the_model_answers_with_what_the_tool_gave(engine: Engine) -> None:
    run = engine.run_tools(
        ASK, [get_weather], tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=60
    )
    assert [message["role"] for message in run.messages[:3]] == ["user", "assistant", "tool"]
    assert run.messages[2]["content"] == '{"sky":"clear","degrees":21}'
    assert run.messages[-1] == run.reply["choices"][0]["message"] and run.text == run.messages[-1]["content"]
    rounds = [message for message in run.messages if message["role"] == "assistant"]
    assert len(rounds) > 1 and run.usage["prompt_tokens"] > run.reply["usage"]["prompt_tokens"]
    # The chat goes on as it is.
    again = engine.chat_completion(messages=run.messages, tools=[Tool.of(get_weather).definition], max_tokens=3)
    assert again["usage"]["prompt_tokens"] > run.reply["usage"]["prompt_tokens"]


def test_events_are_the_plain_run(engine: Engine) -> None:
    options = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0, "max_tokens": 60}
    plain = engine.run_tools(ASK, [get_weather], **options)
    with engine.run_tools(ASK, [get_weather], stream=True, **options) as run:
        events = list(run)

    def bare(messages: list[Any]) -> list[Any]:
        """Without ids, which are new in each answer."""
        return [(m["role"], m["content"], [call["function"] for call in m.get("tool_calls", ())]) for m in messages]

    assert bare(run.messages) == bare(plain.messages)
    assert run.usage == plain.usage and run.finish_reason == plain.finish_reason
    calls = [call for message in run.messages for call in message.get("tool_calls", ())]
    assert calls and [event["call"] for event in events if event["kind"] == "call"] == calls
    assert [event["result"] for event in events if event["kind"] == "result"] == [
        message["content"] for message in run.messages if message["role"] == "tool"
    ]


@pytest.mark.parametrize("max_tokens", [1, 5, 10, 15, 20])
def test_an_answer_cut_in_a_call_ends_the_run(engine: Engine, max_tokens: int) -> None:
    ran = []

    def wordy(
        text: Annotated[str, Field(min_length=500)],
    ) -> None:
        ran.append(text)

    run = engine.run_tools(ASK, [wordy], tool_choice="required", max_tokens=max_tokens)
    assert run.finish_reason == "length" and ran == []
    assert [message["role"] for message in run.messages] == ["user", "assistant"]


def test_leaving_a_run_ends_its_request(engine: Engine) -> None:
    before = wait_until_idle(engine)["n_cancelled"]
    for _ in engine.run_tools(ASK, [get_weather], stream=True, max_tokens=-1, ignore_eos=True, tool_choice="none"):
        break
    assert wait_until_idle(engine)["n_cancelled"] == before + 1
    with engine.run_tools(ASK, [get_weather], stream=True, max_tokens=-1, ignore_eos=True, tool_choice="none") as run:
        next(run)
    assert run.cancelled and wait_until_idle(engine)["n_cancelled"] == before + 2


def test_a_class_as_the_answer(engine: Engine) -> None:
    run = engine.run_tools(ASK, [get_weather], response_format=Place, tool_choice="none", max_tokens=200, temperature=0)
    assert isinstance(run.parsed, Place) and run.reply.parsed == run.parsed


def test_a_schema_that_cannot_be_held_is_refused_by_its_path(engine: Engine) -> None:
    def odd(x: dict[Literal["a", "b"], int]) -> None: ...

    with pytest.raises(SchemaError, match=r"tools\[1\].function.parameters.properties.x.propertyNames"):
        engine.run_tools(ASK, [get_weather, odd], tool_choice="required")


async def test_tasks_run_tools_side_by_side(smollm2: Path) -> None:
    async def now(city: Annotated[str, Field(max_length=20)]) -> str:
        await asyncio.sleep(0)
        return "noon"

    double = Tool("double", "", {"type": "object", "properties": {"x": {"type": "integer", "maximum": 99}}}, print)
    async with AsyncEngine(smollm2, n_ctx=2048, max_streams=4) as engine:
        options = {"parallel_tool_calls": False, "max_tokens": 100}
        choice = {"type": "function", "function": {"name": "now"}}
        runs = [engine.run_tools(ASK, [now, double], tool_choice=choice, seed=i, **options) for i in range(4)]
        for run in await asyncio.gather(*runs):
            assert [message["role"] for message in run.messages[:3]] == ["user", "assistant", "tool"]
            assert run.messages[2]["content"] == "noon" and run.reply is not None
