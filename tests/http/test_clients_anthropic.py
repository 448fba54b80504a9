"""Anthropic's own client, unchanged, against a real server: plain and streamed, calls, counts, errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import anthropic
import pydantic
import pytest
import tiny_model
from serving import SAID, SMOLLM2, ServerProcess

SAY: Any = [{"role": "user", "content": "\ue001"}]  # what the scripted model answers with SAID
ASK: Any = [{"role": "user", "content": "How is the weather?"}]
CITIES = {"Paris", "Rome"}
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": sorted(CITIES)}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
GREEDY = {"temperature": 0}  # newer clients know no such field
ONE_CALL: Any = {"type": "any", "disable_parallel_tool_use": True}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: ServerProcess) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


def said(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_create(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="scripted", max_tokens=50, messages=SAY)
    assert said(message) == "".join(SAID)
    assert (message.type, message.role, message.model) == ("message", "assistant", "scripted")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    assert message.usage.output_tokens == len(SAID)


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="scripted", max_tokens=50, messages=SAY) as stream:
        assert list(stream.text_stream) == SAID
        message = stream.get_final_message()
    assert said(message) == "".join(SAID)
    assert message.stop_reason == "end_turn"


def test_raw_events(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(model="scripted", max_tokens=50, messages=SAY, stream=True))
    kinds = [event.type for event in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(SAID),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def plain_of(message: Any) -> Any:
    """Without what is of this answer alone; how much of the prompt was known changes from one to the next."""
    told = message.model_dump(exclude={"id"}, exclude_none=True)
    usage = told["usage"]
    usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    for i, block in enumerate(told["content"]):
        if block["type"] == "tool_use":
            block["id"] = i
        block.pop("parsed_output", None)
    return told


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 16},
        {"max_tokens": 16, "system": "Be brief."},
        {"max_tokens": 300, "tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}},
        {"max_tokens": 9, "tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}},
    ],
)
def test_the_stream_folds_to_the_plain_reply(client: anthropic.Anthropic, fields: Any) -> None:
    asked: Any = {"model": SMOLLM2, "messages": ASK, "extra_body": GREEDY, **fields}
    plain = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assert plain_of(stream.get_final_message()) == plain_of(plain)


def test_a_limit_ends_the_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="random", max_tokens=5, messages=ASK)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)


def test_the_context_ends_the_answer(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="random", max_tokens=100_000, messages=ASK) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "model_context_window_exceeded"


def test_a_stream_starts_with_the_tokens_of_its_prompt(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "scripted", "max_tokens": 50, "messages": SAY}
    counted = client.messages.count_tokens(model="scripted", messages=SAY).input_tokens
    start, *_, last = client.messages.create(stream=True, **asked)
    assert start.type == "message_start" and last.type == "message_stop"
    usage = start.message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted
    assert usage.output_tokens == 0  # nothing has been said yet


def test_models(client: anthropic.Anthropic) -> None:
    models = list(client.models.list(limit=2))  # page by page
    assert {SMOLLM2, "scripted", "random"} <= {model.id for model in models}
    assert len({model.id for model in models}) == len(models) > 2
    page = client.models.list(limit=1, after_id=models[0].id)
    assert ([model.id for model in page.data], page.has_more) == ([models[1].id], True)
    back = client.models.list(limit=100, before_id=models[1].id)
    assert ([model.id for model in back.data], back.has_more) == ([models[0].id], False)
    one = client.models.retrieve(SMOLLM2)
    assert (one.type, one.id, one.display_name) == ("model", SMOLLM2, SMOLLM2)
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.models.retrieve("nope")
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="after_id"):
        client.models.list(after_id="nope")
    with pytest.raises(anthropic.NotFoundError, match="/v1/messages/batches is not offered here"):
        client.messages.batches.list()


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="scripted", max_tokens=50, messages=SAY, stop_sequences=["line"])
    assert said(message) == "".join(SAID).partition("line")[0]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "line")
    with client.messages.stream(model="scripted", max_tokens=50, messages=SAY, stop_sequences=["x", "line"]) as stream:
        assert plain_of(stream.get_final_message()) == plain_of(message)


def test_a_call_and_its_result(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": SMOLLM2, "max_tokens": 300, "tools": [WEATHER], "messages": ASK, "extra_body": GREEDY}
    message = client.messages.create(tool_choice=ONE_CALL, **asked)
    assert message.stop_reason == "tool_use"
    [use] = message.content
    assert isinstance(use, anthropic.types.ToolUseBlock)
    assert use.name == "weather" and use.input["city"] in CITIES
    for content in ("sunny", [{"type": "text", "text": "sunny"}]):
        result = {"type": "tool_result", "tool_use_id": use.id, "content": content}
        messages = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        answer = client.messages.create(
            **{**asked, "messages": messages, "max_tokens": 8, "tool_choice": {"type": "none"}}
        )
        assert said(answer)


def test_the_tool_runner(client: anthropic.Anthropic) -> None:
    asked = []

    @anthropic.beta_tool
    def weather(city: Literal["Paris", "Rome"]) -> str:
        """Tells the weather.

        Args:
            city: where
        """
        asked.append(city)
        return f"sunny in {city}"

    runner = client.beta.messages.tool_runner(
        model=SMOLLM2, max_tokens=300, tools=[weather], tool_choice=ONE_CALL, messages=ASK, max_iterations=2
    )
    messages = list(runner)
    assert len(messages) == 2 and {message.stop_reason for message in messages} == {"tool_use"}
    assert asked and set(asked) <= CITIES


class Person(pydantic.BaseModel):
    """A person."""

    name: Annotated[str, pydantic.Field(pattern="^[A-Za-z]{1,12}$")]
    mood: Literal["glad", "sad"]


class Mood(pydantic.BaseModel):
    """Of a schema that the client sends as it is: it makes words of patterns and lengths."""

    mood: Literal["glad", "sad"]


def test_an_answer_held_to_a_schema(client: anthropic.Anthropic) -> None:
    schema = {**Person.model_json_schema(), "additionalProperties": False}
    form: Any = {"format": {"type": "json_schema", "schema": schema}}
    message = client.messages.create(model=SMOLLM2, max_tokens=200, messages=ASK, output_config=form)
    assert Person.model_validate_json(said(message))


def test_an_answer_parsed_by_the_client(client: anthropic.Anthropic) -> None:
    message = client.messages.parse(model=SMOLLM2, max_tokens=200, messages=ASK, output_format=Mood)
    assert isinstance(message.parsed_output, Mood)


def test_thoughts(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    folder = tmp_path / "thinkers"
    folder.mkdir()
    said_by_model = ["<think>", "\n", "Hm", ".", "\n", "</think>", "\n\n", "Yes", "!"]
    model = tiny_model.write_scripted(folder / "thinker.gguf", [said_by_model])
    running = start(models=folder, model="thinker", n_ctx=512).wait_ready()
    asked: Any = {"model": "thinker", "max_tokens": 50, "messages": [{"role": "user", "content": model.message(0)}]}
    with anthropic.Anthropic(base_url=running.url, api_key="any", max_retries=0) as client:
        plain = client.messages.create(thinking={"type": "adaptive"}, **asked)
        assert [block.type for block in plain.content] == ["thinking", "text"]
        assert isinstance(plain.content[0], anthropic.types.ThinkingBlock)
        assert (plain.content[0].thinking, said(plain)) == ("Hm.", "Yes!")
        assert plain.usage.output_tokens_details is not None
        assert plain.usage.output_tokens_details.thinking_tokens == said_by_model.index("</think>") + 1
        with client.messages.stream(thinking={"type": "adaptive"}, **asked) as stream:
            assert plain_of(stream.get_final_message()) == plain_of(plain)
        omitted = client.messages.create(thinking={"type": "adaptive", "display": "omitted"}, **asked)
        assert isinstance(omitted.content[0], anthropic.types.ThinkingBlock)
        assert (omitted.content[0].thinking, said(omitted)) == ("", "Yes!")
        turns = [*asked["messages"], {"role": "assistant", "content": plain.content}, *asked["messages"]]
        assert client.messages.count_tokens(model="thinker", messages=turns).input_tokens > plain.usage.input_tokens


def test_a_begun_answer(client: anthropic.Anthropic) -> None:
    """It goes on where the client's own words end, and does not repeat them."""
    begun: Any = [*ASK, {"role": "assistant", "content": "The weather is"}]
    message = client.messages.create(model=SMOLLM2, max_tokens=8, messages=begun, extra_body=GREEDY)
    assert said(message) and "weather is" not in said(message)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief."},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"system": [{"type": "text", "text": "Be brief."}], "thinking": {"type": "disabled"}},
    ],
)
def test_counted_tokens_are_those_of_the_answer(client: anthropic.Anthropic, fields: Any) -> None:
    asked: Any = {"model": SMOLLM2, "messages": ASK, **fields}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(max_tokens=1, **asked).usage
    assert usage.cache_read_input_tokens is not None
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="no such model", max_tokens=5, messages=SAY)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="no such model", messages=SAY)
    picture: Any = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x/"}}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.type"):
        client.messages.create(model="scripted", max_tokens=5, messages=picture)
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.type"):
        client.messages.count_tokens(model="scripted", messages=picture)
    search: Any = [{"type": "web_search_20250305", "name": "web_search"}]
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.type"):
        client.messages.create(model="scripted", max_tokens=5, messages=SAY, tools=search)
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        client.messages.create(model="scripted", max_tokens=5, messages=SAY, stop_sequences=[""])
    held = {**WEATHER, "strict": True, "input_schema": {"type": "object", "properties": {"a": {"not": {}}}}}
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.input_schema\.properties\.a"):
        client.messages.create(model="scripted", max_tokens=5, messages=SAY, tools=[held])


def test_a_stream_that_fails(start: Callable[..., ServerProcess]) -> None:
    """Its model is unloaded in the midst of it."""
    running = start().wait_ready()
    with anthropic.Anthropic(base_url=running.url, api_key="any", max_retries=0) as client:
        stream = client.messages.create(model="random", max_tokens=100_000, messages=ASK, stream=True)
        kinds = []
        with pytest.raises(anthropic.APIStatusError) as failed:
            for event in stream:
                kinds.append(event.type)
                if event.type == "content_block_delta" and kinds.count(event.type) == 1:
                    assert running.post("/v1/models/unload", {"model_name": "random"}).status_code == 200
    assert failed.value.body["error"]["type"] == "overloaded_error"
    assert "message_stop" not in kinds and "message_delta" not in kinds


def test_a_key(start: Callable[..., ServerProcess]) -> None:
    running = start(api_key="secret", model="scripted", n_ctx=512).wait_ready()
    with anthropic.Anthropic(base_url=running.url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(model="scripted", max_tokens=50, messages=SAY)
    with anthropic.Anthropic(base_url=running.url, api_key="secret", max_retries=0) as client:
        assert said(client.messages.create(model="scripted", max_tokens=50, messages=SAY)) == "".join(SAID)


def test_what_is_ignored_is_told_of(server: ServerProcess) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body = {"model": "scripted", "max_tokens": 50, "messages": SAY, "thinking": thinking}
    for stream in (True, False):
        reply = server.post("/v1/messages", {**body, "stream": stream}, headers={"anthropic-beta": "x"})
        assert json.loads(reply.headers["x-polargrid-ignored"]) == ["thinking.budget_tokens"]


async def test_async(async_client: anthropic.AsyncAnthropic) -> None:
    message = await async_client.messages.create(model="scripted", max_tokens=50, messages=SAY)
    assert said(message) == "".join(SAID)
    async with async_client.messages.stream(model="scripted", max_tokens=50, messages=SAY) as stream:
        assert [text async for text in stream.text_stream] == SAID
